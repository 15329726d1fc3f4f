"""What a check of ``clips-bench verify`` is, and what it asks of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clips.errors import UserError


class CheckFailedError(Exception):
    """The harness does not do what it is known to have to do; the message says what was found and expected."""


class CheckSkippedError(Exception):
    """The check could not be made; the message says what it needs."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Run the harness against what is known, and print a table of checks.

    Args:
        include: names of checks; all where empty.
        llava: a LLaVA directory, to run lmms-eval's own command beside the harness.
        data: where its tasks' data are, as in ``clips-bench run``.
        tasks: of lmms-eval, for that check.
        limit: questions of each of them.
        results: a row's directory of results, of a model that open_clip has published.
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
                raise UserError(f"{missing}: expected as well, since its check needs '{one}' and '{other}'")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    Args:
        about: what is checked.
        run: config → what was found; raises `CheckFailedError` or `CheckSkippedError`.
    """

    about: str
    run: Callable[[VerifyConfig], str]


def expect_close(found: float, expected: float, what: str, tolerance: float = 1e-6) -> None:
    """Fail the check unless two numbers agree."""
    if not abs(found - expected) <= tolerance:
        raise CheckFailedError(f"{what}: expected {expected:.6g}, found {found:.6g}")
