"""The ``llava-bridge`` command."""

from __future__ import annotations

from clips.commandline.commands import Command, dispatch

ABOUT = "Plug a vision encoder into an LLM, train the LLaVA under DeepSpeed, and chat with it."

COMMANDS = {
    "train": Command(help="train a LLaVA by stages", target="llava_bridge.training.train:run_train"),
    "convert": Command(
        help="convert LLaVAs between the original format and that of transformers",
        target="llava_bridge.conversion.convert_command:run_convert",
        positional=("source",),
    ),
    "swap": Command(
        help="replace the encoder of a LLaVA; the new projector is untrained",
        target="llava_bridge.conversion.swap_encoder:run_swap",
        positional=("llava",),
    ),
    "data inspect": Command(
        help="show samples as the LLM sees them, their supervised tokens, and invalid samples",
        target="llava_bridge.data.inspect_command:run_inspect",
        positional=("path",),
    ),
    "chat": Command(
        help="chat with a LLaVA about an image",
        target="llava_bridge.inference.chat_command:run_chat",
        positional=("model",),
    ),
    "serve": Command(
        help="serve a LLaVA with OpenAI's chat API",
        target="llava_bridge.inference.serve_command:run_serve",
        positional=("model",),
    ),
}


def main() -> int:
    """Run the command that ``sys.argv`` names; returns the exit status."""
    return dispatch("llava-bridge", ABOUT, COMMANDS)
