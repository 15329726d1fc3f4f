"""``clips-bench compare A B``: the report of two models, or of two studies, whose models of equal name are compared."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.exchange.item_table import SUFFIXES
from benchmarks.report.latex import render_latex
from benchmarks.report.load_results import MissingValue, ReportSource, read_source
from benchmarks.report.measures import render_csv
from benchmarks.report.page import render_page
from benchmarks.report.report import Report, Selection, build_report
from benchmarks.report.table import Cell
from benchmarks.report.text_table import print_frame, print_report, render_markdown
from benchmarks.report.training_settings import diff_training, training_of_result
from benchmarks.results.formatting import commit_text, format_number, join_or_count
from benchmarks.results.protocol import (
    blind_differences,
    describe_differences,
    name_one_sided,
    ranked_together,
    ranking_differences,
)
from benchmarks.results.results import Result, has_items, read_items, read_result
from benchmarks.study.study_record import RECORD_FILE, RowRecord
from clips.core.durable import atomic_write
from clips.errors import UserError
from clips.model_refs import OPEN_CLIP_CONFIG
from clips.safe_text import log_info
from llava_bridge.model.llava_checks import is_llava

if TYPE_CHECKING:
    import pandas as pd

WRITERS: Mapping[str, Callable[[Report], str]] = {
    ".html": render_page,
    ".md": render_markdown,
    ".csv": render_csv,
    ".tex": render_latex,
}
_MAX_LINES = 4  # of a study file
_MAX_MOVED = 3  # items whose scores have changed most
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two models, or two studies, benchmark by benchmark, with confidence intervals and corrected tests.

    Args:
        first: a model's directory (``results/MODEL``) or one of its result files; or a directory of results, a study's
            output or a table of items: then models with equal names are compared.
        second: likewise.
        benchmarks: only these: ``BENCHMARK`` or ``BENCHMARK:METRIC``; all if empty.
        output: also write the comparison to this file: .csv for programs, .md, .html or .tex to read.
    """

    first: str
    second: str
    benchmarks: tuple[str, ...] = ()
    output: str | None = None

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix not in WRITERS:
            raise UserError(f"output: expected a name that ends in {', '.join(WRITERS)}, got '{self.output}'")


def compare(config: CompareConfig) -> None:
    """Print the comparison; write it to ``output`` if given.

    Raises:
        UserError: no results there, no common model, or an unreadable file.
    """
    from rich.console import Console

    report, console = build_comparison(config), Console(highlight=False)
    print_report(report, console, all_notes=True)
    if (differences := difference_frame(report)).size:
        print_frame(differences, console, title="A − B")
    if config.output:
        atomic_write(config.output, WRITERS[Path(config.output).suffix](report))
        log_info(f"comparison: {config.output}")


def build_comparison(config: CompareConfig) -> Report:
    """Read both sides and compute their report; see `compare`."""
    first, second = read_side(config.first, "first"), read_side(config.second, "second")
    if Path(config.first).is_file() or Path(config.second).is_file():  # of one benchmark
        both = tuple(name for name in first.benchmarks if name in second.benchmarks)
        if not both:
            names = ", ".join(first.benchmarks)
            raise UserError(
                f"second: {config.second}: expected a result on {names}, got {', '.join(second.benchmarks)}"
            )
        first, second = (dataclasses.replace(side, benchmarks=both) for side in (first, second))
    return compare_sources(first, second, selection=Selection(benchmarks=config.benchmarks))


def compare_sources(first: ReportSource, second: ReportSource, selection: Selection = Selection()) -> Report:  # noqa: B008
    """The report of two sources, in which models of equal weights and numbers are not tested.

    Raises:
        UserError: no common model, or an unknown benchmark.
    """

    def is_same(one: Cell, other: Cell) -> bool:
        mine, theirs = (cell.results[0].model.get("hash") for cell in (one, other))
        return bool(mine) and mine == theirs and one.value == other.value

    return build_report(join_sources(first, second), selection=selection, ranked=False, untested=is_same)


def difference_frame(report: Report) -> pd.DataFrame:
    """A line of texts for each tested number: model and metric, difference, 95 % interval, corrected p, verdict."""
    import pandas as pd

    deltas = [
        cell.delta
        for place, _ in enumerate(report.table.rows)
        for column in report.table.columns
        if (cell := report.table.cells(column)[place]).delta
    ]
    return pd.DataFrame(
        [[each.number, each.interval, f"{each.p_adjusted:.2g}", each.detectable, each.verdict] for each in deltas],
        index=[
            f"{each.cell.row.removeprefix('A ')} {each.cell.column.title}{each.cell.column.arrow}" for each in deltas
        ],
        columns=["A − B", "95 % interval", "corrected p", "MDD", "A is"],
    )


def read_side(path: str, field: str) -> ReportSource:
    """A study, a directory of results, or the one model of a directory or file of its own."""
    root = Path(path)
    if root.suffix in SUFFIXES:
        return dataclasses.replace(read_source(root), title=path)
    if root.is_file():
        result = read_result(root)
        if result.status == "failed":
            raise UserError(f"{field}: {path}: this evaluation failed: {result.failure_reason}")
        source = read_side(str(root.parent), field)
        return dataclasses.replace(source, title=path, benchmarks=(result.benchmark,))
    if not root.is_dir():
        raise UserError(f"{field}: {path}: no such file or directory")
    for kind, is_kind in (("encoder", (root / OPEN_CLIP_CONFIG).is_file()), ("llava", is_llava(path))):
        if is_kind:
            raise UserError(
                f"{field}: {path}: expected results, got a model; `clips-bench run {kind} {path}` writes its results"
            )
    is_model = any(root.glob("*.json")) and not any(root.glob("*/*.json"))
    is_model &= not (root / RECORD_FILE).is_file()
    source = read_source(root.parent if is_model else path)
    measured = {
        row
        for (row, _), result in source.outcomes.items()
        if isinstance(result, Result) and result.path
        if not is_model or result.path.parent.resolve() == root.resolve()
    }
    if not measured:
        raise UserError(f"{field}: {path}: no result there is valid and up to date")
    rows = tuple(row for row in source.rows if row.name in measured) if is_model else source.rows
    return dataclasses.replace(source, title=path, rows=rows)


def join_sources(first: ReportSource, second: ReportSource) -> ReportSource:
    """Both sides as one source: each row ``A NAME`` is compared with ``B NAME``; single models whatever their names."""
    pairs = {row.name: row.name for row in first.rows if row.name in {other.name for other in second.rows}}
    if len(first.rows) == len(second.rows) == 1:
        pairs = {first.rows[0].name: second.rows[0].name}
    if not pairs:
        known = ", ".join(row.name for row in second.rows)
        raise UserError(f"second: expected a model of {', '.join(row.name for row in first.rows)}; it has {known}")
    order = {f"A {one}": place for place, one in enumerate(pairs)}
    order |= {f"B {other}": place for place, other in enumerate(pairs.values())}
    rows, outcomes = list[RowRecord](), dict[tuple[str, str], Result | MissingValue]()
    for letter, source in (("A", first), ("B", second)):
        outcomes |= {(f"{letter} {row}", name): each for (row, name), each in source.outcomes.items()}
        for row in source.rows:
            base = f"B {pairs[row.name]}" if letter == "A" and row.name in pairs else None
            encoder = f"{letter} {row.encoder}"
            rows.append(dataclasses.replace(row, name=f"{letter} {row.name}", encoder=encoder, baseline=base))
    rows.sort(key=lambda row: order.get(row.name, len(pairs)))
    names = {row.name for row in rows}
    with_number = {name for (row, name), each in outcomes.items() if row in names and isinstance(each, Result)}
    benchmarks = [name for name in dict.fromkeys((*first.benchmarks, *second.benchmarks)) if name in with_number]
    nothing = MissingValue(kind="missing", reason="no result")
    return dataclasses.replace(
        first,
        title=f"A: {first.title}, B: {second.title}",
        question="",
        notes=tuple(
            dict.fromkeys([*_own_notes(first, second), *_context(first, second), *_models(first, second, pairs)])
        ),
        rows=tuple(rows),
        benchmarks=tuple(benchmarks),
        outcomes={(row.name, name): outcomes.get((row.name, name), nothing) for row in rows for name in benchmarks},
        steps=(),
        study=None,
    )


def _own_notes(first: ReportSource, second: ReportSource) -> Iterator[str]:
    """The notes of the sources, with the letter of the side if the other one lacks it."""
    yield from (note if note in second.notes else f"A: {note}" for note in first.notes)
    yield from (f"B: {note}" for note in second.notes if note not in first.notes)


def _context(first: ReportSource, second: ReportSource) -> Iterator[str]:
    """What differs between the two runs besides their numbers: code, libraries, machine."""
    if changed := name_one_sided(describe_differences(_facts(first), _facts(second))):
        yield f"The runs (A against B): {'; '.join(changed)}."
    if first.study and second.study:
        difference = difflib.ndiff(first.study.text.splitlines(), second.study.text.splitlines())
        lines = [line for line in difference if line[:2] in {"- ", "+ "} and line[2:].strip()]
        changed = [f"{'A' if line[0] == '-' else 'B'} `{line[2:].strip()}`" for line in lines]
        if changed:
            yield f"The study files differ: {', '.join(changed[:_MAX_LINES])}{', …' * (len(changed) > _MAX_LINES)}."


def _facts(source: ReportSource) -> dict[str, str]:
    facts: dict[str, dict[str, None]] = {}
    rows = {row.name for row in source.rows}
    for result in (each for (row, _), each in source.outcomes.items() if row in rows and isinstance(each, Result)):
        known = {"measured on": result.created[:10], "commit": commit_text(result.git) or "not known"}
        known |= {**result.versions, **{name: str(value) for name, value in result.execution.items()}}
        for name, value in known.items():
            facts.setdefault(name, {})[value] = None
    machine = source.study.machine if source.study else {}
    return {name: ", ".join(sorted(values)) for name, values in facts.items()} | {
        f"machine's {name}": str(value) for name, value in machine.items()
    }


def _models(first: ReportSource, second: ReportSource, pairs: Mapping[str, str]) -> Iterator[str]:
    """Whether two models are the same, how their trainings differ, and whether they were evaluated alike."""
    for one, other in pairs.items():
        both = dict[str, tuple[Result, Result]]()
        for benchmark in first.benchmarks:
            mine, theirs = first.outcomes.get((one, benchmark)), second.outcomes.get((other, benchmark))
            if isinstance(mine, Result) and isinstance(theirs, Result):
                both[benchmark] = mine, theirs
        name = one if one == other else f"{one} and {other}"
        for mine, theirs in both.values():
            yield from (f"{name} on {mine.benchmark}: {moved}" for moved in _moved(mine, theirs))
        sentences = [each for mine, theirs in both.values() for each in _about_two(mine, theirs)]
        yield from (f"{name}: {sentence}" for sentence in dict.fromkeys(sentences))
        protocols = {each: (mine.protocol, theirs.protocol) for each, (mine, theirs) in both.items()}
        blind = dict.fromkeys(line for pair in protocols.values() for line in blind_differences(*pair))
        if blind:
            yield f"{name}: runs without the image, which do not change the score (A against B): {'; '.join(blind)}."
        alike: dict[str, list[str]] = {}  # what differs though they are ranked together, as the name of a split
        for benchmark, pair in protocols.items():
            if ranked_together(*pair):
                alike.setdefault("; ".join(ranking_differences(*pair)), []).append(benchmark)
        for differences, benchmarks in alike.items():
            how = f"with the same data (A against B: {differences})" if differences else "under the same settings"
            yield f"{name}: evaluated {how}, and ranked together, on {join_or_count(benchmarks, 'benchmarks')}."


def _moved(mine: Result, theirs: Result) -> Iterator[str]:
    """How the answers and scores of one model differ between two runs or two scorers, and the largest changes."""
    is_same = mine.model.get("hash") and mine.model.get("hash") == theirs.model.get("hash")
    if not (is_same and has_items(mine) and has_items(theirs)):
        return
    names = ["item", "prediction", "score"]
    both = read_items(mine)[names].merge(read_items(theirs)[names], on="item", suffixes=("", "_b"))
    answers = both["prediction"].fillna("") != both["prediction_b"].fillna("")
    both["by"] = (both["score_b"] - both["score"]).abs().fillna(0.0)
    # or without a score in one of the runs
    scores = (both["by"] > _ROUNDING) | (both["score"].isna() != both["score_b"].isna())
    points = [
        f"{metric.label} {format_number((theirs.metrics[key].value - metric.value) * metric.scale, 2, sign=True)}"
        for key in mine.primary
        if (metric := mine.metrics.get(key)) and key in theirs.metrics
    ]
    count = f"of {len(both):,} items {int(answers.sum()):,} have another answer, {int(scores.sum()):,} another score"
    if answers.any() and mine.fingerprint == theirs.fingerprint:
        count += ", although the model and its settings are the same"
    yield f"{count}; B − A in points: {', '.join(points) or 'none'}."
    for line in both[scores | answers].nlargest(_MAX_MOVED, "by").itertuples():
        pairs = ((line.prediction, line.score), (line.prediction_b, line.score_b))
        one, other = (f"'{text!s:.60}' ({score:.3g})" for text, score in pairs)
        yield f"item {line.item}: A {one}, B {other}."


def _about_two(mine: Result, theirs: Result) -> Iterator[str]:
    """Whether the models of two results are the same, else how they and their trainings differ."""
    models = (mine.model, theirs.model)
    paths, hashes = [str(each.get("path")) for each in models], [str(each.get("hash") or "")[:12] for each in models]
    if all(hashes) and mine.model["hash"] == theirs.model["hash"]:
        once = "" if paths[0] == paths[1] else f", once as {paths[0]}, once as {paths[1]}"
        yield f"the model is the same ({hashes[0]}{once})."
        return
    both = " against ".join(f"{path} ({digest or 'no hash'})" for path, digest in zip(paths, hashes, strict=True))
    yield f"{'the models differ' if all(hashes) else 'it is unknown whether the model is the same'}: {both}."
    yield from diff_training(training_of_result(mine), training_of_result(theirs)).sentences
