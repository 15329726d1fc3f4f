"""The average over DataComp's tasks, and those over its groups of tasks, for each model.

Source: aggregate_scores.py of mlfoundations/datacomp: the plain mean of each task's main metric.
"""

from __future__ import annotations

from statistics import fmean

from benchmarks.report.figure import FigureSet
from benchmarks.report.load_results import ReportSource
from benchmarks.report.table import Column, Table
from benchmarks.results.formatting import format_number, join_with_and
from benchmarks.tasks.datacomp import PROTOCOL_ENTRY, TASKS
from benchmarks.tasks.sizes import full_size

GROUPS = ("ImageNet", "ImageNet shifts", "VTAB", "retrieval")
_MIN_TASKS = 2
_NOTE = (
    "Averages have no interval, because the accuracies of the worst group (FMoW, Dollar Street, GeoDE) have none. The "
    "worst group of FMoW often has four images: one of them may change the average of 38 tasks by 0.7 points."
)


def datacomp_section(source: ReportSource, table: Table) -> FigureSet | None:
    """The averages of a table of all columns, best first; None with fewer than two tasks.

    Only tasks on which every model with one of them has a number under the main protocol enter. The average is called
    DataComp's only if these are all 38, each with all of its items.
    """
    columns = _task_columns(source, table)
    rows = [row for row in table.rows if any(table.cell(row, each).value is not None for each in columns.values())]
    scores: dict[str, dict[str, float]] = {row.name: {} for row in rows}
    for task, column in columns.items():
        cells = [table.cell(row, column) for row in rows]
        values = [cell.value for cell in cells if cell.value is not None and cell.group == 0]
        if len(values) == len(rows):
            for row, value in zip(rows, values, strict=True):
                scores[row.name][task] = value
    tasks = list(next(iter(scores.values()), {}))
    if len(tasks) < _MIN_TASKS:
        return None
    partial = [
        TASKS[task].title
        for task in tasks
        if any(full_size(result) is not None for result in source.results(columns[task].benchmark).values())
    ]
    missing = [task.title for key, task in TASKS.items() if key not in tasks]
    reasons = [
        f"{text}: {join_with_and(names)}" for text, names in (("without", missing), ("in part", partial)) if names
    ]
    complete = f"The DataComp average is the mean of the main metrics of {len(TASKS)} tasks, in per cent."
    lacking = (
        f"The mean of {len(tasks)} of DataComp's {len(TASKS)} tasks, not the DataComp average ({'; '.join(reasons)})."
    )
    order = sorted(scores, key=lambda row: -fmean(scores[row].values()))
    return FigureSet(
        lead=lacking if reasons else complete,
        figures=(),
        notes=(_NOTE,),
        headers=("model", f"mean of {len(tasks)} tasks" if reasons else "DataComp average", *GROUPS),
        rows=tuple((row, *_texts(scores[row])) for row in order),
    )


def _task_columns(source: ReportSource, table: Table) -> dict[str, Column]:
    """DataComp's key → the column of the task's main metric."""
    columns: dict[str, Column] = {}
    for column in table.columns:
        for result in source.results(column.benchmark).values():
            task = TASKS.get(str(result.protocol.get(PROTOCOL_ENTRY)))
            if task is not None and column.metric == task.metric:
                columns.setdefault(task.task, column)
    return columns


def _texts(scores: dict[str, float]) -> list[str]:
    """The average over all tasks, then over each group; a dash for an incomplete group."""
    groups = [[scores.get(task) for task, entry in TASKS.items() if entry.group == group] for group in GROUPS]
    known = [[value for value in values if value is not None] for values in groups]
    means = [fmean(part) if len(part) == len(values) else None for part, values in zip(known, groups, strict=True)]
    return ["—" if mean is None else format_number(mean, 1) for mean in (fmean(scores.values()), *means)]
