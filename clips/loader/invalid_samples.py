"""Invalid samples: an exact count, the names of the first, and an error if there are too many.

The count must survive a resume and several epochs, so each sample has one bit: a dataset of 100 million samples takes
12.5 MB of memory, and much less in a checkpoint, where the bits are compressed.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clips.errors import UserError

MAX_NAMES, MAX_REASONS = 100, 50  # samples that are named; distinct reasons
OTHER_REASONS = "other reasons"

Invalid = tuple[int, str, str]
"""A sample's index in the dataset, its name, and the reason."""


@dataclasses.dataclass(kw_only=True)
class InvalidSamples:
    """A set of invalid samples. Its memory is bounded by the size of the dataset, not by names and reasons."""

    count: int = 0
    by_reason: dict[str, int] = dataclasses.field(default_factory=dict)  # beyond `MAX_REASONS` as `OTHER_REASONS`
    # the `MAX_NAMES` samples that are first in the dataset, regardless of process and time
    named: list[Invalid] = dataclasses.field(default_factory=list)
    bits: bytearray = dataclasses.field(default_factory=bytearray)  # one per sample, up to the last invalid one
    # samples that other processes do not know yet, see `gather`; not stored
    unshared: list[Invalid] = dataclasses.field(default_factory=list, compare=False, repr=False)

    def add(self, entries: Iterable[Invalid]) -> list[Invalid]:
        """Add invalid samples of this process; returns the new ones."""
        new = self._include(entries)
        self.unshared += new
        return new

    def gather(self) -> list[Invalid]:
        """Add the invalid samples of the other processes; returns the new ones. All processes call it together."""
        from clips.parallel.distributed import all_gather_objects  # imports torch

        new = [entry for samples in all_gather_objects(self.unshared) for entry in self._include(samples)]
        self.unshared = []
        return new

    def _include(self, entries: Iterable[Invalid]) -> list[Invalid]:
        new = [entry for entry in entries if self._mark(entry[0])]
        for _, _, reason in new:
            known = reason in self.by_reason or len(self.by_reason) < MAX_REASONS
            group = reason if known else OTHER_REASONS
            self.by_reason[group] = self.by_reason.get(group, 0) + 1
        self.count += len(new)
        if new:
            self.named = sorted([*self.named, *new])[:MAX_NAMES]
        return new

    def _mark(self, index: int) -> bool:
        byte, bit = index >> 3, 1 << (index & 7)
        if byte >= len(self.bits):
            self.bits.extend(bytes(byte + 1 - len(self.bits)))
        was_set = self.bits[byte] & bit
        self.bits[byte] |= bit
        return not was_set

    def check(self, where: str, setting: str, max_ratio: float, samples: int) -> None:
        """Raise UserError if more than ``max_ratio`` of ``samples``, valid or not, are invalid.

        The message names ``where``, the source or the stage, and the ``setting`` that limits the ratio.
        """
        if self.count > max_ratio * samples:
            _, name, reason = self.named[0]
            first = name if len(self.by_reason) == 1 else f"{name}: {reason}"
            raise UserError(
                f"{where}: {self.count} of {samples} samples are invalid, more than {setting} ({max_ratio:g}) allows: "
                f"{self.reasons()}; the first: {first}"
            )

    def reasons(self) -> str:
        """The reasons with their counts, the most frequent first."""
        return ", ".join(f"{count:,} × {reason}" for reason, count in Counter(self.by_reason).most_common())

    def summary(self, limit: int = 5) -> Iterator[str]:
        """A line for each reason, the most frequent first: the number of samples, and ``limit`` of their names."""
        for reason, count in Counter(self.by_reason).most_common():
            names = [name for _, name, why in self.named if why == reason][:limit]
            more = ["…"] if count > len(names) else []
            yield f"invalid     {count:,} × {reason} ({', '.join([*names, *more])})"

    def lines(self, new: list[Invalid]) -> Iterator[str]:
        """A line for each of the ``new`` samples just added, up to `MAX_NAMES` in total; then one final line."""
        before = self.count - len(new)
        for _, name, reason in new[: max(0, MAX_NAMES - before)]:
            yield f"skipped {name}: {reason}"
        if before <= MAX_NAMES < self.count:
            yield f"more than {MAX_NAMES} samples skipped; further ones are counted, not named"

    def report(self) -> dict[str, Any]:
        """For people: ``count``, ``by_reason``, ``samples`` (name → reason) and the number of ``more``, unnamed ones.

        Names that two sources share are followed by the sample's index in the dataset.
        """
        counts = Counter(name for _, name, _ in self.named)
        samples = {
            name if counts[name] == 1 else f"{name} (sample {index})": reason for index, name, reason in self.named
        }
        more = self.count - len(samples)
        return {"count": self.count, "by_reason": dict(self.by_reason), "samples": samples, "more": more}

    def stored(self) -> dict[str, Any]:
        """As plain data for a checkpoint; `restored` reads it."""
        bits = base64.b64encode(zlib.compress(self.bits, 1)).decode("ascii")
        return {"count": self.count, "by_reason": self.by_reason, "named": self.named, "bits": bits}


def restored(stored: Mapping[str, Any]) -> InvalidSamples:
    """Read `InvalidSamples.stored`. Raises ValueError, TypeError or KeyError for anything else."""
    try:
        bits = bytearray(zlib.decompress(base64.b64decode(stored["bits"], validate=True)))
    except zlib.error as error:
        raise ValueError(f"bits: {error}") from None
    return InvalidSamples(
        count=int(stored["count"]),
        by_reason=dict(stored["by_reason"]),
        named=[(int(index), str(name), str(reason)) for index, name, reason in stored["named"]],
        bits=bits,
    )
