"""The rows of a study's table: which model, where its results are, and why it has none in a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXCLUDED_FROM_BENCHMARK = "this benchmark is for other models"
NO_LLAVA = "no LLaVA of this encoder"
NO_TEXT_TOWER = "no text tower"
UNKNOWN_TEXT_TOWER = "text tower not known before the download; name a directory"
EXISTING_LLAVA_NO_ENCODER = "an existing LLaVA; its encoder is not evaluated"


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """The source of one result: the step that writes it, and its file relative to the study's directory."""

    step: str
    result: str


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """One row of the table.

    Args:
        name: unique.
        encoder: its name in the study.
        llm: name of the LLM; None for a row without one.
        llava_variant: name of the LLaVA variant; None if the study defines none.
        seed: of its trainings; None if nothing is trained.
        baseline: the row that it is compared with; None for a baseline itself.
        spec: location of the encoder: a directory in the study, or the source of a pretrained one.
        cells: benchmark → source of its result.
        not_applicable: benchmark → why the row has no result there.
        sweep_settings: dotted field → value that ``sweep`` gave to the encoder.
        sweep_name: name of the entry with ``sweep``; empty without one.
        group: heading above the row; empty without one. A report sets it, see `display.Display`.
        artifacts: ``"encoder"`` and ``"llava"`` → directory of the trained model, relative to the study's.
    """

    name: str
    encoder: str
    llm: str | None = None
    llava_variant: str | None = None
    seed: int | None = None
    baseline: str | None = None
    spec: str = ""
    cells: Mapping[str, CellRecord] = field(default_factory=dict)
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    sweep_settings: Mapping[str, Any] = field(default_factory=dict)
    sweep_name: str = ""
    group: str = ""

    @property
    def model(self) -> str:
        """The name without the seed."""
        return self.name.removesuffix(f" (seed {self.seed})")

    @property
    def but_for_seed(self) -> tuple[str | None, ...]:
        """A key that rows share if they differ in their seed only."""
        return self.encoder, self.llm, self.llava_variant
