"""A snapshot in the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.watching.snapshot import Snapshot, Watched
from benchmarks.wording import duration, visible

if TYPE_CHECKING:
    from rich.console import Group

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"running": "bold cyan", "done": "green", "failed": "bold red", "interrupted": "yellow", "stopped": "yellow"}
_CURVE = 16
_LAST = 160


_COLUMNS = ("step", "state", "progress", "loss", "speed", "time", "left", "memory")
_DISPENSABLE = ("memory", "speed", "time", "loss")  # in a narrow terminal, in this order


def view(seen: Snapshot, width: int = 120) -> Group:
    """Steps with state, progress, loss, speed, time left and memory; below, the last log lines of those that run.

    Args:
        seen: what to show.
        width: of the terminal; columns are left out where it is narrow, names of steps never cut.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [dict(zip(_COLUMNS, _texts(step), strict=True)) for step in seen.steps]
    table = Table(title=Text(visible(seen.title)), title_style="bold", title_justify="left", box=None, pad_edge=False)
    heads = _fitting(lines, width)
    for head in heads:
        table.add_column(head, justify="right" if head in {"speed", "time", "left", "memory"} else "left", no_wrap=True)
    for step, texts in zip(seen.steps, lines, strict=True):
        style = _STYLES.get(step.state, "dim")
        table.add_row(*(Text(texts[head], style=style if head in {"step", "state"} else "") for head in heads))
    parts: list[Table | Text] = [table, Text(summary(seen), style="bold")]
    for step in seen.steps:
        if step.last and step.state != "done":
            parts.append(Text(f"{visible(step.name)}: {visible(step.last, _LAST)}", style="dim"))
    return Group(*parts)


def _texts(step: Watched) -> list[str]:
    return [visible(step.name), step.state, progress(step), loss(step), speed(step), *times(step), memory(step)]


def _fitting(lines: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """The columns that there is room for."""
    widths = {head: max([len(head), *(len(line[head]) for line in lines)]) + 2 for head in _COLUMNS}
    heads = list(_COLUMNS)
    for head in _DISPENSABLE:
        if sum(widths[each] for each in heads) > width:
            heads.remove(head)
    return heads


def summary(seen: Snapshot) -> str:
    """``3 of 9 steps done, about 4 min 10 s left``."""
    done = sum(step.state == "done" for step in seen.steps)
    failed = sum(step.state == "failed" for step in seen.steps)
    parts = [f"{done} of {len(seen.steps)} done"] + ([f"{failed} failed"] if failed else [])
    if seen.goes_on and seen.left:
        parts.append(f"about {duration(seen.left)} of work left")
    elif not seen.goes_on and done < len(seen.steps):
        parts.append("nothing is running")
    return ", ".join(parts)


def progress(step: Watched) -> str:
    """``40/150 27 %``; the stage before it."""
    stage = f"{visible(step.training.stage)} " if step.training and step.training.stage and step.state != "done" else ""
    if step.done is None or not step.total:
        return stage + (f"{step.training.step:,}" if step.training and step.state != "done" else "")
    return f"{stage}{step.done:,}/{step.total:,} {100 * step.done // step.total} %"


def loss(step: Watched) -> str:
    """The last loss behind its curve."""
    if step.training is None or not step.training.losses:
        return ""
    return f"{sparkline(step.training.losses, _CURVE)} {step.training.losses[-1]:.3f}"


def speed(step: Watched) -> str:
    """Samples a second."""
    return f"{step.training.rate:,.0f}/s" if step.training and step.training.rate else ""


def times(step: Watched) -> tuple[str, str]:
    """Time so far and time left."""
    left = duration(step.left) if step.left is not None and step.state == "running" else ""
    return duration(step.seconds) if step.seconds else "", left


def memory(step: Watched) -> str:
    """Resident memory."""
    return f"{step.memory / 2**30:.1f} GB" if step.memory else ""


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as blocks of eight heights, means of neighbours where there are more than ``width``."""
    count = min(width, len(values))
    ends = [len(values) * place // count for place in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(ends)]
    finite = [value for value in means if abs(value) != float("inf")]
    low, span = min(finite, default=0.0), (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0
    return "".join(_BLOCKS[min(7, max(0, int(8 * (min(value, low + span) - low) / span)))] for value in means)
