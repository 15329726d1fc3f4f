"""Shards of captioned samples, each written atomically, and their completion to a dataset."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clips.core import durable
from clips.core.artifact import MANIFEST, library_versions, write_manifest
from clips.core.chat_client import is_other_model
from clips.core.durable import atomic_write, temp_path_for, write_errors_as_user_errors
from clips.core.identity import RUN, file_hash
from clips.data.formats.webdataset import SIZES_FILE
from clips.data.images import decode_image
from clips.data.sources import Record, Sample, Source
from clips.data.tar_index import add_member
from clips.errors import UserError
from clips.loader.invalid_samples import InvalidSamples
from clips.recaption.captioners import Captioner
from clips.recaption.recaption_config import RecaptionConfig
from clips.safe_text import log_info
from clips.text_files import safe_json_loads

WORK_DIR = ".work"
"""A directory in the output, until that is complete: counts of finished shards, unfinished ones and their captions."""
_MODEL = "model.json"
_REPEATED = 5  # images of one caption that a shard's line states if they are more than a tenth


class TarWriter:
    """WebDataset's format: image, JSON with the caption, and the other files of the sample."""

    def __init__(self, path: Path, config: RecaptionConfig) -> None:
        self.config = config
        self.tar = tarfile.open(path, "w")  # noqa: SIM115

    def add(self, record: Record, sample: Sample, caption: str | list[str]) -> None:
        """Append a sample."""
        content = sample.image
        with Image.open(io.BytesIO(content)) as image:
            # an MPO, of phones, is a JPEG with further images
            kind = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}.get(str(image.format))
        if kind is None:  # readers of WebDataset do not support the other formats
            stream, kind = io.BytesIO(), "png"
            decode_image(content).save(stream, "PNG")  # upright and on white, as the model saw it
            content = stream.getvalue()
        fields = record.fields | {self.config.caption_column: caption}
        files = {kind: content, **record.files}
        files["json"] = json.dumps(fields, ensure_ascii=False, default=str).encode()
        for extension, data in files.items():
            add_member(self.tar, f"{record.key}.{extension}", data)

    def close(self) -> None:
        """Complete the file."""
        self.tar.close()


class ParquetWriter:
    """Rows of key, image path or URL, web caption and caption, to train with the original images or to join by key."""

    def __init__(self, path: Path, config: RecaptionConfig) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        self.config, self.rows = config, list[dict[str, Any]]()
        caption = pa.string() if config.num_captions == 1 else pa.list_(pa.string())
        self.web = config.web_caption.lstrip(".")
        kinds = {"key": pa.string(), "image": pa.string(), self.web: pa.string(), config.caption_column: caption}
        self.schema = pa.schema(list(kinds.items()))
        self.file = pyarrow.parquet.ParquetWriter(path, self.schema)

    def add(self, record: Record, sample: Sample, caption: str | list[str]) -> None:
        """Append a sample."""
        self.rows.append(
            {"key": record.key, "image": record.reference, self.web: sample.web, self.config.caption_column: caption}
        )

    def close(self) -> None:
        """Complete the file."""
        import pyarrow as pa

        self.file.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.file.close()


def shard_name(number: int, config: RecaptionConfig) -> str:
    """The name of a finished shard's file."""
    return f"{number:05d}.{config.output_format}"


class ShardWriter:
    """A shard while it is written; it appears under its name when complete."""

    def __init__(self, number: int, config: RecaptionConfig) -> None:
        self.target = Path(config.output) / shard_name(number, config)
        self.config, work = config, Path(config.output) / WORK_DIR
        self.partial = temp_path_for(work / self.target.name)
        self.counts = work / f"{self.target.name}.json"
        with write_errors_as_user_errors(self.target):
            self.writer = (TarWriter if config.output_format == "tar" else ParquetWriter)(self.partial, config)
        self.written, self.tokens, self.dropped = 0, 0, InvalidSamples()
        self.captions = Counter[str]()

    def add(self, record: Record, sample: Sample, captions: list[str], tokens: int) -> None:
        """Append a sample for which the model generated ``tokens`` tokens."""
        with write_errors_as_user_errors(self.target):
            self.writer.add(record, sample, captions if self.config.num_captions > 1 else captions[0])
        self.written, self.tokens = self.written + 1, self.tokens + tokens
        self.captions.update(captions[:1])

    def finish(self) -> None:
        """Complete the shard, its counts first."""
        with write_errors_as_user_errors(self.target):
            self.writer.close()
            status = self.partial.stat()
        stamp = {"size": status.st_size, "modified_ns": status.st_mtime_ns, "hash": file_hash(self.partial)}
        counts = {"written": self.written, "tokens": self.tokens, "dropped": self.dropped.by_reason, "file": stamp}
        atomic_write(self.counts, json.dumps(counts))
        with write_errors_as_user_errors(self.target):
            durable.replace(self.partial, self.target)

    def summary(self) -> str:
        """A log line: file name, number of captions, dropped samples, and a caption that many images have."""
        dropped = f"; {self.dropped.reasons()}" if self.dropped.count else ""
        (text, count), *_ = self.captions.most_common(1) or [("", 0)]
        is_repeated = count >= _REPEATED and count > self.written / 10
        repeated = f"; {count:,} of them are the same: {text!r:.100}" if is_repeated else ""
        return f"{self.target.name}: {self.written:,} captions{dropped}{repeated}"

    def abandon(self) -> None:
        """Remove the unfinished shard."""
        with contextlib.suppress(Exception):  # earlier errors have been reported
            self.writer.close()
        self.partial.unlink(missing_ok=True)


def save_model_record(config: RecaptionConfig, captioner: Captioner) -> None:
    """Record the model for `finalize_dataset`, which may run in another process.

    Raises:
        UserError: the output has captions of another model, by the hash that a server states or its commit on the Hub.
    """
    path, model = Path(config.output) / WORK_DIR / _MODEL, dict(captioner.identity())
    if not path.is_file():
        atomic_write(path, json.dumps(model))
        return
    name = "root" if config.endpoint else "commit"
    before, now = json.loads(path.read_text(encoding="utf-8")).get(name), model.get(name)
    where = "the server has" if config.endpoint else "the Hub's cache has"
    text = f"model: {config.output} has captions of {before}, {where} {now} as '{config.model}'"
    if is_other_model(before, now, text):
        raise UserError(f"{text}; choose another output")


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
