"""Samples that cannot be used: the first named, all counted over all processes, too many of them stop the stage."""

from __future__ import annotations

from collections.abc import Iterable

from clips.data.invalid_samples import MAX_NAMES, Invalid, InvalidSamples
from clips.errors import UserError
from clips.parallel.processes import gather_objects
from llava_bridge.training.launch import report


class BadSamples:
    """The invalid samples of one stage.

    Args:
        stage: its name.
        allowed: more than so many stop it.
        found: those that an earlier attempt met before its last checkpoint.
    """

    def __init__(self, stage: str, allowed: float, found: InvalidSamples) -> None:
        self.stage = stage
        self.allowed = allowed
        self.found = found
        self._own: list[Invalid] = []  # met by this process since it last told the others

    def add(self, skipped: Iterable[Invalid]) -> None:
        """Take in the samples that this process skipped.

        Raises:
            UserError: too many.
        """
        new = self.found.add(skipped)
        self._own += new
        self._name(new)
        self._judge()

    def gather(self) -> InvalidSamples:
        """Those that any process has met; called in every process.

        Raises:
            UserError: too many.
        """
        for met in gather_objects(self._own):
            self._name(self.found.add(met))
        self._own = []
        self._judge()
        return self.found

    def _name(self, new: list[Invalid]) -> None:
        """Say of each of the first `MAX_NAMES` samples that it was skipped, and then once that more are."""
        before = self.found.count - len(new)
        for _, name, reason in new[: max(0, MAX_NAMES - before)]:
            report(f"{self.stage}: skipped {name}: {reason}")
        if before <= MAX_NAMES < self.found.count:
            report(f"{self.stage}: more than {MAX_NAMES} samples skipped; further ones are counted, not named")

    def _judge(self) -> None:
        if self.found.count > self.allowed:
            _, name, reason = self.found.named[0]
            raise UserError(
                f"{self.stage}: {self.found.count} samples cannot be used, more than max_bad_share allows; "
                f"the first: {name}: {reason}"
            )
