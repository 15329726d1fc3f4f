"""Results that contradict each other: other numbers for the same answers, model and protocol."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.results.baselines import WITHOUT_IMAGE
from benchmarks.results.formatting import join_with_and
from benchmarks.results.protocol import ranked_together
from benchmarks.results.results import Result, has_items, read_items


def contradictions(results: Mapping[str, Result]) -> Iterator[str]:
    """A sentence for each contradiction between results on one benchmark.

    Only answers of a LLaVA determine a score: an encoder's items store what was found first, not all that was ranked.

    Args:
        results: name in the sentence → result.

    Raises:
        UserError: the items of a result cannot be read.
    """
    measured = [(name, each) for name, each in results.items() if each.benchmark_type == "mllm" and each.metrics]
    for (name, first), (other, second) in itertools.combinations(measured, 2):
        model = first.model.get("hash")
        if not model or model != second.model.get("hash") or not ranked_together(first.protocol, second.protocol):
            continue
        differing = [*_differing(first, second)]
        if differing and _have_same_answers(first, second):
            numbers = differing[:3] + ([f"{len(differing) - 3} more"] if len(differing) > 3 else [])
            yield (
                f"{name} and {other} contradict each other on {first.benchmark}: the same answers have other numbers "
                f"under the same protocol ({join_with_and(numbers)}), so they were not scored by the same code"
                f"{' or judge' if 'judge' in first.protocol else ''}."
            )


def _differing(first: Result, second: Result) -> Iterable[str]:
    for name in dict.fromkeys((*first.primary, *first.metrics)):
        one, other = first.metrics.get(name), second.metrics.get(name)
        if one and one.condition in WITHOUT_IMAGE:
            continue  # of other answers, and blind runs may ask other parts of the questions
        if one and other and not math.isclose(one.value, other.value, rel_tol=1e-6, abs_tol=1e-9):
            yield f"{one.label} {one.value * one.scale:.1f} and {other.value * other.scale:.1f}"


def _have_same_answers(first: Result, second: Result) -> bool:
    """Whether the items have the same predictions; unknown without them, and then no contradiction."""
    if not (has_items(first) and has_items(second)):
        return False
    one, other = (read_items(each).set_index("item")["prediction"].sort_index() for each in (first, second))
    return bool(one.equals(other))
