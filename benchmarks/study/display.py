"""How a report's reader sees models and benchmarks: display names, and groups of models under headings.

Files, columns of data, tests and commands keep the names of the study or of the results.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.study.rows import RowRecord
from clips.errors import UserError, unknown_name_error
from clips.safe_text import strip_control_chars


@dataclass(frozen=True, kw_only=True)
class Display:
    """Display names and groups of a report; any text, which every format escapes.

    Args:
        models: model → its display name; a model is a row of the table without its seed, or an encoder, for all of
            its LLaVAs.
        benchmarks: benchmark → its display name.
        groups: heading → the models below it: names as in ``models``, names of entries with ``sweep``, or patterns.
            Models of no group come first.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("models", "benchmarks"):
            for name, text in getattr(self, what).items():
                _check_text(text, f"display.{what}.{name}")
        for heading in self.groups:
            _check_text(heading, "display.groups")

    def check(self, rows: Sequence[RowRecord], benchmarks: Collection[str]) -> None:
        """Reject unknown and ambiguous names.

        Raises:
            UserError: an unknown model or benchmark, a pattern without a match, a model in two groups, or two models or
                benchmarks with one display name.
        """
        models = list(dict.fromkeys(name for row in rows for name in (row.model, row.encoder)))
        for what, known in (("models", models), ("benchmarks", benchmarks)):
            for name in getattr(self, what):
                if name not in known:
                    raise unknown_name_error(name, known, f"name in 'display.{what}'")
        for pattern in (pattern for patterns in self.groups.values() for pattern in patterns):
            if not any(_matches(pattern, row) for row in rows):
                raise unknown_name_error(pattern, models, "name in 'display.groups'")
        for row in rows:
            self.heading(row)
        self.row_names(rows)
        self.benchmark_names(benchmarks)

    def row_names(self, rows: Iterable[RowRecord]) -> dict[str, str]:
        """Row → its display name, with the seed if the row has one.

        Raises:
            UserError: two rows with one name.
        """
        names = {}
        for row in rows:
            of_encoder = self.models.get(row.encoder, row.encoder) + row.model.removeprefix(row.encoder)
            names[row.name] = self.models.get(row.model, of_encoder) + row.name.removeprefix(row.model)
        return _without_duplicates(names, "models")

    def benchmark_names(self, benchmarks: Iterable[str]) -> dict[str, str]:
        """Benchmark → its display name.

        Raises:
            UserError: two benchmarks with one name.
        """
        return _without_duplicates({name: self.benchmarks.get(name, name) for name in benchmarks}, "benchmarks")

    def heading(self, row: RowRecord) -> str:
        """The heading above a row; empty for a row of no group.

        Raises:
            UserError: the row is in two groups.
        """
        found = [heading for heading, names in self.groups.items() if any(_matches(name, row) for name in names)]
        if len(found) > 1:
            raise UserError(f"display.groups: '{row.model}' is in '{found[0]}' and in '{found[1]}'; expected one group")
        return found[0] if found else ""


def _check_text(text: str, where: str) -> None:
    if not strip_control_chars(text).strip():
        raise UserError(f"{where}: expected a text, got {text!r}")


def _matches(pattern: str, row: RowRecord) -> bool:
    names = (row.model, row.encoder, row.sweep_name)
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names if name)


def _without_duplicates(names: dict[str, str], what: str) -> dict[str, str]:
    first: dict[str, str] = {}
    for name, text in names.items():
        shown = " ".join(strip_control_chars(text).split())
        if shown in first:
            raise UserError(f"display.{what}: '{first[shown]}' and '{name}' have the same display name '{shown}'")
        first[shown] = name
    return {name: shown for shown, name in first.items()}
