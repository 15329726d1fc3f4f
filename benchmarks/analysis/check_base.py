"""The interface of the checks of ``clips-bench verify``, and the command's config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clips.errors import UserError


class CheckFailedError(Exception):
    """The harness misbehaves; the message states the found and the expected value."""


class CheckSkippedError(Exception):
    """The check could not run; the message states its requirement."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check the harness against known values, and print a table of checks.

    Args:
        include: names of checks; all if empty.
        llava: a LLaVA directory, to run lmms-eval's own command next to the harness.
        data: the data of its tasks, as in ``clips-bench run``.
        tasks: lmms-eval's tasks for that check.
        limit: number of questions per task.
        results: a model's directory of results, for a model with results published by open_clip.
        reference_model: that model, ``ViT-B-32/openai``.
    """

    include: tuple[str, ...] = ()
    llava: str | None = None
    data: str | None = None
    tasks: tuple[str, ...] = ("pope",)
    limit: int = 32
    results: str | None = None
    reference_model: str | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"limit: expected at least 1, got {self.limit}")
        for one, other in (("llava", "data"), ("results", "reference_model")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                missing = one if getattr(self, one) is None else other
                raise UserError(f"{missing}: required, since the check needs both '{one}' and '{other}'")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    Args:
        about: the checked property.
        run: config → finding; raises `CheckFailedError` or `CheckSkippedError`.
    """

    about: str
    run: Callable[[VerifyConfig], str]


def expect_close(found: float, expected: float, what: str, tolerance: float = 1e-6) -> None:
    """Fail the check unless two numbers are equal."""
    if not abs(found - expected) <= tolerance:
        raise CheckFailedError(f"{what}: expected {expected:.6g}, found {found:.6g}")
