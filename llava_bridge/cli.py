"""The ``llava-bridge`` command."""

from __future__ import annotations

from clips.commandline.commands import Command, dispatch

ABOUT = "Plug a vision encoder into an LLM, train the LLaVA under DeepSpeed, and chat with it."

COMMANDS = {
    "train": Command(
        help="train a LLaVA by stages",
        target="llava_bridge.training.train:run_train",
        common=(
            *("output", "encoder", "llm", "llava", "align.data", "instruct.data", "stages", "projector.type"),
            *("image_aspect_ratio", "instruct.tunable_parts", "instruct.lora", "instruct.global_batch_size"),
            *(
                "instruct.micro_batch_size",
                "instruct.learning_rate",
                "distributed.deepspeed",
                "save_steps",
                "report_to",
            ),
        ),
        examples=(
            "llava-bridge train --output runs/llava --encoder runs/clips --llm Qwen/Qwen2.5-0.5B-Instruct \\",
            "    --align.data '[{path: blip_laion_cc_sbu_558k.json}]' \\",
            "    --instruct.data '[{path: llava_v1_5_mix665k.json, image_root: images}]'",
            "deepspeed --module llava_bridge.cli train llava.yaml --distributed.deepspeed zero3",
        ),
    ),
    "convert": Command(
        help="convert LLaVAs between the original format and that of transformers",
        target="llava_bridge.conversion.convert_command:run_convert",
        positional=("source",),
        examples=(
            "llava-bridge convert llava-v1.5-7b --output llava-hf",
            "llava-bridge convert runs/mine-llava --output mine-original",
        ),
    ),
    "swap": Command(
        help="replace the encoder of a LLaVA; the new projector is untrained",
        target="llava_bridge.conversion.swap_encoder:run_swap",
        positional=("llava",),
        examples=(
            "llava-bridge swap runs/mine-llava --encoder runs/clips --output runs/swapped",
            "llava-bridge swap llava-v1.5-7b --encoder runs/clips --output runs/swapped-7b",
        ),
    ),
    "data inspect": Command(
        help="show samples as the LLM sees them, their supervised tokens, and invalid samples",
        target="llava_bridge.data.inspect_command:run_inspect",
        positional=("path",),
        examples=(
            "llava-bridge data inspect llava_instruct.json --llm Qwen/Qwen2.5-0.5B-Instruct",
            "llava-bridge data inspect llava_instruct.json --llm models/llm --max_length 2048",
        ),
    ),
    "chat": Command(
        is_interactive=True,
        help="chat with a LLaVA about an image",
        target="llava_bridge.inference.chat_command:run_chat",
        positional=("model",),
        examples=(
            "llava-bridge chat runs/mine-llava --image photo.jpg",
            "llava-bridge chat runs/mine-llava --image photo.jpg --prompt 'What is it?'",
        ),
    ),
    "serve": Command(
        help="serve a LLaVA with OpenAI's chat API",
        target="llava_bridge.inference.serve_command:run_serve",
        positional=("model",),
        examples=("llava-bridge serve runs/mine-llava", "llava-bridge serve runs/mine-llava --port 8001"),
    ),
}


def main() -> int:
    """Run the command that ``sys.argv`` names; returns the exit status."""
    return dispatch("llava-bridge", ABOUT, COMMANDS)
