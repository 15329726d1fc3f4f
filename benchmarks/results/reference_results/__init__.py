"""Reference results from papers and model cards, one CSV for each type of benchmark.

Columns are ``set`` (the table's origin), ``row``, ``about``, ``source``, then ``<dataset>/<metric>`` in this suite's
names, with the printed values (percent or points); the metric is ``unstated`` if the source does not name it, or no
split of the dataset (``docvqa/unstated``). Prompt, resize and scorer are mostly unstated, so these results are never
ranked with measured ones.
"""

from __future__ import annotations

import csv
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clips.errors import unknown_name_error

_FILES = ("retrieval.csv", "mllm.csv", "encoders.csv", "openclip.csv")
_DESCRIBED = ("set", "row", "about", "source")


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """One model's published numbers.

    Args:
        set: the table's origin: clips, openvision, openvision2, siglip2, pe, llava, llava_more, openclip, mlcd, rice,
            onevision_1.5, onevision_2_reruns (of others, published in threads), onevision_encoder, pe_lang or genlip.
        name: the model.
        about: its resolution, data or size.
        source: the publication.
        values: ``<dataset>/<metric>`` → printed value.
    """

    set: str
    name: str
    about: str
    source: str
    values: Mapping[str, float]


@functools.cache
def load_reference_results() -> tuple[ReferenceResult, ...]:
    """All reference results."""
    rows = []
    for file in _FILES:
        with (Path(__file__).parent / file).open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                values = {name: float(text) for name, text in line.items() if name not in _DESCRIBED and text}
                described = {"about": line["about"], "source": line["source"]}
                rows.append(ReferenceResult(set=line["set"], name=line["row"], **described, values=values))
    return tuple(rows)


def select_reference_results(selectors: Sequence[str]) -> tuple[ReferenceResult, ...]:
    """The selected rows, in the order of the selectors.

    Args:
        selectors: ``SET`` for all of its rows, or ``SET:ROW``, a row's name or a pattern (``openclip:ViT-B-32/*``).

    Raises:
        UserError: no such set or row; the message lists close matches.
    """
    rows = load_reference_results()
    selected: list[ReferenceResult] = []
    for text in selectors:
        name, colon, pattern = text.partition(":")
        sets = {row.set for row in rows}
        if name not in sets:
            raise unknown_name_error(name, sets, "set of published rows")
        of_set = [row for row in rows if row.set == name]
        chosen = [row for row in of_set if not colon or row.name == pattern or fnmatch.fnmatchcase(row.name, pattern)]
        if not chosen:
            raise unknown_name_error(pattern, [row.name for row in of_set], f"published row of {name}")
        selected += [row for row in chosen if row not in selected]
    return tuple(selected)
