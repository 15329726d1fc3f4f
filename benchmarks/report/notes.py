"""The notes below the table, as data: on marks, intervals and tests, and on what is missing, confounded or apart.

A note has a kind and is about cells. A kind of ``KINDS`` has the heading of its notes, and a brief: one short sentence
for all of them, if they change how the table is to be read. The page shows the first briefs below the legend, and all
notes behind one line.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report.load_results import OTHER_KIND, MissingValue, ReportSource, measuring_tool
from benchmarks.report.table import ALPHA, ELSEWHERE, IF_SEEDS_VARY_MORE, UNCREDITED, Cell, Column, Table
from benchmarks.report.training_settings import TrainingSettings, diff_training, training_of_result
from benchmarks.results.baselines import WITHOUT_IMAGE, baseline_name
from benchmarks.results.contradictions import contradictions
from benchmarks.results.formatting import (
    MAX_TEXT_CHARS,
    join_or_count,
    join_row_names,
    join_with_and,
    strip_control_chars,
)
from benchmarks.results.measure import comparable
from benchmarks.results.noise import Scores, least_variance
from benchmarks.results.power import Components, variance_components
from benchmarks.results.protocol import INPUT_PREFIX, has_known_scorer
from benchmarks.results.results import CHANCE, MAX_UNREAD, UNREAD, UNREAD_WRONG, Result
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK
from benchmarks.tasks.encoders.linear_probe import IN_TRAIN, UNSEEN_ACCURACY
from benchmarks.tasks.listing import parts

_MAX_UNREAD = 4  # pairs in a sentence


@dataclass(frozen=True, kw_only=True)
class Note:
    """A note on some cells.

    Args:
        kind: a key of ``KINDS``.
        text: complete sentences.
        count: how many models, benchmarks or numbers it is about, for the brief of its kind.
        places: row of the seed table, benchmark and metric of its cells.
    """

    kind: str
    text: str
    count: int = 1
    places: frozenset[tuple[str, str, str]] = frozenset()

    @staticmethod
    def of(kind: str, text: str, cells: Iterable[Cell]) -> Note:
        """A note on some cells."""
        own = [*cells]
        return Note(
            kind=kind, text=text, count=len(own), places=frozenset(place for cell in own for place in _places(cell))
        )

    def is_about(self, cell: Cell, kind: str) -> bool:
        """Whether a cell's sign, or why it is missing, is explained here."""
        return self.kind == kind and not self.places.isdisjoint(_places(cell))


def _places(cell: Cell) -> list[tuple[str, str, str]]:
    return [(row, cell.column.benchmark, cell.column.metric) for row in cell.rows]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What notes of a kind share.

    Args:
        title: the heading above them.
        brief: the sentence at first sight, of at most `MAX_WORDS` words; ``{count}`` is that of all notes, and
            ``{s}``, ``{is}`` follow it. Empty if they do not change how the table is to be read.
        is_caveat: whether a paper should print them below the table.
    """

    title: str
    brief: str = ""
    is_caveat: bool = False


KINDS: Mapping[str, Kind] = {
    "omitted": Kind(title="Omitted"),
    "study": Kind(title="Of the study", is_caveat=True),
    "contradiction": Kind(
        title="Contradictions",
        brief="Numbers contradict the answers that they are from: {count} case{s}.",
    ),
    "unchecked": Kind(title="Not checked", brief="{count} result{s} {is} not checked, because the items are missing."),
    "other items": Kind(
        title="Other items",
        brief="{count} number{s} {is} for other items than the rest, and not tested against it.",
        is_caveat=True,
    ),
    "equal": Kind(title="Equal scores", brief="{count} pair{s} of models {has} the same score on every item."),
    "one seed": Kind(
        title="One seed",
        brief="Each trained model has one seed: intervals and tests leave out others.",
        is_caveat=True,
    ),
    "training": Kind(
        title="Training settings",
        brief="Some models were trained with different settings, which may explain a difference.",
        is_caveat=True,
    ),
    "part": Kind(
        title="Parts of benchmarks",
        brief="{count} benchmark{s} {is} measured on a part of the questions only.",
        is_caveat=True,
    ),
    "uncredited": Kind(
        title="Not credited to the images",
        brief="‡ {count} score{s} {is} not credited to the images.",
    ),
    "chance": Kind(
        title="Not above chance", brief="{count} score{s} {is} not significantly above chance.", is_caveat=True
    ),
    "protocol": Kind(
        title="Other settings",
        brief="† {count} number{s} {was} measured under other settings, and {is} not ranked with the rest.",
    ),
    "few seeds": Kind(title="Few seeds", brief="Intervals of {count} model{s} with few seeds may be too narrow."),
    "missing": Kind(
        title="Missing numbers", brief="{count} number{s} {is} missing, each seed's counted where a model has several."
    ),
    "unread": Kind(title="Answers not read", brief="For {count} score{s}, more than 2 % of the answers were not read."),
    "untested": Kind(title="No interval or test", brief="{count} number{s} {has} no interval or no test."),
    "intervals": Kind(title="Intervals"),
    "baselines": Kind(title="Chance and trivial baselines"),
    "gains": Kind(title="Gain over blind"),
    "inputs": Kind(title="Input settings"),
    "scorer": Kind(title="Scorers"),
    "elsewhere": Kind(title="Measured elsewhere"),
    "power": Kind(title="More seeds"),
}
"""In the order of their importance; a new kind is an entry here, and a function of `table_notes` that yields them."""
MAX_WORDS = 25
_BRIEFS = 3
_ONE = {"s": "", "is": "is", "has": "has", "was": "was"}
_SEVERAL = {"s": "s", "is": "are", "has": "have", "was": "were"}


def brief_notes(notes: Sequence[Note]) -> list[str]:
    """At most three short sentences on what changes how the table is to be read, the most important first."""
    as_written = [note for note in notes if note.kind in {"omitted", "study"}]
    short = [note.text for note in as_written if len(note.text.split()) <= MAX_WORDS]
    for name, kind in KINDS.items():
        count = sum(note.count for note in notes if note.kind == name)
        if count and kind.brief:
            short.append(kind.brief.format(count=count, **(_ONE if count == 1 else _SEVERAL)))
    return short[:_BRIEFS]


def grouped_notes(notes: Sequence[Note]) -> list[tuple[str, list[Note]]]:
    """Heading → notes, in the order of the kinds."""
    groups = [(kind.title, [note for note in notes if note.kind == name]) for name, kind in KINDS.items()]
    return [(title, own) for title, own in groups if own]


@dataclass(frozen=True, kw_only=True)
class MarkStyle:
    """How a format shows the marks.

    Args:
        best: the look of a cell with the mark ``best``; empty if the format does not show it.
        tied: the same for ``tied``.
        differences: whether differences from a baseline have the signs ▲, ▼ and ≈.
    """

    best: str
    tied: str
    differences: bool = False


PAGE = MarkStyle(best="bold, filled mark", tied="open mark", differences=True)
MARKDOWN = MarkStyle(best="bold", tied="italics")
LATEX = MarkStyle(best="bold", tied="underlined")
TERMINAL = MarkStyle(best="bold, green", tied="green")
PLAIN = MarkStyle(best="", tied="")


def table_notes(source: ReportSource, table: Table, seed_table: Table) -> list[Note]:
    """All notes that apply, in the order of their kinds; ``seed_table`` is the one before the aggregation of seeds."""
    groups: Sequence[Iterable[Note]] = (
        (Note(kind="study", text=each) for each in source.notes),
        _about_intervals(table),
        _about_one_seed(source),
        _about_chance(table),
        _about_gains(table),
        _about_unread(table),
        _about_data(source),
        about_training(source),
        _about_missing_values(source, seed_table),
        _about_missing_items(source),
        _about_parts(source),
        _about_protocols(seed_table),
        _about_scorers(source),
        _about_imports(source),
        _about_inputs(source),
        _about_equal_models(table),
        _about_another_seed(table),
    )
    notes = [each for group in groups for each in group]
    return sorted(dict.fromkeys(notes), key=lambda note: [*KINDS].index(note.kind))


def mark_legend(table: Table, style: MarkStyle) -> Iterator[str]:
    """The legend of the marks of ``table``, as a format shows them."""
    marks = {cell.mark for cell in table.scores}
    apart = marked_apart(table)
    of_column = f" of its column{f' with the same {join_with_and(apart)}' if apart else ''}"
    best, tied = "best" in marks and style.best, "tied" in marks and style.tied
    if best:
        yield f"Best ({style.best}): significantly better than every other model{of_column}."
    if tied:
        yield (
            f"Tied ({style.tied}): the top model{of_column}, and those tested against it without a significant "
            "difference."
        )
    deltas = [cell.delta for cell in table.scores if cell.delta is not None]
    subjects = [*(["marks"] if best or tied else []), *(["differences from the baseline"] if deltas else [])]
    if subjects and table.tested:
        shown = {delta.significant for delta in deltas} if style.differences else set()
        meanings = ((True, f"▲ and ▼ are significant (p < {ALPHA})"), (False, "≈ is not significant"))
        signs = ", ".join(text for significant, text in meanings if significant in shown)
        with_baseline = {frozenset({row.name, row.baseline}) for row in table.rows}
        planned = {frozenset({each.cell.row, each.other.row}) in with_baseline for each in table.differences}
        against = [
            name for name, is_baseline in (("the baseline", True), ("the top model", False)) if is_baseline in planned
        ]
        pairs = "every pair of models" if table.all_pairs else f"pairs with {join_with_and(against)}"
        corrected = f"the p-values of all {table.comparisons} tests ({pairs}) Holm-corrected together"
        if table.comparisons == 1:
            corrected = "one test, whose p-value needs no correction"
        yield (
            f"{' and '.join(subjects).capitalize()} use paired tests over {variance_sources(table)}: {corrected}"
            f"{f'; {signs}' if signs else ''}."
        )


def marked_apart(table: Table) -> list[str]:
    """What the models of a column with marks do not share, so that not all of them were tested against each other."""
    marked = {cell.column for cell in table.scores if cell.mark or cell.withheld}
    apart = {cells[0][0].column for cells in table.other_items}
    mixed = {cell.column for cell in table.scores if cell.group}
    return [name for name, columns in (("settings", mixed), ("items", apart)) if marked & columns]


def variance_sources(table: Table) -> str:
    """What the intervals and tests of a table are over."""
    with_seeds = any(cell.seed_variance == "included" for cell in table.scores)
    return sampled(table) + " and seeds" * with_seeds


def items_apart(first: Scores, second: Scores) -> str:
    """``"lacks 3 of 200 items, '17' for example"``: how a model's items differ from those of another one."""
    one, other = first.scored_items, second.scored_items
    lacking, more = sorted(one - other), sorted(other - one)
    names = [key.partition("\n")[0] for key in (*lacking, *more)]
    parts = [f"lacks {len(lacking):,} of {len(one):,} items"] * bool(lacking) + [f"has {len(more):,} more"] * bool(more)
    if len({*names}) < len(names):  # an item's name and image make its key
        parts = [f"has other images for {len(lacking):,} of {len(one):,} items"]
    if not names:
        return "lacks other values"
    return f"{' and '.join(parts)}, '{strip_control_chars(names[0], MAX_TEXT_CHARS)}' for example"


def sampled(table: Table) -> str:
    """What the benchmarks of a table are samples of: ``"images"``, ``"items"``, or both."""
    return " or ".join(sorted({column.sampled for column in table.columns})) or "images"


def unread_differences(table: Table, cells: Iterable[Cell], others: Container[str]) -> str:
    """``"14.0 % of a and 1.2 % of b on mmmu_val"``: where models with a significant difference differ in this, too.

    Args:
        table: the table.
        cells: of the better or worse models.
        others: the models that they are compared with.
    """
    texts: dict[str, None] = {}
    apart = [each for each in table.differences if each.unread]
    for cell in cells:
        for each in apart:
            pair = {each.cell.place: each.other, each.other.place: each.cell}
            if cell.place in pair and pair[cell.place].row in others:
                shares = [f"{share:.1f} % of {row}" for row, share in each.unread.items()]
                texts[f"{join_with_and(shares)} on {cell.column.benchmark}"] = None
    return "; ".join(texts) if len(texts) <= _MAX_UNREAD else f"{len(texts)} pairs of models"


def _about_intervals(table: Table) -> Iterator[Note]:
    with_interval = [cell for cell in table.scores if cell.ci_low is not None]
    kinds = {cell.seed_variance for cell in with_interval}
    lines = [f"Numbers are means over up to {table.seeds} seeds."] if table.seeds > 1 else []
    if "included" in kinds:
        lines.append(
            f"The 95 % intervals of trained models include the variance over the benchmark's {sampled(table)} and the "
            "seed variance. This is the mean of the model's own and of that of all trained models of the column, or "
            "its own alone if that is larger by an F test at 10 %."
        )
        if "none" in kinds:
            lines.append(f"A pretrained model is evaluated once, and its interval is over {sampled(table)} only.")
    elif with_interval:
        lines.append(
            f"Intervals are 95 % intervals over the benchmark's {sampled(table)} and do not include seed variance."
        )
    if lines:
        yield Note(kind="intervals", text=" ".join(lines))
    few: dict[int, dict[str, None]] = {}  # seeds → models
    for cell in with_interval:
        if cell.caution and cell.evidence is not None:
            few.setdefault(cell.evidence.num_seeds, {})[cell.row] = None
    if few:
        shares = [
            f"{IF_SEEDS_VARY_MORE[seeds]} % with {seeds} seed{'s' if seeds > 1 else ''} ({join_row_names(rows)})"
            for seeds, rows in sorted(few.items())
        ]
        text = (
            "Few seeds: if the trainings of a model vary three times as much as those of the others, its intervals may "
            f"cover the truth in only {join_with_and(shares)}."
        )
        yield Note(kind="few seeds", text=text, count=len({row for rows in few.values() for row in rows}))
    unknown = []
    for column in table.columns if "included" in kinds else ():
        numbers = [cell for cell in table.cells(column) if cell.ci_low is not None]
        rows = [cell.row for cell in numbers if cell.seed_variance == "unknown"]
        all_of_column = rows and not any(cell.seed_variance == "included" for cell in numbers)
        unknown += [column.title] if all_of_column else [f"{row} on {column.title}" for row in rows]
    if unknown:
        where = join_with_and(unknown)
        yield Note(
            kind="intervals",
            text=f"No seed variance is known on {where}: intervals and tests are over {sampled(table)} only.",
        )
    untestable: dict[tuple[str, str], list[str]] = {}
    for first, second in table.untestable:
        reason = next(cell.no_interval for cell in (first, second) if cell.ci_low is None)
        untestable.setdefault((first.column.title, reason), []).append(f"{first.row} and {second.row}")
    for (title, reason), pairs in untestable.items():
        yield Note(
            kind="untested", text=f"No test on {title}, because {reason} ({join_or_count(pairs, 'pairs')}).", count=0
        )
    unknown_on: dict[str, list[str]] = {}  # models → metrics
    order = [row.name for row in table.rows]
    for sets in table.other_items:
        title, known = sets[0][0].column.title, [cells for cells in sets if cells[0].evidence is not None]
        if len(known) > 1:
            evidence = [scores for cells in known if (scores := cells[0].evidence) is not None]
            most = max(evidence, key=lambda scores: len(scores.scored_items))
            apart = ["" if each is most else f" ({items_apart(most, each)})" for each in evidence]
            rows = [join_row_names(cell.row for cell in cells) for cells in known]
            names = "; ".join(f"{text}{differing}" for text, differing in zip(rows, apart, strict=True))
            text = f"{title}: the items differ, so only models of one group are tested against each other: {names}."
            sizes = [*map(len, known)]
            yield Note(kind="other items", text=text, count=sum(sizes) - (max(sizes) if max(sizes) > 1 else 0))
        if unknown := [cell.row for cells in sets for cell in cells if cell.evidence is None]:
            unknown_on.setdefault(join_row_names(sorted(unknown, key=order.index)), []).append(title)
    if where := "; ".join(f"{names} on {join_or_count(titles, 'metrics')}" for names, titles in unknown_on.items()):
        yield Note(kind="untested", text=f"Not tested, because the items do not determine the score: {where}.", count=0)
    without: dict[str, list[Cell]] = {}
    for cell in table.scores:
        if cell.value is not None and cell.ci_low is None:
            without.setdefault(cell.no_interval, []).append(cell)
    for reason, cells in without.items():
        where = join_or_count([*dict.fromkeys(f"{cell.row} on {cell.column.title}" for cell in cells)], "numbers")
        yield Note.of("untested", f"No interval: {where}. Reason: {reason}.", cells)


def _about_one_seed(source: ReportSource) -> Iterator[Note]:
    seeds = {row.name: row.model for row in source.rows if row.seed is not None}
    trainings = Counter(
        (seeds[row], name) for name in source.benchmarks for row in source.results(name) if row in seeds
    )
    if trainings and max(trainings.values()) == 1:
        text = "Each trained model has one seed: a difference may be that of two seeds of the same training."
        yield Note(kind="one seed", text=text)


def title_with_baselines(column: Column) -> str:
    """The metric, with the trivial baselines that score above chance: ``pope F1 (always yes)``."""
    others = [name for name in column.trivial_baselines() if name != CHANCE]
    return column.title + (f" ({' or '.join(others)})" if others else "")


def _about_chance(table: Table) -> Iterator[Note]:
    names = list(dict.fromkeys(name for column in table.columns for name in column.trivial_baselines()))
    others = join_with_and([name for name in names if name != CHANCE]) if names[1:] else ""
    if table.has_chance_level:
        more = f", with {others} where that scores higher" if others else ""
        text = f"Chance is the score of guessing among the answers, computed from the same items{more}."
        yield Note(kind="baselines", text=text)
    by_model: dict[str, list[str]] = {}
    for column in table.columns:
        for cell in table.cells(column):
            if cell.above_chance is False:
                by_model.setdefault(cell.row, []).append(title_with_baselines(column))
    by_metrics: dict[tuple[str, ...], list[str]] = {}
    for row, titles in by_model.items():
        by_metrics.setdefault(tuple(titles), []).append(row)
    where = [f"{join_or_count(rows, 'models')} on {join_or_count(on, 'metrics')}" for on, rows in by_metrics.items()]
    if where:
        text = f"Not significantly above chance (the 95 % interval contains chance or is worse): {'; '.join(where)}."
        yield Note(kind="chance", text=text, count=sum(map(len, by_model.values())))


def _about_gains(table: Table) -> Iterator[Note]:
    lines, conditions = [], set[str]()
    for column in table.columns:
        with_gain = [cell for cell in table.cells(column) if cell.gains]
        counts = sorted({gain.n for cell in with_gain for gain in cell.gains.values()})
        if counts:
            items = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
            texts = []
            for cell in with_gain:
                conditions |= {*cell.gains}
                gains = [
                    f"{column.text(gain.value, sign=True)} [{gain.signed_interval}] over {kind.replace('_', ' ')}"
                    for kind, gain in cell.gains.items()
                ]
                texts.append(f"{cell.row} {join_with_and(gains)}")
            lines.append(f"Gain over blind on {column.title} ({items} items): {'; '.join(texts)}.")
    if lines:
        seen = "; ".join(
            f"{kind.replace('_', ' ')}: {name}" for kind, name in WITHOUT_IMAGE.items() if kind in conditions
        )
        text = (
            f"Gain over blind: the score minus that of the same model on the same items without their image ({seen}), "
            "with its 95 % interval, paired by image. A score is credited to the images if the gain over each is "
            "significant (two-sided 5 %, not corrected for other cells)."
        )
        yield from (Note(kind="gains", text=each) for each in (text, *lines))
    for cell in table.scores:
        if cell.credited is False:
            column = cell.column
            weak = {kind: gain for kind, gain in cell.gains.items() if not gain.credits}
            sizes = [gain.against_zero.min_detectable * column.scale for gain in weak.values() if gain.against_zero]
            smallest = max(sizes, default=math.nan)
            number = column.small_text(smallest)
            power = f" These items detect a gain of {number} with power 0.8." if math.isfinite(smallest) else ""
            where = join_with_and([WITHOUT_IMAGE[kind] for kind in weak])
            text = (
                f"{UNCREDITED} {cell.row} on {column.title} is not credited to the images and has no mark: the score "
                f"is not significantly better than with {where}.{power}"
            )
            yield Note.of("uncredited", text, [cell])
    for cell in table.scores:
        unknown = {gain.no_interval: None for name, gain in cell.all_gains.items() if name not in cell.gains}
        if unknown and cell.ci_low is not None:
            reasons = join_with_and([*unknown])
            yield Note(kind="gains", text=f"{cell.row} on {cell.column.title} has no gain over blind: {reasons}.")


def _about_equal_models(table: Table) -> Iterator[Note]:
    """Models with different results, but the same score on every item: a model compared with its copy is tied."""
    rows = {row.name: [column_cells[place] for column_cells in map(table.cells, table.columns)]
            for place, row in enumerate(table.rows)}  # fmt: skip
    for (one, mine), (other, theirs) in itertools.combinations(rows.items(), 2):
        common = [(cell, same) for cell, same in zip(mine, theirs, strict=True) if cell.evidence and same.evidence]
        if common and all(_has_equal_items(cell, same) for cell, same in common):
            where = join_or_count([cell.column.title for cell, _ in common], "metrics")
            yield Note(kind="equal", text=f"{one} and {other} have the same score on every item of {where}.")


def _has_equal_items(cell: Cell, other: Cell) -> bool:
    one, two = cell.evidence, other.evidence
    if one is None or two is None or cell.key == other.key or not np.array_equal(one.values, two.values):
        return False
    is_equal = comparable(one, two) and np.array_equal(one.influence, two.influence)
    return is_equal and bool(np.ptp(one.influence, axis=1).any())  # else all answers are right, or wrong, in both


def _about_unread(table: Table) -> Iterator[Note]:
    """The models of whose answers more than `MAX_UNREAD` were not read, and their scores with these as wrong ones."""
    cells_of_share: dict[str, list[str]] = {}  # share of a model's answers on a benchmark → scores that would differ
    for cell in table.scores:
        column, wrong_name = cell.column, baseline_name(cell.metric, UNREAD_WRONG)
        metrics = [each.metrics for each in cell.results if UNREAD in each.metrics]
        share = sum(each[UNREAD].value for each in metrics) / max(len(metrics), 1)
        if share <= MAX_UNREAD:
            continue
        scores = cells_of_share.setdefault(f"{100 * share:.1f} % of {cell.row} on {column.benchmark}", [])
        # a seed whose answers were all read has no such metric
        seeds = [each.get(wrong_name, each.get(cell.metric)) for each in metrics]
        wrong = column.text(sum(each.value * column.scale for each in seeds if each) / len(seeds))
        formulas = {each[wrong_name].aggregation for each in metrics if wrong_name in each}
        if formulas and wrong != cell.number:
            omits = ", which leaves them out," if "f1" in formulas else ""  # POPE's scorer does
            scores.append(f"{column.label}{omits} {wrong} instead of {cell.number}")
    if cells_of_share:
        what = "empty, declined, without an option, yes or no, or in a form that the scorer does not compare"
        texts = [
            name + (f" (as wrong answers: {join_with_and(own)})" if own else "") for name, own in cells_of_share.items()
        ]
        yield Note(kind="unread", text=f"Answers not read ({what}): {'; '.join(texts)}.", count=len(cells_of_share))
    if pairs := unread_differences(table, table.scores, {row.name for row in table.rows}):
        text = f"Models with different scores of whose answers different shares were not read: {pairs}."
        yield Note(kind="unread", text=text, count=0)


def _about_another_seed(table: Table) -> Iterator[Note]:
    """Another seed or stop? By how much the minimum detectable difference would shrink with more seeds."""
    shrinks: dict[str, str] = {}  # of the first metric of each benchmark
    for column, components in column_components(table).items() if table.seeds else ():
        seeds = components.num_seeds
        if components.degrees and seeds > 1 and (now := components.min_detectable(seeds)):
            more = (components.min_detectable(count) / now for count in (seeds + 1, math.inf))
            another, limit = (f"{100 * max(0.0, 1 - ratio):.0f} %" for ratio in more)
            # a variance over images that is estimated as zero gives no limit
            at_most = f" (any number of seeds by {limit})" if limit != "100 %" else ""
            shrinks.setdefault(column.benchmark, f"{another}{at_most} on {column.title}")
    if shrinks:
        text = (
            "Another seed or stop? One more seed of every model reduces the minimum detectable difference by "
            f"{join_with_and([*shrinks.values()])}."
        )
        yield Note(kind="power", text=text)


def column_components(table: Table) -> dict[Column, Components]:
    """Ranked column → its variance components, over the differences from the baselines, else over all pairs of models.

    Models near an end of the scale have no noise to plan with, and are left out.
    """
    components = {}
    for column in table.columns:
        cells = [cell for cell in table.cells(column) if cell.ci_low is not None and cell.group == 0]
        scores: dict[str, Scores] = {cell.row: cell.evidence for cell in cells if cell.evidence is not None}
        enough = least_variance(each.image_variance for each in scores.values())
        inside = {row: each for row, each in scores.items() if each.image_variance >= enough > 0}
        planned = [(row.name, row.baseline) for row in table.rows if row.name in inside and row.baseline in inside]
        pairs: Collection[tuple[str, str]] = [(row, other) for row, other in planned if other]
        pairs = pairs or [*itertools.combinations(inside, 2)]
        tested = [(inside[one], inside[other]) for one, other in pairs if comparable(inside[one], inside[other])]
        if tested and column.ranked:
            components[column] = variance_components(tested, cells[0].noise)
    return components


def _about_data(source: ReportSource) -> Iterator[Note]:
    """The trivial baselines, and linear probes that are tested on some of the images that they learn."""
    for name in source.benchmarks:
        for note in sorted({result.trivial_baseline_note for result in source.results(name).values()} - {""}):
            yield Note(kind="baselines", text=f"{name}: {strip_control_chars(note, MAX_TEXT_CHARS)}")
    for name in source.benchmarks:
        shared = {row: each for row, each in source.results(name).items() if IN_TRAIN in each.metrics}
        without: dict[str, list[str]] = {}
        for row, result in shared.items():
            unseen = result.metrics.get(UNSEEN_ACCURACY)
            score = "undefined" if unseen is None else f"{unseen.value * unseen.scale:.1f}"
            without.setdefault(score, []).append(row)
        for metric in [result.metrics[IN_TRAIN] for result in shared.values()][:1]:  # the data are the same for all
            scores = "; ".join(f"{score} ({join_row_names(rows)})" for score, rows in without.items())
            text = (
                f"{name}: {round(metric.value * metric.n)} of {metric.n} test images are byte by byte in the training "
                f"split of the probe. Without them acc@1 is: {scores}."
            )
            yield Note(kind="baselines", text=text)


def about_training(source: ReportSource) -> Iterator[Note]:
    """The models with other data, steps, batch sizes, learning rates, … than their baseline; seeds may differ."""
    by_difference: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # sentence → models, their baselines
    trainings: dict[str, TrainingSettings] = {}

    def training(result: Result) -> TrainingSettings:
        model = repr(result.model)
        if model not in trainings:
            trainings[model] = training_of_result(result)
        return trainings[model]

    for benchmark in source.benchmarks:
        results = source.results(benchmark)
        for row, other in source.pairs(benchmark):
            for difference in diff_training(training(results[row]), training(results[other])).uneven:
                rows, others = by_difference.setdefault(difference, ({}, {}))
                rows[row], others[other] = None, None
    by_models: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for difference, (rows, others) in by_difference.items():
        by_models.setdefault((tuple(rows), tuple(others)), []).append(difference)
    for (models, baselines), differences in by_models.items():
        shown = "; ".join(each for each in differences if f"encoder.{each}" not in differences)
        who = f"{join_row_names(models)} and {join_row_names(baselines)}"
        explained = "This may explain a difference between the numbers."
        yield Note(kind="training", text=f"{who} were trained with different settings: {shown}. {explained}")


def _about_missing_values(source: ReportSource, seed_table: Table) -> Iterator[Note]:
    by_fault: dict[tuple[str, MissingValue], dict[str, list[Cell]]] = {}  # model, fault → benchmarks or metrics
    for column in seed_table.columns:
        for cell in seed_table.cells(column):
            if cell.missing and cell.missing.reason not in {EXCLUDED_FROM_BENCHMARK, OTHER_KIND}:
                no_result = isinstance(source.outcomes[cell.row, column.benchmark], MissingValue)
                name = column.benchmark if no_result else column.title
                key = cell.row, dataclasses.replace(cell.missing, file="")
                by_fault.setdefault(key, {}).setdefault(name, []).append(cell)
    models: dict[tuple[str, MissingValue], dict[str, list[Cell]]] = {}
    for (row, fault), names in by_fault.items():
        cells = [cell for own in names.values() for cell in own]
        models.setdefault((join_with_and([*names]), fault), {})[row] = cells
    for (on, fault), rows in models.items():
        cells = [cell for own in rows.values() for cell in own]
        files = [*dict.fromkeys(cell.missing.file for cell in cells if cell.missing and cell.missing.file)]
        why = f": {fault.reason.rstrip('.')}"
        if files:  # a failure's reason may be long and name directories; each of the files has it
            why = f"{' for the same reason' if len(files) > 1 else ''}, see {files[0]}"
        yield Note.of("missing", f"{join_row_names(rows)} on {on}: {fault.kind}{why}.", cells)


def _about_missing_items(source: ReportSource) -> Iterator[Note]:
    """The results without items: reading a result checks its numbers against its items."""
    by_models: dict[str, list[str]] = {}
    count = 0  # of this suite's
    for benchmark in source.benchmarks:
        models = {row: result for row, result in source.results(benchmark).items() if result.items is None}
        count += sum(not result.measured_elsewhere for result in models.values())
        if models:
            by_models.setdefault(join_row_names(models), []).append(benchmark)
    where = "; ".join(f"{models} on {join_or_count(names, 'benchmarks')}" for models, names in by_models.items())
    if where:
        yield Note(kind="unchecked", text=f"Not checked, because their items are missing: {where}.", count=count)


def _about_parts(source: ReportSource) -> Iterator[Note]:
    results = ((name, row, each) for name in source.benchmarks for row, each in source.results(name).items())
    if part_sizes := parts(results):
        names = {each.partition(": ")[0] for each in part_sizes}
        text = f"Measured on a part of the benchmark: {'; '.join(part_sizes)}."
        yield Note(kind="part", text=text, count=len(names))


def _about_protocols(seed_table: Table) -> Iterator[Note]:
    alike: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in seed_table.scores:
        if cell.protocol_differences:
            alike.setdefault((cell.dagger, cell.row, "; ".join(cell.protocol_differences)), []).append(cell)
    for (dagger, row, settings), cells in alike.items():
        where, columns = join_with_and([cell.column.title for cell in cells]), "columns" if cells[1:] else "column"
        text = (
            f"{dagger} {row} on {where} was measured under different settings and is not ranked with the rest of its "
            f"{columns} (its settings against theirs: {settings})."
        )
        yield Note.of("protocol", text, cells)


def _about_scorers(source: ReportSource) -> Iterator[Note]:
    """Numbers that contradict each other, and those of which the version of the scorer is all that is known."""
    by_version: dict[str, list[str]] = {}
    for benchmark in source.benchmarks:
        results = source.results(benchmark)
        yield from (Note(kind="contradiction", text=each) for each in contradictions(results))
        for row, result in results.items():
            if not has_known_scorer(result.protocol):
                by_version.setdefault(str(result.protocol["scorer"]), []).append(f"{row} on {benchmark}")
    if by_version:
        parts = [f"{join_or_count(names, 'numbers')} ({version})" for version, names in by_version.items()]
        text = f"Scored by code of which the version is known, not the content: {'; '.join(parts)}."
        yield Note(kind="scorer", text=text)


def _about_imports(source: ReportSource) -> Iterator[Note]:
    """The results that other tools measured, by tool, and what their intervals are from."""
    by_tool: dict[str, list[str]] = {}
    tools = set()
    for benchmark in source.benchmarks:
        for row, result in source.results(benchmark).items():
            tools.add(measuring_tool(result))
            if origin := result.measured_elsewhere:
                tool = strip_control_chars(measuring_tool(result), MAX_TEXT_CHARS)
                text = f"by {tool} (intervals: {origin.get('intervals')})"
                by_tool.setdefault(text, []).append(f"{row} on {benchmark}")
            if wrong := origin.get("contradicted"):
                yield Note(kind="contradiction", text=f"{row} on {benchmark} contradicts its own samples: {wrong}.")
    parts = [f"{join_or_count(names, 'numbers')} {tool}" for tool, names in by_tool.items()]
    if parts:
        sentence = "They are tested only against results of the same protocol with exactly the same items."
        mark = f"{ELSEWHERE} " * (len(tools) > 1)
        yield Note(kind="elsewhere", text=f"{mark}Measured elsewhere: {'; '.join(parts)}. {sentence}")


def _about_inputs(source: ReportSource) -> Iterator[Note]:
    """The input settings that differ between models: they are part of a model, so the models are ranked together."""
    lines: dict[str, None] = {}
    for benchmark in source.benchmarks:
        results = source.results(benchmark)
        names = {name for result in results.values() for name in result.protocol if name.startswith(INPUT_PREFIX)}
        for name in sorted(names):
            rows: dict[str, list[str]] = {}
            for row, result in results.items():
                rows.setdefault(str(result.protocol.get(name, "not stated")), []).append(row)
            if len(rows) > 1:
                setting = name.removeprefix(INPUT_PREFIX).replace("_", " ")
                by_value = "; ".join(f"{value} for {join_row_names(models)}" for value, models in rows.items())
                lines[f"Input settings differ between the models. {setting}: {by_value}."] = None
    yield from (Note(kind="inputs", text=each) for each in lines)
