"""The ``clips`` command."""

from __future__ import annotations

import sys

from clips.commandline.commands import Command, dispatch

COMMANDS = {
    "data inspect": Command(
        help="report on training data: counts, caption lengths, samples, invalid samples",
        target="clips.loader.inspect_command:run_inspect",
        positional=("path",),
        examples=(
            "clips data inspect shards --web_caption .txt",
            "clips data inspect captions.csv --format table --image_column file_name --web_caption caption",
        ),
    ),
    "data index": Command(
        help="write the sample counts of tar shards to sizes.json",
        target="clips.loader.inspect_command:run_index",
        positional=("path",),
        examples=("clips data index shards", "clips data index '/data/shards/{00000..00511}.tar'"),
    ),
    "recaption": Command(
        help="write synthetic captions for a dataset with any image-text model",
        target="clips.recaption.run:run_recaption",
        positional=("path",),
        common=(
            "path",
            "output",
            "web_caption",
            "model",
            "endpoint",
            "prompt",
            "batch_size",
            "max_new_tokens",
            "estimate",
        ),
        examples=(
            "clips recaption shards --web_caption .txt --model Qwen/Qwen2.5-VL-7B-Instruct --output recaptioned",
            "clips recaption shards --web_caption .txt --model NAME --endpoint '[http://host:8000/v1]' --output new",
        ),
    ),
    "train": Command(
        help="train an encoder on images with captions",
        target="clips.train:train",
        config="clips.training.train_config:EncoderTrainConfig",
        check="clips.training.run_dir:check_files",
        common=(
            *("output", "data.sources", "model.architecture", "recipe.name", "max_steps", "num_epochs"),
            *("global_batch_size", "micro_batch_size", "optimizer.learning_rate", "optimizer.base_learning_rate"),
            *("precision", "model.pretrained", "validation.source", "save_steps", "report_to", "stages"),
        ),
        examples=(
            "clips train mine.yaml    # or without a file:",
            "clips train --output runs/mine --num_epochs 10 --model.architecture ViT-S-16 \\",
            "    --data.sources '[{path: shards, web_caption: .txt, synthetic_caption: long}]'",
        ),
    ),
    "plan": Command(
        help="estimate the memory, time and storage of a training",
        target="clips.plan:run_plan",
        positional=("train_config",),
        examples=("clips plan mine.yaml", "clips plan mine.yaml --gpu h100 --num_gpus 16"),
    ),
    "export": Command(
        help="write the encoder directory of a checkpoint, or an encoder for transformers",
        target="clips.export:run_export",
        positional=("checkpoint",),
        examples=(
            "clips export runs/mine --output exported/mine",
            "clips export runs/mine/.checkpoints/step-00001000 --output exported/mine-1000",
        ),
    ),
    "import": Command(
        help="write an encoder directory from open_clip's or transformers' weights",
        target="clips.interchange.importing:run_import",
        positional=("path",),
        examples=(
            "clips import epoch_1.pt --architecture ViT-B-32 --output imported/mine",
            "clips import models/clip-vit-large-patch14 --output imported/clip-l",
        ),
    ),
}


def main() -> int:
    """Run the command line and return the exit status."""
    return dispatch("clips", "Train CLIP encoders on web captions and long synthetic captions.", COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
