"""Model outputs per item, computed by all processes, and cached next to the results batch by batch, so that interrupted
work resumes.

    <output>/.cache/vectors/<kk>/<key>.safetensors    embeddings of all images, or all texts, of a dataset
    <output>/.cache/vectors/<key>-<layout>/           the batches of an incomplete one
    <output>/.cache/answers/<key>/                    a LLaVA's answers, appended line by line
    <output>/.cache/encoders/<name>-<key>/            the encoder of a training checkpoint

The key is a hash of all inputs (`clips.core.cache`): stale entries are never read, and other benchmarks of the same
data reuse them. The directory can be deleted at any time.

With ``torchrun --nproc-per-node 8 -m benchmarks run --config model.yaml`` (or accelerate) each process computes its
slice of the items. At the end all have all results; only rank 0 writes files and logs. Several nodes need a shared
results directory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.results.protocol import CODE_VERSION
from clips.core import durable
from clips.core.cache import tensor_cache
from clips.core.durable import write_errors_as_user_errors
from clips.core.identity import digest
from clips.errors import UserError

if TYPE_CHECKING:
    import torch

    from clips.parallel.distributed import DistributedContext

CACHE_DIR = ".cache"
INPUT_LIBRARIES = ("pillow", "torchvision", "tokenizers", "ftfy")
"""The libraries between a file and a model's input: versions decode, resize and tokenize differently."""
Batches = Sequence[Sequence[int]]
Compute = Callable[[Batches], "Iterator[torch.Tensor]"]
Found = TypeVar("Found")
_TIMEOUT = 43_200  # seconds: rank 0 may wait for another run or a judge while the others wait for it


def init_distributed() -> DistributedContext:
    """The launcher's process group, or a single process."""
    from clips.parallel.distributed import DistributedContext, start_processes

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return start_processes(timeout=_TIMEOUT)
    return DistributedContext()


def run_on_all(processes: DistributedContext, work: Callable[[], Found]) -> Found:
    """Run this process's slice of the work, and return when all processes have finished.

    Raises:
        UserError: a process raised it; all of them do.
        RuntimeError: another process failed.
    """
    if processes.count == 1:
        return work()
    from clips.parallel.distributed import all_gather_objects

    problem: BaseException | None = None
    try:
        result = work()
    except Exception as error:
        problem = error
    problems = all_gather_objects(None if problem is None else (isinstance(problem, UserError), str(problem)))
    if problem is not None:
        raise problem
    for rank, other in enumerate(problems):
        if other is not None:
            is_user_error, text = other
            raise UserError(text) if is_user_error else RuntimeError(f"process {rank} failed: {text}")
    return result


def run_on_main(processes: DistributedContext, work: Callable[[], Found]) -> Found:
    """Run ``work`` on rank 0 and return its result on all processes. Raises as `from_main`."""
    if processes.count == 1:
        return work()
    from clips.parallel import distributed  # imports torch

    return distributed.from_main(work)


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
    """Disk cache of the vectors of one dataset's items."""

    folder: Path  # directory of all datasets' vectors
    key: str  # hash of the vectors' inputs
    processes: DistributedContext = field(default_factory=init_distributed)  # the processes that share the work
    overwrite: bool = False  # compute vectors again even if they are cached

    def collect(self, batches: Batches, compute: Compute) -> torch.Tensor:
        """(N, D) vectors; missing ones are computed and cached.

        Args:
            batches: indices of the items of each batch, a partition of the N items.
            compute: yields the (b, D) vectors of each given batch.

        Raises:
            UserError: raised by ``compute``, in all processes.
        """
        parts = tensor_cache(self.folder / f"{self.key}-{digest([len(batch) for batch in batches])[:8]}")
        names = [f"{number:06d}" for number in range(len(batches))]
        complete = tensor_cache(self.folder)
        cached: list[torch.Tensor] = []

        def is_complete() -> bool:
            if self.overwrite:
                complete.path(self.key).unlink(missing_ok=True)
                shutil.rmtree(parts.directory, ignore_errors=True)
            if (stored := complete.get(self.key)) is not None:
                cached.append(stored)
            return bool(cached)

        def compute_missing() -> None:
            mine = range(self.processes.rank, len(batches), self.processes.count)
            missing = [number for number in mine if parts.get(names[number]) is None]
            for number, computed in zip(missing, compute([batches[number] for number in missing]), strict=True):
                parts.put(names[number], computed)

        def merge() -> None:
            present = [part for name in names if (part := parts.get(name)) is not None]
            if len(present) == len(names):  # otherwise another run was faster and has removed them
                complete.put(self.key, _in_order(batches, present))
                shutil.rmtree(parts.directory, ignore_errors=True)

        # rank 0 decides for all, because another run may finish meanwhile
        if not run_on_main(self.processes, is_complete):
            run_on_all(self.processes, compute_missing)
            run_on_main(self.processes, merge)
        vectors = cached[0] if cached else complete.get(self.key)
        if vectors is None:
            raise RuntimeError(f"{complete.path(self.key)}: removed by another process")
        return vectors


def _in_order(batches: Batches, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    vectors = torch.cat(list(parts))
    ordered = torch.empty_like(vectors)
    ordered[torch.tensor([index for batch in batches for index in batch])] = vectors
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
        self._unshared: dict[str, str] = {}
        self._file: Path | None = None
        if folder is None:
            return
        processes = processes or init_distributed()
        self._file = folder / f"{processes.rank}.jsonl"
        # rank 0 reads for all: all must agree on the missing answers, and another run may be writing
        self.known = run_on_main(processes, lambda: dict(_read(folder, overwrite=overwrite)))

    def add(self, answers: dict[str, str]) -> None:
        """Store the answers of a batch on disk."""
        self.known |= answers
        self._unshared |= answers
        if self._file is None:
            return
        lines = [json.dumps([question, answer], ensure_ascii=False) + "\n" for question, answer in answers.items()]
        with write_errors_as_user_errors(self._file):
            durable.make_directory(self._file.parent)
            is_new = not self._file.exists()
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(["\n", *lines]))  # the line break ends a truncated line
            durable.sync(self._file)
            if is_new:
                durable.sync(self._file.parent)  # its name

    def share(self, processes: DistributedContext) -> None:
        """Send the answers that this process has added to all others, and receive theirs. A collective call."""
        if processes.count > 1:
            from clips.parallel import distributed

            for answers in distributed.all_gather_objects(self._unshared):  # not all known ones from each process
                self.known |= answers
        self._unshared = {}


def _read(folder: Path, *, overwrite: bool) -> Iterator[tuple[str, str]]:
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_bytes().split(b"\n"):  # not splitlines: answers may contain other line breaks
            try:
                question, answer = json.loads(line.decode("utf-8"))
            except (ValueError, TypeError):  # truncated by a crash: the question is answered again
                continue
            yield str(question), str(answer)
