"""Model outputs per item, cached next to the results batch by batch, so that interrupted work resumes.

    <output>/.cache/vectors/<kk>/<key>.safetensors    embeddings of all images, or all texts, of a dataset
    <output>/.cache/vectors/<key>-<layout>/           the batches of one that is being computed
    <output>/.cache/answers/<key>/                    a LLaVA's answers, appended line by line
    <output>/.cache/encoders/<name>-<key>/            the encoder of a checkpoint that was evaluated during training

The key is a hash of all inputs (`clips.core.cache`): stale entries are never read, and other benchmarks and settings on
the same data reuse the entries. The directory can be deleted at any time.
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
Batches = Sequence[Sequence[int]]
Compute = Callable[[Batches], "Iterator[torch.Tensor]"]


def cache_key(**parts: Any) -> str:
    """Hash of named plain values and of the evaluation version: another version does not find these entries."""
    return digest({**parts, "version": CODE_VERSION})[:32]


class NoCache:
    """Vectors that live in memory only."""

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
        again: compute them even if they are cached.
    """

    folder: Path
    key: str
    processes: DistributedContext = field(default_factory=init_distributed)
    again: bool = False

    def collect(self, batches: Batches, compute: Compute) -> torch.Tensor:
        """(N, D) vectors; missing ones are computed and cached.

        Args:
            batches: indices of the items of each batch; each of the N items is in one.
            compute: yields the (b, D) vectors of each given batch.

        Raises:
            UserError: raised by ``compute``, in all processes.
        """
        parts = tensor_cache(self.folder / f"{self.key}-{digest([len(batch) for batch in batches])[:8]}")
        there: list[torch.Tensor] = []
        if not run_on_main(self.processes, lambda: self._is_there(parts, there)):
            run_on_all(self.processes, lambda: self._compute(batches, compute, parts))
            run_on_main(self.processes, lambda: self._merge(batches, parts))
        vectors = there[0] if there else self.whole.get(self.key)
        if vectors is None:
            raise RuntimeError(f"{self.whole.path(self.key)}: was there and has vanished")
        return vectors

    @property
    def whole(self) -> Cache[torch.Tensor]:
        """Cached vectors of complete datasets."""
        return tensor_cache(self.folder)

    def _is_there(self, parts: Cache[torch.Tensor], there: list[torch.Tensor]) -> bool:
        """Whether everything is cached; the cached vectors are put into ``there``.

        With several processes one must decide, since another run may finish meanwhile.
        """
        if self.again:
            self.whole.path(self.key).unlink(missing_ok=True)
            shutil.rmtree(parts.directory, ignore_errors=True)
        if (found := self.whole.get(self.key)) is not None:
            there.append(found)
        return bool(there)

    def _compute(self, batches: Batches, compute: Compute, parts: Cache[torch.Tensor]) -> None:
        mine = range(self.processes.rank, len(batches), self.processes.count)
        missing = [number for number in mine if parts.get(_part(number)) is None]
        for number, found in zip(missing, compute([batches[number] for number in missing]), strict=True):
            parts.put(_part(number), found)

    def _merge(self, batches: Batches, parts: Cache[torch.Tensor]) -> None:
        found = [parts.get(_part(number)) for number in range(len(batches))]
        present = [part for part in found if part is not None]
        if len(present) == len(found):  # otherwise another run was faster and has removed them
            self.whole.put(self.key, _in_order(batches, present))
            shutil.rmtree(parts.directory, ignore_errors=True)


def _part(number: int) -> str:
    return f"{number:06d}"


def _in_order(batches: Batches, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    places = torch.tensor([index for batch in batches for index in batch])
    vectors = torch.cat(list(parts))
    ordered = torch.empty_like(vectors)
    ordered[places] = vectors
    return ordered


class AnswerCache:
    """A LLaVA's answers to the questions of one task, appended to a file when generated.

    Args:
        folder: directory with one file per process; None keeps the answers in memory only.
        processes: the processes that share the work.
        again: ignore cached answers.
    """

    def __init__(self, folder: Path | None, processes: DistributedContext | None = None, again: bool = False) -> None:
        self.known: dict[str, str] = {}
        self._file: Path | None = None
        if folder is None:
            return
        processes = processes or init_distributed()
        self._file = folder / f"{processes.rank}.jsonl"
        # One process reads for all: all must agree on the missing answers, and another run may be writing.
        self.known = run_on_main(processes, lambda: _read(folder, again=again))

    def add(self, answers: dict[str, str]) -> None:
        """Keep the answers of a batch; they are on disk when this returns."""
        self.known |= answers
        if self._file is None:
            return
        lines = [json.dumps([question, answer], ensure_ascii=False) + "\n" for question, answer in answers.items()]
        with write_errors_as_user_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(["\n", *lines]))  # the line break ends a line that a crash truncated
                stream.flush()
                os.fsync(stream.fileno())


def _read(folder: Path, *, again: bool) -> dict[str, str]:
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    return {key: answer for file in sorted(folder.glob("*.jsonl")) for key, answer in _lines(file)}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_bytes().split(b"\n"):  # answers may hold other line breaks
        try:
            question, answer = json.loads(line.decode("utf-8"))
        except (ValueError, TypeError):  # truncated by a crash, or damaged: the question is answered again
            continue
        yield str(question), str(answer)
