"""What a model makes of items, cached beside the results batch by batch, so that interrupted work resumes.

    <output>/.cache/vectors/<kk>/<key>.safetensors    embeddings of all pictures, or all texts, of a data set
    <output>/.cache/vectors/<key>-<layout>/           the batches of one that is being computed
    <output>/.cache/answers/<key>/                    a LLaVA's answers, a line each, as they come
    <output>/.cache/encoders/<name>-<key>/            the encoder of a checkpoint that was evaluated during training

The key is a hash of all that they depend on (`clips.core.cache`): nothing stale is ever found, and other benchmarks and
settings on the same data find what is there. The directory can be deleted at any time.
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
    """Hash of named plain values and of the version of evaluations: what another version computed is not found."""
    return digest({**parts, "version": CODE_VERSION})[:32]


class NoCache:
    """Vectors that live in memory only."""

    def collect(self, batches: Batches, compute: Compute) -> torch.Tensor:
        """See ``EmbeddingCache.collect``."""
        return _in_order(batches, list(compute(batches)))


@dataclass(frozen=True, kw_only=True)
class EmbeddingCache:
    """Vectors of the items of one data set, kept on disk.

    Args:
        folder: holds those of all data sets.
        key: of what the vectors depend on.
        processes: who shares the work.
        again: compute them although they are there.
    """

    folder: Path
    key: str
    processes: DistributedContext = field(default_factory=init_distributed)
    again: bool = False

    def collect(self, batches: Batches, compute: Compute) -> torch.Tensor:
        """(N, D) vectors, those that are missing computed and kept.

        Args:
            batches: which items are computed together; each of the N items is in one.
            compute: gives the (b, D) vectors of each of some batches, one after the other.

        Raises:
            UserError: what ``compute`` raises, in all processes.
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
        """Vectors of whole data sets."""
        return tensor_cache(self.folder)

    def _is_there(self, parts: Cache[torch.Tensor], there: list[torch.Tensor]) -> bool:
        """Whether nothing is to be computed; what is there is put into ``there``.

        Of several processes one must say it, for another run may just finish.
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
        if len(present) == len(found):  # otherwise another run was faster and has cleared them away
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
    """A LLaVA's answers to the questions of one task, appended to a file as they come.

    Args:
        folder: holds a file for each process; None keeps the answers in memory only.
        processes: who shares the work.
        again: forget what is there.
    """

    def __init__(self, folder: Path | None, processes: DistributedContext | None = None, again: bool = False) -> None:
        self.known: dict[str, str] = {}
        self._file: Path | None = None
        if folder is None:
            return
        processes = processes or init_distributed()
        self._file = folder / f"{processes.rank}.jsonl"
        # One reads for all: each must know the same, for what is missing is shared by it, and another run may write.
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
                stream.write("".join(["\n", *lines]))  # the break ends a line that a crash cut short
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
        except (ValueError, TypeError):  # cut short by a crash, or damaged: the question is asked again
            continue
        yield str(question), str(answer)
