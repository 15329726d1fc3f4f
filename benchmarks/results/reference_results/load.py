"""Published rows: what papers and model cards print, one CSV for each kind of benchmark.

Columns are ``set`` (whose table), ``row``, ``about``, ``source``, then ``<data set>/<metric>`` in our names, values as
printed (per cent, or points). What the prompt, the resize and the scorer were is mostly not said: such a row is never
ranked with ours.
"""

from __future__ import annotations

import csv
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clips.errors import unknown_name_error

_FILES = ("retrieval.csv", "mllm.csv", "openclip.csv")
_DESCRIBED = ("set", "row", "about", "source")


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """One model's numbers as they were printed.

    Args:
        set: whose table: clips, openvision, siglip2, pe, llava, llava_more or openclip.
        name: the model.
        about: its resolution, data or size.
        source: where it is printed.
        values: ``<data set>/<metric>`` → value as printed.
    """

    set: str
    name: str
    about: str
    source: str
    values: Mapping[str, float]


@functools.cache
def load_reference_results() -> tuple[ReferenceResult, ...]:
    """All of them."""
    found = []
    for file in _FILES:
        with (Path(__file__).parent / file).open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                values = {name: float(text) for name, text in line.items() if name not in _DESCRIBED and text}
                found.append(
                    ReferenceResult(
                        set=line["set"], name=line["row"], about=line["about"], source=line["source"], values=values
                    )
                )
    return tuple(found)


def select_reference_results(wanted: Sequence[str]) -> tuple[ReferenceResult, ...]:
    """The rows that are asked for, in that order.

    Args:
        wanted: ``SET`` for all of its rows, or ``SET:ROW``, a row's name or a pattern (``openclip:ViT-B-32/*``).

    Raises:
        UserError: no such set or row; close matches are named.
    """
    rows = load_reference_results()
    found: list[ReferenceResult] = []
    for text in wanted:
        name, mark, pattern = text.partition(":")
        sets = {row.set for row in rows}
        if name not in sets:
            raise unknown_name_error(name, sets, "set of published rows")
        mine = [row for row in rows if row.set == name]
        chosen = [row for row in mine if not mark or row.name == pattern or fnmatch.fnmatchcase(row.name, pattern)]
        if not chosen:
            raise unknown_name_error(pattern, [row.name for row in mine], f"published row of {name}")
        found += [row for row in chosen if row not in found]
    return tuple(found)
