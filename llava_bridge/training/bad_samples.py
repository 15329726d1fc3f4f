"""Samples that cannot be used: named once each, counted over all processes, too many of them stop the stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from clips.errors import UserError
from clips.parallel.processes import gather_objects
from llava_bridge.training.launch import report


class BadSamples:
    """The unusable samples of one stage, name → reason.

    Args:
        stage: its name.
        allowed: more than so many stop it.
        found: those that an earlier attempt met before its last checkpoint.
    """

    def __init__(self, stage: str, allowed: float, found: Mapping[str, str]) -> None:
        self.stage = stage
        self.allowed = allowed
        self.found = dict(found)

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Note what was skipped, and say it once.

        Raises:
            UserError: too many.
        """
        for name, reason in skipped:
            if name not in self.found:
                report(f"{self.stage}: skipped {name}: {reason}")
            self.found[name] = reason
        if len(self.found) > self.allowed:
            name, reason = next(iter(self.found.items()))
            raise UserError(
                f"{self.stage}: {len(self.found)} samples cannot be used, more than max_bad_share allows; "
                f"the first: {name}: {reason}"
            )

    def gather(self) -> dict[str, str]:
        """Those that any process has met; called in every process.

        Raises:
            UserError: too many.
        """
        for found in gather_objects(self.found):
            self.add(found.items())
        return self.found
