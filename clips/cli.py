"""The ``clips`` command."""

from __future__ import annotations

import sys

from clips.commandline.commands import Command, dispatch

COMMANDS = {
    "data inspect": Command(
        help="report on training data: counts, caption lengths, samples, invalid samples",
        target="clips.loader.inspect_command:run_inspect",
        positional=("path",),
    ),
    "data index": Command(
        help="write the sample counts of tar shards to sizes.json",
        target="clips.loader.inspect_command:run_index",
        positional=("path",),
    ),
    "recaption": Command(
        help="write synthetic captions for a dataset with any image-text model",
        target="clips.recaption.run:run_recaption",
        positional=("path",),
    ),
    "train": Command(
        help="train an encoder on images with captions",
        target="clips.train:train",
        config="clips.training.train_config:EncoderTrainConfig",
        check="clips.training.run_dir:check_files",
    ),
    "plan": Command(
        help="estimate the memory, time and storage of a training",
        target="clips.plan:run_plan",
        positional=("train_config",),
    ),
    "export": Command(
        help="write the encoder directory of a checkpoint, or an encoder for transformers",
        target="clips.export:run_export",
        positional=("checkpoint",),
    ),
    "import": Command(
        help="write an encoder directory from open_clip's or transformers' weights",
        target="clips.interchange.importing:run_import",
        positional=("path",),
    ),
}


def main() -> int:
    """Run the command line and return the exit status."""
    return dispatch("clips", "Train CLIP encoders on web captions and long synthetic captions.", COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
