"""Started by torchrun: validates untrained models; each process writes what it measured and how much it encoded."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

from clips.commandline.parsing import parse_config
from clips.errors import UserError
from clips.model import towers
from clips.parallel.distributed import end_processes
from clips.train import EncoderTrainConfig, export_model
from clips.training import validation as validate
from clips.training.setup import open_train_dataset, setup_run

_encoded: collections.Counter[str] = collections.Counter()


def count_encoding() -> None:
    """Count the images and texts that this process encodes."""
    image, text = towers.encode_image, towers.encode_text_features

    def encode_image(clip: Any, pixels: Any) -> Any:
        _encoded["image"] += len(pixels)
        return image(clip, pixels)

    def text_features(clip: Any, tokens: Any) -> Any:
        _encoded["text"] += len(tokens)
        return text(clip, tokens)

    towers.encode_image, towers.encode_text_features = encode_image, text_features  # type: ignore[assignment]


def measure(config_file: str, broken_on: int | None) -> None:
    """Validate a run's model; writes next to its config."""
    config = parse_config(EncoderTrainConfig, ["--config", config_file], prog="driver")
    assert config is not None
    run = setup_run(config, open_train_dataset(config))
    if run.processes.rank == broken_on:
        validate.open_source = raise_error  # type: ignore[assignment]
    validation = validate.RetrievalValidation(config.validation, run)
    encoder = export_model(run, everywhere=True)
    assert encoder is not None
    _encoded.clear()  # making a model encodes too
    found = {"metrics": validation.measure(encoder), "encoded": dict(_encoded)}
    Path(config_file).with_suffix(f".rank{run.processes.rank}.json").write_text(json.dumps(found))


def raise_error(*_: Any) -> Any:
    raise UserError("held_out.tar: broken on rank 1")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    rank = int(arguments.pop(1)) if arguments[0] == "--break" else None
    count_encoding()
    for file in arguments[rank is not None :]:
        measure(file, rank)
    end_processes()
