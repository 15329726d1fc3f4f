"""A published row against a result, or against another row: numbers, settings that differ, settings that are unknown.

A source prints a part of its settings, under its own names. So the numbers are subtracted, never tested, and settings
are compared by their names: ``transformers:google/siglip2-so400m-patch14-384`` is ``siglip2-so400m-patch14-384``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.analysis.find_results import find_result
from benchmarks.results.formatting import format_number
from benchmarks.results.reference_results import SETTINGS, UNSTATED, load_reference_results, select_reference_results
from benchmarks.results.results import Metric, Result
from benchmarks.study.training_settings import training_of_result
from benchmarks.tasks.sizes import subset_text
from clips.errors import UserError

NOTE = "A published row has neither items nor a full protocol: the difference is a subtraction, without a test."


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two.

    Args:
        title: its name and origin.
        settings: name in ``SETTINGS`` → value; the others are unknown.
        numbers: ``<dataset>/<metric>`` → shown value.
        metrics: the same names → metrics with intervals; empty for a published row.
        main: the names of the main metrics; empty for a published row.
        part: the items that were evaluated, if not all: ``120 of 12,578 questions``.
    """

    title: str
    settings: Mapping[str, str]
    numbers: Mapping[str, float]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    main: frozenset[str] = frozenset()
    part: str = ""


def is_published(text: str) -> bool:
    """Whether this names a published row, ``SET:ROW``, and no file."""
    name, colon, _ = text.partition(":")
    return bool(colon) and name in {row.set for row in load_reference_results()} and not Path(text).exists()


def explain_published(first: str, second: str, benchmark: str | None) -> Iterator[str]:
    """The comparison in lines of text.

    Args:
        first: a published row, a result file or a directory.
        second: likewise; at least one of them is a published row.
        benchmark: the benchmark; of two published rows, all by default.

    Raises:
        UserError: an unknown row, or a pattern of several; a file that is missing or no result; no number in common.
    """
    one, two = (_side(text, benchmark, name) for text, name in ((first, "first"), (second, "second")))
    pairs = _pairs(one, two, benchmark)
    if not pairs:
        listed = " and ".join(", ".join(side.numbers) or "none" for side in (one, two))
        raise UserError(f"second: expected a number in common with {first}; they have {listed}")
    yield from (f"{letter}: {side.title}" for letter, side in (("A", one), ("B", two)))
    yield ""
    yield "Numbers (A, B, difference):"
    yield from (f"  {_number_line(pair, one, two)}" for pair in pairs)
    parts = {letter: side.part for letter, side in (("A", one), ("B", two)) if side.part}
    yield from (f"{letter} has only a part of the benchmark: {part}." for letter, part in parts.items())
    known = [name for name in SETTINGS if name in one.settings and name in two.settings]
    if different := [name for name in known if not _are_equal(name, one.settings[name], two.settings[name])]:
        yield "Settings that differ, by their names (A against B):"
        yield from (f"  {name}: {one.settings[name]} against {two.settings[name]}" for name in different)
    if equal := [name for name in known if name not in different]:
        yield f"Equal settings: {', '.join(equal)}."
    for letter, side in (("A", one), ("B", two)):
        if unknown := [name for name in SETTINGS if name not in side.settings]:
            yield f"Not known of {letter}: {', '.join(unknown)}."
    yield NOTE


def _pairs(one: Side, two: Side, benchmark: str | None) -> list[tuple[str, str]]:
    """The names of the numbers to subtract; an unstated metric is subtracted from each main metric."""
    found = dict[tuple[Any, ...], tuple[str, str]]()  # of a metric under two names the first
    for pair in itertools.product(one.numbers, two.numbers):
        stated = pair[0] == pair[1] or all(
            not side.main or name in side.main for name, side in zip(pair, (one, two), strict=True)
        )
        if stated and _are_comparable(*pair) and benchmark in {None, *(name.partition("/")[0] for name in pair)}:
            metrics = (id(side.metrics.get(name, name)) for name, side in zip(pair, (one, two), strict=True))
            found.setdefault(tuple(metrics), pair)
    return [*found.values()]


def _are_comparable(one: str, two: str) -> bool:
    """Whether two numbers have the same name, or one has no stated metric, of the same dataset or one of its splits."""
    (first, metric), (second, other) = one.split("/", 1), two.split("/", 1)
    if (metric == UNSTATED) == (other == UNSTATED):
        return one == two
    named, published = (first, second) if other == UNSTATED else (second, first)
    return re.fullmatch(re.escape(published) + "(_(val|test|dev))?", named) is not None


def _number_line(pair: tuple[str, str], one: Side, two: Side) -> str:
    first, second = one.numbers[pair[0]], two.numbers[pair[1]]
    title = pair[0] if pair[0] == pair[1] else f"{pair[0]} against {pair[1]}"
    numbers = format_number(first, 2), format_number(second, 2), format_number(second - first, 2, sign=True)
    line = f"{title}: {', '.join(numbers)}"
    for name, other, side in ((pair[0], second, one), (pair[1], first, two)):
        metric = side.metrics.get(name)
        if metric is not None and metric.ci_low is not None and metric.ci_high is not None:
            low, high = metric.ci_low * metric.scale, metric.ci_high * metric.scale
            where = "inside" if low <= other <= high else "outside"
            line += f" (the published one is {where} the 95 % interval {low:.2f} to {high:.2f})"
    return line


def _side(text: str, benchmark: str | None, name: str) -> Side:
    return _published(text, name) if is_published(text) else _measured(find_result(text, benchmark, name))


def _published(text: str, name: str) -> Side:
    rows = select_reference_results([text])
    if len(rows) > 1:
        raise UserError(f"{name}: expected one published row, got {len(rows)}: {', '.join(row.name for row in rows)}")
    (row,) = rows
    title = f"{row.set}:{row.name}, published ({row.about}; {row.source})"
    return Side(title=title, settings=row.settings, numbers=row.values)


def _measured(result: Result) -> Side:
    """A result's side; its dataset is the benchmark's name, and that of lmms-eval's task."""
    trained = training_of_result(result).settings
    settings = {name: trained[name].text for name in SETTINGS if name in trained}
    settings = {name: text for name, text in settings.items() if name not in _OF_ENCODER or text != _NOT_SET}
    if pixels := settings.get(_TILES):
        settings[_TILES] = _grids_of_tiles(pixels)
    settings |= {name: str(result.protocol[entry]) for name, entry in _PROTOCOL.items() if result.protocol.get(entry)}
    task = str(result.protocol.get("task", "")).removeprefix("lmms-eval's ")
    datasets = dict.fromkeys([result.benchmark, task])
    metrics = {f"{dataset}/{name}": metric for dataset in datasets for name, metric in result.metrics.items()}
    return Side(
        title=f"{result.model_name} on {result.benchmark} ({result.path})",
        settings=settings,
        numbers={name: metric.value * metric.scale for name, metric in metrics.items()},
        metrics=metrics,
        main=frozenset(f"{dataset}/{name}" for dataset in datasets for name in result.primary),
        part=subset_text(result),
    )


_PROTOCOL = {"image_size": "input_resolution", "scorer": "scorer"}
"""Settings that a result's protocol states → its entry."""
_NOT_SET = "not set"  # in a manifest
_TILES = "image_grid_pinpoints"
_OF_ENCODER = ("image_size", _TILES)
"""Settings that follow from the encoder if they are not set."""
_DATASETS = {
    "blip_laion_cc_sbu_558k": "LLaVA-Pretrain",  # huggingface.co/datasets/liuhaotian/LLaVA-Pretrain
    "llava_next_raw_format_processed": "LLaVA-NeXT-Data",  # huggingface.co/datasets/lmms-lab/LLaVA-NeXT-Data
}
"""A dataset's file → the name under which papers give it."""


def _grids_of_tiles(pixels: str) -> str:
    """``336, 672, 672, 336`` (heights and widths) as ``1 × 2, 2 × 1 tiles``; anything else as it is."""
    numbers = [int(each) for each in pixels.split(", ") if each.isdigit()]
    if not numbers or len(numbers) % 2 or any(each % min(numbers) for each in numbers):
        return pixels
    counts = [each // min(numbers) for each in numbers]
    return ", ".join(f"{rows} × {columns}" for rows, columns in zip(counts[::2], counts[1::2], strict=True)) + " tiles"


def _are_equal(name: str, one: str, two: str) -> bool:
    """Whether two values of a setting have the same name; each source of data must have a name of the other side."""
    if not name.endswith(".data"):
        numbers = _number(one), _number(two)
        return numbers[0] == numbers[1] if None not in numbers else _plain(one) == _plain(two)
    sides = [[_dataset_names(source) for source in value.split(", ")] for value in (one, two)]
    return all(any(names & other for other in sides[1]) for names in sides[0]) and all(
        any(names & other for other in sides[0]) for names in sides[1]
    )


def _number(value: str) -> float | None:
    """The number that a value states in any notation: ``1e-3``, ``0.001``."""
    try:
        return float(value)
    except ValueError:
        return None


def _dataset_names(source: str) -> set[str]:
    """The plain names of a path's directories and file, and of the dataset that the file belongs to."""
    parts = source.rstrip("/").split("/")
    file = parts[-1].removesuffix(".json")
    return {_plain(each) for each in (*parts, file, _DATASETS.get(file, file)) if each}


def _plain(value: str) -> str:
    """A name without case and punctuation; of a path or repo id its last part, without revision."""
    last = value.rstrip("/").rpartition("/")[2].partition("@")[0].removesuffix(".json")
    is_model_name = " " in value or last.isdigit()  # "ViT-L/14" is no path
    return re.sub(r"[\W_]+", "", (value if is_model_name else last).lower())
