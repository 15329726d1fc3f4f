"""The ``clips`` command."""

from __future__ import annotations

import sys

from clips.commandline.commands import Command, dispatch

COMMANDS = {
    "scenes": Command(
        help="make the embedded world: pictures, captions and questions",
        target="clips.scenes.generate:generate_scenes",
    ),
    "data inspect": Command(
        help="tell what training data holds: counts, caption lengths, samples, what is broken",
        target="clips.data.inspect_command:run_inspect",
        positional=("path",),
    ),
    "data index": Command(
        help="count the samples of tar shards once and for all",
        target="clips.data.inspect_command:run_index",
        positional=("path",),
    ),
    "recaption": Command(
        help="write synthetic captions for a data set with any image-text model",
        target="clips.recaption.run:run_recaption",
        positional=("path",),
    ),
    "train": Command(
        help="train an encoder on pictures with captions",
        target="clips.train:train",
        config="clips.training.train_config:EncoderTrainConfig",
    ),
    "plan": Command(
        help="what a training will need: memory, time, GPUs, storage",
        target="clips.planning.plan_command:run_plan",
        positional=("train_config",),
    ),
    "export": Command(
        help="write the encoder directory of a checkpoint, or an encoder for transformers or timm",
        target="clips.export:run_export",
        positional=("checkpoint",),
    ),
    "import": Command(
        help="make an encoder directory from open_clip's, transformers' or the authors' weights",
        target="clips.interchange.importing:run_import",
        positional=("path",),
    ),
    "soup": Command(help="average the weights of several encoders", target="clips.soup:run_soup", rest="encoders"),
    "caption": Command(
        help="what a trained captioner says of a picture", target="clips.caption:run_caption", positional=("image",)
    ),
}


def main() -> int:
    """Run the command that the command line names and return its exit status."""
    return dispatch("clips", "Train CLIP encoders on web captions and long synthetic captions.", COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
