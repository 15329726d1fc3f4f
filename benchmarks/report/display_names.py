"""Show the models and benchmarks of a report under their display names, and in groups.

All text of a report comes from its source, so the display names replace the names there, once; different names stay
different, so they identify models and benchmarks as before. Names of files and columns for programs use
`ReportSource.ids`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.report.load_results import ReportSource
from benchmarks.study.display import Display
from benchmarks.study.rows import RowRecord


def merge_display(source: ReportSource, display: Display) -> Display:
    """The study's names and groups, overridden by ``display``.

    Raises:
        UserError: ``display`` has an unknown name, or two models or benchmarks would have one name.
    """
    display.check(source.rows, source.benchmarks)
    if source.study is None:
        return display
    of_study = source.study.display
    merged = Display(
        models={**of_study.models, **display.models},
        benchmarks={**of_study.benchmarks, **display.benchmarks},
        groups=display.groups or of_study.groups,
    )
    merged.row_names(source.rows)
    merged.benchmark_names(source.benchmarks)
    return merged


def group_rows(rows: Sequence[RowRecord], display: Display) -> tuple[RowRecord, ...]:
    """The rows with their headings, those of no group first, then group by group."""
    order = ["", *display.groups]
    headed = [dataclasses.replace(row, group=display.heading(row)) for row in rows]
    return tuple(sorted(headed, key=lambda row: order.index(row.group)))


def show_names(source: ReportSource, display: Display) -> ReportSource:
    """The source with display names in place of names, and in groups."""
    models, benchmarks = display.row_names(source.rows), display.benchmark_names(source.benchmarks)
    rows = [
        dataclasses.replace(
            row, name=models[row.name], baseline=row.baseline and models.get(row.baseline, row.baseline)
        )
        for row in group_rows(source.rows, display)
    ]
    ids = {shown: name for name, shown in models.items()}
    ids |= {row.model: dataclasses.replace(row, name=ids[row.name]).model for row in rows}
    return dataclasses.replace(
        source,
        rows=tuple(rows),
        benchmarks=tuple(benchmarks[name] for name in source.benchmarks),
        outcomes={
            (models[row], benchmarks[benchmark]): outcome
            for (row, benchmark), outcome in source.outcomes.items()
            if row in models
        },
        model_ids=ids,
        benchmark_ids={shown: name for name, shown in benchmarks.items()},
    )
