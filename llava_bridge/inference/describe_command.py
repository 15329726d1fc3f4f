"""``llava-bridge describe``: a LLaVA's answers to one question about many images, as JSON lines.

llava-bridge describe runs/mine-llava photos/ --output described.jsonl
llava-bridge describe runs/mine-llava photos/*.jpg --prompt "Is there a dog in the image?" | head
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from PIL import Image

from clips.commandline.progress import Progress
from clips.core.artifact import atomic_write, directory_hash, log_info, write_errors_as_user_errors
from clips.core.identity import RUN, RUN_ONLY, identity, read_run, reject_other_run, run_text
from clips.data.invalid_samples import InvalidSamples
from clips.errors import UserError
from clips.model_refs import resolve_model_dir
from clips.text_files import safe_json_loads
from llava_bridge.image_paths import find_images, open_image_or_member
from llava_bridge.model.llava_checks import resolve_llava_dir

_READER_THREADS = 4
Batch = list[tuple[str, Image.Image]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Ask a LLaVA the same question about many images; one line ``{"image": …, "text": …}`` each.

    Args:
        model: the LLaVA directory, or ``ORG/NAME`` on the Hub.
        images: image files, images in shards (``shard.tar/000000003.png``), directories, shards and globs.
        prompt: the question about each image.
        output: the file of JSON lines to write; the same command resumes with the missing images. Without it lines are
            printed.
        batch_size: images per batch.
        max_new_tokens: maximum length of an answer.
    """

    model: str = dataclasses.field(metadata=RUN_ONLY)  # identified by a content hash
    images: list[str] = dataclasses.field(metadata=RUN_ONLY)
    prompt: str = "Describe this picture."
    output: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    batch_size: int = dataclasses.field(default=16, metadata=RUN_ONLY)
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.images:
            raise UserError("images: expected images, directories, shards (.tar) or globs")
        if not self.prompt.strip():
            raise UserError("prompt: expected a question or an instruction")


def run_describe(config: DescribeConfig) -> None:
    """Write a line for each image; those that cannot be read are counted and listed at the end.

    Raises:
        UserError: no such images or LLaVA, an output of another prompt or model, or no image can be read.
    """
    names = find_images(config.images)
    resolve_llava_dir(config.model)  # reported before torch is imported
    output = _OutputFile(config) if config.output else None
    described_before = output.described_images() if output else set()
    missing = [name for name in names if name not in described_before]
    if len(missing) < len(names):
        log_info(f"{len(names) - len(missing):,} of {len(names):,} images are described already")
    invalid = InvalidSamples()
    if missing:
        _describe(config, missing, output, invalid)
    for line in invalid.summary():
        log_info(line)
    described = len(names) - invalid.count
    if not described:
        raise UserError(f"images: none of the {len(names):,} images can be read")
    if output:
        log_info(f"{config.output}: {described:,} of {len(names):,} images described")


def _describe(
    config: DescribeConfig, names: Sequence[str], output: _OutputFile | None, invalid: InvalidSamples
) -> None:
    """Write a line for each image; add those that cannot be read to ``invalid``."""
    from llava_bridge.inference.generate import answer, load_llava

    model, processor = load_llava(config.model)
    described = 0
    with (
        output.open_to_append() if output else contextlib.nullcontext(sys.stdout) as lines,
        Progress("describing", len(names), "images") as progress,
    ):
        for batch in _batches(names, config.batch_size, invalid):
            images = [image for _, image in batch]
            prompts = [config.prompt] * len(batch)
            texts = answer(model, processor, images, prompts, max_new_tokens=config.max_new_tokens)
            for (name, _), text in zip(batch, texts, strict=True):
                lines.write(json.dumps({"image": name, "text": text}, ensure_ascii=False) + "\n")
            lines.flush()
            described += len(batch)
            progress.advance(described + invalid.count - progress.done)


class _OutputFile:
    """The file of answers, and the file next to it with the identity of its run."""

    def __init__(self, config: DescribeConfig) -> None:
        self.path = Path(config.output or "")
        self.record = self.path.with_name(f"{self.path.name}.{RUN}")
        model = directory_hash(resolve_model_dir(config.model, "llava"))
        self.run = identity("llava-bridge describe", config, {"model": model})

    def described_images(self) -> set[str]:
        """The names of the images in the file.

        Raises:
            UserError: it is another file, or from another model or prompt.
        """
        if not self.path.exists():
            return set()
        before = read_run(self.record)
        if before is None:
            raise UserError(
                f"output: {self.path} exists and is not from this command, or {self.record.name} next to it is "
                "missing; choose another output"
            )
        reject_other_run(self.path, before, self.run)
        try:
            return {safe_json_loads(line)["image"] for line in self._complete_lines().splitlines()}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"output: {self.path} is no output of this command; choose another") from None

    @contextlib.contextmanager
    def open_to_append(self) -> Iterator[TextIO]:
        """The open file, without the incomplete line of a killed run."""
        with write_errors_as_user_errors(self.path):
            if self.path.exists():
                os.truncate(self.path, len(self._complete_lines()))
            else:
                atomic_write(self.record, run_text(self.run))
            stream = self.path.open("a", encoding="utf-8")
        with stream:
            yield stream

    def _complete_lines(self) -> bytes:
        content = self.path.read_bytes()
        return content[: content.rfind(b"\n") + 1]


def _batches(names: Sequence[str], size: int, invalid: InvalidSamples) -> Iterator[Batch]:
    """Full batches of the readable images; the others are added to ``invalid``."""
    batch: Batch = []
    for index, (name, image) in enumerate(_prefetch(names, 2 * size)):
        if isinstance(image, UserError):
            invalid.add([(index, name, str(image).removeprefix(f"{name}: "))])
            continue
        batch.append((name, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _prefetch(names: Iterable[str], count: int) -> Iterator[tuple[str, Image.Image | UserError]]:
    """Each name with its image or its error; up to ``count`` are decoded ahead."""
    remaining = iter(names)
    with ThreadPoolExecutor(_READER_THREADS) as pool:
        pending = deque((name, pool.submit(_try_to_open, name)) for name in itertools.islice(remaining, count))
        while pending:
            name, image = pending.popleft()
            if (following := next(remaining, None)) is not None:
                pending.append((following, pool.submit(_try_to_open, following)))
            yield name, image.result()


def _try_to_open(name: str) -> Image.Image | UserError:
    try:
        return open_image_or_member(name)
    except UserError as error:
        return error
