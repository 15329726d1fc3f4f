"""Model outputs per item, cached next to the results batch by batch, so that interrupted work resumes.

    <output>/.cache/vectors/<kk>/<key>.safetensors    embeddings of all images, or all texts, of a dataset
    <output>/.cache/vectors/<key>-<layout>/           the batches of an incomplete one
    <output>/.cache/answers/<key>/                    a LLaVA's answers, appended line by line
    <output>/.cache/encoders/<name>-<key>/            the encoder of a training checkpoint

The key is a hash of all inputs (`clips.core.cache`): stale entries are never read, and other benchmarks of the same
data reuse them. The directory can be deleted at any time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import CODE_VERSION
from benchmarks.tasks.distributed import init_distributed, run_on_all, run_on_main
from clips.core.artifact import write_errors_as_user_errors
from clips.core.cache import Cache, tensor_cache
from clips.core.identity import digest

if TYPE_CHECKING:
    import torch

    from clips.parallel.distributed import DistributedContext

CACHE_DIR = ".cache"
INPUT_LIBRARIES = ("pillow", "torchvision", "tokenizers", "ftfy")
"""The libraries between a file and a model's input: versions decode, resize and tokenize differently."""
Batches = Sequence[Sequence[int]]
Compute = Callable[[Batches], "Iterator[torch.Tensor]"]


def cache_key(**parts: Any) -> str:
    """Hash of named plain values and of the evaluation version."""
    return digest({**parts, "version": CODE_VERSION})[:32]


class NoCache:
    """Keeps vectors in memory only."""

    def collect(self, batches: Batches, compute: Compute) -> torch.Tensor:
        """See ``EmbeddingCache.collect``."""
        return _in_order(batches, list(compute(batches)))


@dataclass(frozen=True, kw_only=True)
class EmbeddingCache:
    """Disk cache of the vectors of one dataset's items.

    Args:
        folder: directory of all datasets' vectors.
        key: hash of the vectors' inputs.
        processes: the processes that share the work.
        overwrite: compute vectors again even if they are cached.
    """

    folder: Path
    key: str
    processes: DistributedContext = field(default_factory=init_distributed)
    overwrite: bool = False

    def collect(self, batches: Batches, compute: Compute) -> torch.Tensor:
        """(N, D) vectors; missing ones are computed and cached.

        Args:
            batches: indices of the items of each batch, a partition of the N items.
            compute: yields the (b, D) vectors of each given batch.

        Raises:
            UserError: raised by ``compute``, in all processes.
        """
        parts = tensor_cache(self.folder / f"{self.key}-{digest([len(batch) for batch in batches])[:8]}")
        cached: list[torch.Tensor] = []
        # rank 0 decides for all, because another run may finish meanwhile
        if not run_on_main(self.processes, lambda: self._read_complete(parts, cached)):
            run_on_all(self.processes, lambda: self._compute(batches, compute, parts))
            run_on_main(self.processes, lambda: self._merge(batches, parts))
        vectors = cached[0] if cached else self.complete.get(self.key)
        if vectors is None:
            raise RuntimeError(f"{self.complete.path(self.key)}: removed by another process")
        return vectors

    @property
    def complete(self) -> Cache[torch.Tensor]:
        """Cached vectors of complete datasets."""
        return tensor_cache(self.folder)

    def _read_complete(self, parts: Cache[torch.Tensor], cached: list[torch.Tensor]) -> bool:
        """Whether all vectors are cached; they are appended to ``cached``."""
        if self.overwrite:
            self.complete.path(self.key).unlink(missing_ok=True)
            shutil.rmtree(parts.directory, ignore_errors=True)
        if (found := self.complete.get(self.key)) is not None:
            cached.append(found)
        return bool(cached)

    def _compute(self, batches: Batches, compute: Compute, parts: Cache[torch.Tensor]) -> None:
        mine = range(self.processes.rank, len(batches), self.processes.count)
        missing = [number for number in mine if parts.get(_part(number)) is None]
        for number, found in zip(missing, compute([batches[number] for number in missing]), strict=True):
            parts.put(_part(number), found)

    def _merge(self, batches: Batches, parts: Cache[torch.Tensor]) -> None:
        found = [parts.get(_part(number)) for number in range(len(batches))]
        present = [part for part in found if part is not None]
        if len(present) == len(found):  # otherwise another run was faster and has removed them
            self.complete.put(self.key, _in_order(batches, present))
            shutil.rmtree(parts.directory, ignore_errors=True)


def _part(number: int) -> str:
    return f"{number:06d}"


def _in_order(batches: Batches, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    indices = torch.tensor([index for batch in batches for index in batch])
    vectors = torch.cat(list(parts))
    ordered = torch.empty_like(vectors)
    ordered[indices] = vectors
    return ordered


class AnswerCache:
    """A LLaVA's answers to the questions of one task, appended to a file batch by batch.

    Args:
        folder: directory with one file per process; None for memory only.
        processes: the processes that share the work.
        overwrite: delete cached answers.
    """

    def __init__(
        self, folder: Path | None, processes: DistributedContext | None = None, overwrite: bool = False
    ) -> None:
        self.known: dict[str, str] = {}
        self._file: Path | None = None
        if folder is None:
            return
        processes = processes or init_distributed()
        self._file = folder / f"{processes.rank}.jsonl"
        # rank 0 reads for all: all must agree on the missing answers, and another run may be writing
        self.known = run_on_main(processes, lambda: _read(folder, overwrite=overwrite))

    def add(self, answers: dict[str, str]) -> None:
        """Store the answers of a batch on disk."""
        self.known |= answers
        if self._file is None:
            return
        lines = [json.dumps([question, answer], ensure_ascii=False) + "\n" for question, answer in answers.items()]
        with write_errors_as_user_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(["\n", *lines]))  # the line break ends a truncated line
                stream.flush()
                os.fsync(stream.fileno())


def _read(folder: Path, *, overwrite: bool) -> dict[str, str]:
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    return {key: answer for file in sorted(folder.glob("*.jsonl")) for key, answer in _lines(file)}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_bytes().split(b"\n"):  # not splitlines: answers may contain other line breaks
        try:
            question, answer = json.loads(line.decode("utf-8"))
        except (ValueError, TypeError):  # truncated by a crash: the question is answered again
            continue
        yield str(question), str(answer)
