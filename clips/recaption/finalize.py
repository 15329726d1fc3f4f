"""Completion of a directory of captioned shards as a dataset: sizes, manifest and description."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.core.artifact import MANIFEST, atomic_write, library_versions, log_info, write_manifest
from clips.core.identity import RUN
from clips.data.sources import Source
from clips.data.sources.webdataset import SIZES_FILE
from clips.jsontext import safe_json_loads
from clips.recaption.recaption_config import RecaptionConfig
from clips.recaption.shard_writers import WORK_DIR

if TYPE_CHECKING:
    from clips.recaption.caption_model import CaptionModel

_MODEL = "model.json"


def save_model_record(config: RecaptionConfig, describer: CaptionModel) -> None:
    """Record the model until the dataset is complete."""
    note = Path(config.output) / WORK_DIR / _MODEL
    if not note.is_file():
        atomic_write(note, json.dumps(describer.identity()))


def finalize_dataset(config: RecaptionConfig, source: Source, shards: Sequence[str]) -> None:
    """Complete ``config.output``, all of whose shards are there; another process may do the same at the same time."""
    output = Path(config.output)
    try:
        counts = {name: _read(output, f"{name}.json") for name in shards}
        run, model = _read(output, RUN), _read(output, _MODEL)
    except FileNotFoundError:
        if (output / MANIFEST).is_file():  # the other process was faster
            return
        raise
    written = {name: count["written"] for name, count in counts.items()}
    dropped = sum((Counter(count["dropped"]) for count in counts.values()), Counter[str]())
    totals = {
        "written": sum(written.values()),
        "tokens": sum(count["tokens"] for count in counts.values()),
        "dropped": dict(dropped.most_common()),
    }
    if config.output_format == "tar":
        atomic_write(output / SIZES_FILE, json.dumps(written, indent=1) + "\n")
    atomic_write(output / "README.md", dataset_card(config, totals, model))
    write_manifest(
        output,
        kind="captions",
        config=config,
        seed=config.seed,
        data={"source": source.describe(), "model": model},
        parents={
            name: path
            for name, path in (("source", config.path), ("model", config.model))
            if (Path(path) / MANIFEST).is_file()
        },
        known={name: count["file"] for name, count in counts.items()},
        identity=run,
        captions=totals,
    )
    shutil.rmtree(output / WORK_DIR, ignore_errors=True)
    lost = "".join(f"; {count:,} × {reason}" for reason, count in totals["dropped"].items())
    log_info(f"{output}: {totals['written']:,} captions in {len(shards):,} shards{lost}")
    log_info(f"train on it with {source_config_hint(config)}")


def _read(output: Path, name: str) -> Any:
    return safe_json_loads((output / WORK_DIR / name).read_text(encoding="utf-8"))


def source_config_hint(config: RecaptionConfig) -> str:
    """The entry of ``data.sources`` that reads the captions back."""
    if config.output_format == "tar":
        return (
            f"{{path: {config.output}, web_caption: {config.web_caption}, synthetic_caption: {config.caption_column}}}"
        )
    return (
        f"{{format: table, path: {config.output}, web_caption: {config.web_caption.lstrip('.')}, "
        f"synthetic_caption: {config.caption_column}, image_root: the directory of images}}"
    )


def dataset_card(config: RecaptionConfig, totals: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """README.md of the dataset."""
    drawn = f"drawn at temperature {config.temperature:g}, top p {config.top_p:g}" if config.temperature else "greedy"
    dropped = "".join(f"- {count:,} × {reason}\n" for reason, count in totals["dropped"].items()) or "- none\n"
    used = "".join(
        f"- {name} {version}\n" for name, version in library_versions().items() if version != "not installed"
    )
    quoted = config.prompt.replace("\n", "\n> ")
    return f"""---
task_categories:
- image-to-text
tags:
- synthetic-captions
---
# Synthetic captions for `{config.path}`

{totals["written"]:,} images, {totals["tokens"]:,} tokens of captions under `{config.caption_column}`, written by
`{model["path"]}` ({model["class"]}), {drawn}, at most {config.max_new_tokens} tokens. It was asked:

> {quoted}

Read it with `clips train`, as an entry of `data.sources`:

    {source_config_hint(config)}

Samples of the source that are not here:

{dropped}
Written with

{used}"""
