"""The progress of a study, read from its files, and its display in a terminal."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.results.formatting import format_duration
from benchmarks.study.locks import LOCK, is_locked
from benchmarks.study.run import PLAN
from benchmarks.study.state import Step, StepRecord, log_tail, state_of
from benchmarks.study.step_kinds import STEP_KINDS
from benchmarks.study.steps import StudyPlan
from benchmarks.study.trash import stated_seconds
from clips.safe_text import strip_control_chars

if TYPE_CHECKING:
    from rich.console import Console, Group

# ``step 40/150``, ``align: step 40/150`` or ``: 1,000 of 9,000`` in a log
_COUNTED = re.compile(r"(?:^(\w+): )?(?:step |: )([\d,]+)(?:/| of )([\d,]+)")
STATE_STYLES = {"done": "green", "failed": "red", "cannot run": "red", "running": "cyan", "waiting": "dim"}
_ENDED = {"done", "failed", "cannot run"}
_OPTIONAL_COLUMNS = ("memory", "time", "progress")  # omitted in a narrow terminal, in this order


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """The progress of one step."""

    name: str
    state: str  # as in `state.state_of`; with a runner at work also ``waiting`` and ``cannot run``
    record: StepRecord | None = None
    seconds: float = 0.0  # elapsed
    left: float | None = None  # estimated remaining seconds; None if unknown
    progress: str = ""  # such as ``40/150 27 %``, from its log; empty if unknown
    last: str = ""  # the last line of its log while it runs or after a failure, or what is damaged


def read_statuses(plan: StudyPlan, *, running: bool | None = None) -> list[StepStatus]:
    """The current status of every step; ``running``, whether a runner is at work, is checked if not given."""
    output = plan.study.directory
    running = is_locked(output / LOCK) if running is None else running
    try:
        began = float(json.loads((output / PLAN).read_text(encoding="utf-8"))["began"])  # the last `study run`
    except (OSError, ValueError, KeyError):
        began = 0.0
    states = {step.name: state_of(step) for step in plan.steps}
    works = {step.name: _work_of(step) for step in plan.steps}
    statuses: dict[str, StepStatus] = {}
    taken, projected = dict[str, float](), dict[str, float]()  # step → its time, or what its progress so far makes it
    for step in plan.steps:
        record, state = states[step.name].record, states[step.name].name
        if running and state not in {"done", "running"} and not (record and record.started >= began):
            parents = {statuses[parent].state for parent in step.parents}
            state = "cannot run" if parents & {"failed", "cannot run"} else "waiting"
        has_begun = state not in {"new", "waiting", "cannot run"}
        seconds = record.seconds if record and has_begun else 0.0
        if record and record.status == "done" and "config" not in step.key.changes(record):
            taken[step.name] = max(record.seconds, sum(map(stated_seconds, step.outputs)))  # not of its last job only
        progress = last = ""
        if record is not None and state == "running":
            lines = log_tail(step.directory)
            last = lines[-1] if lines else ""
            seconds += time.time() - record.started
            if counts := next(filter(None, map(_COUNTED.search, reversed(lines))), None):
                done, total = (int(text.replace(",", "")) for text in counts.groups()[1:])
                progress = f"{done:,}/{total:,} {100 * done // max(total, 1)} %"
                ratio = works[step.name].ratio_done(counts[1], done / max(total, 1))
                if ratio > 0.1:  # at first its start-up dominates
                    projected[step.name] = seconds / ratio
        elif has_begun and state != "done":
            last = states[step.name].damage or (record.log_tail[-1] if record and record.log_tail else "")
        statuses[step.name] = StepStatus(
            name=step.name, state=state, record=record, seconds=seconds, progress=progress, last=last
        )
    rates: dict[tuple[str, ...], float] = {}  # kind of work → seconds for size 1
    for times in (projected, taken):  # the latter include the end
        for kind in {works[name].kind for name in times}:
            of_kind = [name for name in times if works[name].kind == kind]
            rates[kind] = sum(times[name] for name in of_kind) / sum(works[name].size for name in of_kind)
    for name, status in statuses.items():
        work = works[name]
        whole = taken.get(name, work.size * rates[work.kind] if work.kind in rates else None)
        if name in projected:  # a step may take longer than others of its kind, as with a larger encoder
            whole = max(whole or 0.0, projected[name])
        passed = status.seconds if status.state == "running" else 0.0
        statuses[name] = replace(status, left=None if whole is None else max(whole - passed, 0.0))
    return list(statuses.values())


class _Work(NamedTuple):
    """What a step has to do: steps of one kind take a time in proportion to their sizes."""

    kind: tuple[str, ...]
    sizes: Mapping[str | None, float]  # stage, as in the log's lines (None: they name none) → its size, above 0

    @property
    def size(self) -> float:
        return sum(self.sizes.values())

    def ratio_done(self, stage: str | None, ratio: float) -> float:
        """How much of it is done when ``ratio`` of a stage is; 0 if that is unknown."""
        if stage not in self.sizes:
            return 0.0
        before = [*self.sizes.values()][: [*self.sizes].index(stage)]
        return (sum(before) + ratio * self.sizes[stage]) / self.size


def _work_of(step: Step) -> _Work:
    """Trainings of different numbers of steps are of one kind, and evaluations on the same benchmarks."""
    kind = STEP_KINDS[step.kind]
    cost = kind.cost(step.config) or 1.0  # a size is above 0
    parts: dict[str | None, Any] = {None: step.config}
    if kind.stages:
        chosen = step.config.get("stages")
        names = [name for name in kind.stages if not isinstance(chosen, list) or name in chosen]
        parts = {name: step.config.get(name) for name in names}
    elif "stages" in step.config or kind.evaluates:
        parts = {"": {}}  # the log counts within one of its stages, or of a benchmark's phases
    known = [part if isinstance(part, Mapping) else {} for part in parts.values()]
    factors = [(part.get("max_steps"), part.get("global_batch_size", 128)) for part in known]
    if factors and all(isinstance(each, int) and each > 0 for each in itertools.chain(*factors)):
        return _Work(step.command, {name: cost * math.prod(each) for name, each in zip(parts, factors, strict=True)})
    lengths = [f"{name} {part.get(name)}" for part in known for name in ("max_steps", "max_samples", "num_epochs")]
    results = [path.name for path in step.outputs if kind.evaluates]
    return _Work((*step.command, *lengths, *results), {None if None in parts else "": cost})


def time_left(steps: Sequence[Step], jobs: int, statuses: Sequence[StepStatus]) -> str:
    """Estimated time until all running and waiting steps are done: "about 3 min 20 s left".

    The longest chain of steps, or all steps' time divided by ``jobs``, whichever is longer. Steps of a kind that has
    not run yet are counted instead: "about 2 min 05 s left for 5 steps, 6 more not timed yet". Empty if none is left.
    """
    left = {status.name: status.left for status in statuses if status.state in {"waiting", "running"}}
    ends: dict[str, float] = {}
    for step in steps:
        ends[step.name] = (left.get(step.name) or 0.0) + max((ends[each] for each in step.parents), default=0.0)
    known = [each for each in left.values() if each is not None]
    unknown, seconds = len(left) - len(known), max([sum(known) / jobs, *ends.values()])
    if not seconds:
        return f"{unknown} step{'s' * (unknown > 1)} not timed yet" if unknown else ""
    part = f" for {len(known)} step{'s' * (len(known) > 1)}, {unknown} more not timed yet" if unknown else ""
    return f"about {format_duration(max(seconds, 1.0))} left{part}"


def progress_view(plan: StudyPlan, statuses: Sequence[StepStatus], width: int) -> Group:
    """A table of the steps, a summary, and the last log lines of running and failed steps.

    A terminal of a small ``width`` gets fewer columns, but whole names of steps.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = []
    for status in statuses:
        peak = status.record.peak_memory_mb if status.record else None
        rows.append(
            {
                "step": status.name,
                "state": status.state,
                "progress": status.progress,
                "time": format_duration(status.seconds) if status.seconds else "",
                "left": format_duration(status.left) if status.left and status.state == "running" else "",
                "memory": f"{peak / 1024:.1f} GB" if peak else "",
            }
        )
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) + 2 for name in rows[0]} if rows else {}
    columns = list(widths)
    for name in _OPTIONAL_COLUMNS:
        if sum(widths[column] for column in columns) > width:
            columns.remove(name)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in {"time", "left", "memory"} else "left", no_wrap=True)
    for row, status in zip(rows, statuses, strict=True):
        style = STATE_STYLES.get(status.state, "yellow")
        table.add_row(*(Text(row[name], style=style if name in {"step", "state"} else "") for name in columns))
    states = [status.state for status in statuses]
    summary = [f"{states.count('done')} of {len(states)} done"]
    summary += [f"{states.count('failed')} failed"] if "failed" in states else []
    if {"waiting", "running"} & set(states):
        left = time_left(plan.steps, plan.study.jobs, statuses)
        summary += [left] if left else []
    elif len(states) > states.count("done"):
        summary.append("nothing is running" if {*states} != {"new"} else f"no step was run in {plan.study.directory}")
    lasts = [
        Text(f"{status.name}: {strip_control_chars(status.last, 240)}", style="dim")
        for status in statuses
        if status.last and status.state != "done"
    ]
    return Group(table, Text(", ".join(summary), style="bold"), *lasts)


def follow_progress(plan: StudyPlan, console: Console, wait: Callable[[], None]) -> None:
    """Redraw the progress of a study until no step runs; ``wait`` is called between two updates."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = read_statuses(plan)
            live.update(progress_view(plan, statuses, console.width), refresh=True)
            if not any(status.state in {"waiting", "running"} for status in statuses):
                return
            wait()


@contextlib.contextmanager
def progress_display(plan: StudyPlan, console: Console) -> Iterator[Callable[[], None]]:
    """The runner's display: in a terminal a table that is redrawn, elsewhere a line for each change.

    Its value is called often, and updates the display at most twice a second.
    """
    from rich.live import Live

    statuses, shown = read_statuses(plan, running=True), 0.0
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def show() -> None:
        nonlocal statuses, shown
        if time.monotonic() - shown < 0.5:
            return
        shown = time.monotonic()
        before, statuses = statuses, read_statuses(plan, running=True)
        if live:
            live.update(progress_view(plan, statuses, console.width), refresh=True)
        else:
            for line in _changes(before, statuses, time_left(plan.steps, plan.study.jobs, statuses)):
                console.print(line, markup=False, soft_wrap=True)

    with live or contextlib.nullcontext():
        try:
            yield show
        finally:
            shown = 0.0
            show()


def _changes(before: Sequence[StepStatus], now: Sequence[StepStatus], left: str) -> list[str]:
    """Lines such as ``[3/15] encoder-clips-s0: done after 12 s`` for changed states, with the log of failures."""
    states = {status.name: status.state for status in before}
    ended = sum(state in _ENDED for state in states.values())
    lines = []
    for status in now:
        if status.state == states.get(status.name) or status.state == "waiting":
            continue
        ended += (status.state in _ENDED) - (states.get(status.name) in _ENDED)
        line = f"[{ended}/{len(now)}] {status.name}: {status.state}"
        if status.record is not None and status.state == "running":
            line += f" ({status.record.command})"
        elif status.record is not None and status.state != "cannot run":
            line += f" after {format_duration(status.seconds)}{f'; {left}' if left else ''}"
        lines.append(line)
        if status.record is not None and status.state == "failed":
            lines.append(f"{status.name} failed: {status.record.command}")
            lines += [f"    {strip_control_chars(text)}" for text in status.record.log_tail]
    return lines
