"""Completion of a directory of captioned shards: sizes, manifest and dataset card."""

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


def save_model_record(config: RecaptionConfig, caption_model: CaptionModel) -> None:
    """Record the model for `finalize_dataset`, which may run in another process."""
    path = Path(config.output) / WORK_DIR / _MODEL
    if not path.is_file():
        atomic_write(path, json.dumps(caption_model.identity()))


def finalize_dataset(config: RecaptionConfig, source: Source, shards: Sequence[str]) -> None:
    """Complete ``config.output``, all of whose shards exist; several processes may do so concurrently."""
    output = Path(config.output)
    try:
        counts = {name: _read(output, f"{name}.json") for name in shards}
        run, model = _read(output, RUN), _read(output, _MODEL)
    except FileNotFoundError:
        if (output / MANIFEST).is_file():  # the other process was faster
            return
        raise
    sizes = {name: count["written"] for name, count in counts.items()}
    dropped = sum((Counter(count["dropped"]) for count in counts.values()), Counter[str]())
    totals = {
        "written": sum(sizes.values()),
        "tokens": sum(count["tokens"] for count in counts.values()),
        "dropped": dict(dropped.most_common()),
    }
    if config.output_format == "tar":
        atomic_write(output / SIZES_FILE, json.dumps(sizes, indent=1) + "\n")
    atomic_write(output / "README.md", dataset_card(config, totals, model))
    inputs = {"source": config.path, "model": config.model}
    write_manifest(
        output,
        kind="captions",
        config=config,
        seed=config.seed,
        data={"source": source.describe(), "model": model},
        parents={name: path for name, path in inputs.items() if (Path(path) / MANIFEST).is_file()},
        known={name: count["file"] for name, count in counts.items()},
        identity=run,
        captions=totals,
    )
    shutil.rmtree(output / WORK_DIR, ignore_errors=True)
    reasons = "".join(f"; {count:,} × {reason}" for reason, count in totals["dropped"].items())
    log_info(f"{output}: {totals['written']:,} captions in {len(shards):,} shards{reasons}")
    log_info(f"train on it with {source_config_hint(config)}")


def _read(output: Path, name: str) -> Any:
    return safe_json_loads((output / WORK_DIR / name).read_text(encoding="utf-8"))


def source_config_hint(config: RecaptionConfig) -> str:
    """The entry of ``data.sources`` that reads the captions."""
    output, web, synthetic = config.output, config.web_caption, config.caption_column
    if config.output_format == "tar":
        return f"{{path: {output}, web_caption: {web}, synthetic_caption: {synthetic}}}"
    return (
        f"{{format: table, path: {output}, web_caption: {web.lstrip('.')}, "
        f"synthetic_caption: {synthetic}, image_root: the directory of images}}"
    )


def dataset_card(config: RecaptionConfig, totals: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """README.md of the dataset."""
    sampled = f"sampled at temperature {config.temperature:g}, top p {config.top_p:g}"
    decoding = sampled if config.temperature else "greedy"
    dropped = "".join(f"- {count:,} × {reason}\n" for reason, count in totals["dropped"].items()) or "- none\n"
    installed = {name: version for name, version in library_versions().items() if version != "not installed"}
    libraries = "".join(f"- {name} {version}\n" for name, version in installed.items())
    prompt = config.prompt.replace("\n", "\n> ")
    return f"""---
task_categories:
- image-to-text
tags:
- synthetic-captions
---
# Synthetic captions for `{config.path}`

{totals["written"]:,} images, {totals["tokens"]:,} tokens of captions under `{config.caption_column}`, written by
`{model["path"]}` ({model["class"]}), {decoding}, at most {config.max_new_tokens} tokens. The prompt:

> {prompt}

Read it with `clips train`, as an entry of `data.sources`:

    {source_config_hint(config)}

Dropped samples of the source:

{dropped}
Written with

{libraries}"""
