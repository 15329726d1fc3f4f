"""What a model costs, next to its scores: parameters, image tokens, resolution and the samples that its encoder saw."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.table import Table
from benchmarks.report.training_settings import relocate, training_of_result
from benchmarks.results.protocol import input_number
from benchmarks.results.results import Result, enclosing_study
from clips.core.artifact import MANIFEST, read_manifest
from clips.errors import UserError

_ABBREVIATED = 10_000


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A column of costs.

    Args:
        title: for the header.
        about: what it is of.
        values: model → number, of the models of which it is known.
    """

    title: str
    about: str
    values: Mapping[str, float]

    def text(self, row: str) -> str:
        """``2,880``, ``57.6K``, ``86.2M``; empty if it is not known."""
        value = self.values.get(row)
        if value is None or value < _ABBREVIATED:
            return "" if value is None else f"{value:,.0f}"
        power = next(power for power in (1, 2, 3) if power == 3 or round(value / 1000**power, 1) < 1000)
        return f"{value / 1000**power:,.1f}{'KMB'[power - 1]}"


def model_costs(table: Table) -> list[Cost]:
    """The costs that are known of any model; of an encoder and a LLaVA with it in one row, those of the LLaVA."""
    results: dict[str, dict[str, Result]] = {row.name: {} for row in table.rows}
    for cell in table.scores:
        for result in cell.results[:1]:
            inputs = [input_number(result.protocol, name) for name in ("tokens", "resolution")]
            results[cell.row].setdefault(f"{result.model} {inputs}", result)
    known: Sequence[tuple[str, str, Callable[[Result], float | None]]] = (
        ("parameters", "of the model, from its weights", _parameters),
        ("tokens", "per image in the LLM", lambda result: input_number(result.protocol, "tokens")),
        ("resolution", "of an image, in pixels", lambda result: input_number(result.protocol, "resolution")),
        ("samples", "that the encoder saw in its training by this suite", _samples_seen),
    )
    costs = []
    for title, about, of_result in known:
        values = {
            row: max(numbers)
            for row, of_row in results.items()
            if (numbers := [number for each in of_row.values() if (number := of_result(each)) is not None])
        }
        if values:
            costs.append(Cost(title=title, about=about, values=values))
    return costs


def _samples_seen(result: Result) -> float | None:
    settings = training_of_result(result).settings
    stated = settings.get("encoder.samples", settings.get("samples"))
    text = stated.text.replace(",", "") if stated else ""
    return float(text) if text.isdecimal() else None


def _parameters(result: Result) -> float | None:
    """None as well if the directory has another model by now."""
    path, digest = (str(result.model.get(name) or "") for name in ("path", "hash"))
    if not path or result.path is None:
        return None
    directory = relocate(path, enclosing_study(result.path), digest)
    if (directory / MANIFEST).is_file():
        with contextlib.suppress(UserError):
            return count_parameters(directory) if read_manifest(directory).get("hash") == digest else None
    return count_parameters(directory)


def count_parameters(directory: Path) -> float | None:
    """The numbers in the weights of a model's directory, without a captioner; None if there are none.

    Only the headers of the files are read.
    """
    from safetensors import SafetensorError, safe_open

    files = [directory / "open_clip_model.safetensors"]  # transformers' layout next to it has the same weights
    if not files[0].is_file():
        files = sorted(directory.glob("model*.safetensors")) if directory.is_dir() else []
    count = 0
    try:
        for file in files:
            with safe_open(file, framework="np") as weights:
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    return count or None
