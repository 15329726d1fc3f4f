"""The Hub's evaluation results of a model repository, ``.eval_results/BENCHMARK.yaml``.

An entry has a dataset, a task, a value and free notes. The value is as shown, in per cent where this suite shows per
cent. The metric, its interval and its number of items are in the notes, as text and as JSON, from which `read` restores
them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.exchange.imported import Imported, parse, restore
from benchmarks.results.formatting import format_number
from benchmarks.results.protocol import fingerprint
from benchmarks.results.result_types import Metric, Result
from clips.errors import UserError
from clips.text_files import read_yaml, safe_json_loads
from clips.typed_data import to_plain

CARRIED = ("model_name", "benchmark", "benchmark_type", "status", "primary", "fingerprint", "created", "metrics")
"""The fields of a result that the notes hold; the others are lost, of the protocol all but its fingerprint."""
_MARK = "; clips-bench: "


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The fields of an entry that are read."""

    dataset: dict[str, Any]
    value: float
    notes: str = ""


def convert(result: Result, dataset: str) -> dict[str, str]:
    """Path → text of the file of one result, with an entry for each metric.

    Args:
        result: with numbers.
        dataset: the benchmark's repository on the Hub; its leaderboard matches ``task_id``, which is the benchmark's
            name for the first primary metric, and ``BENCHMARK_METRIC`` for the others.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    names = [name for name in dict.fromkeys([*result.primary, *result.metrics]) if name in result.metrics]
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{result.benchmark}_{name}" if index else result.benchmark,
            value=result.metrics[name].value * result.metrics[name].scale,
            date=result.created or None,
            notes=_notes(result, name),
        )
        for index, name in enumerate(names)
    ]
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{result.benchmark}.yaml": text}


def _notes(result: Result, name: str) -> str:
    metric = result.metrics[name]
    parts = [metric.label]
    if metric.ci_low is not None and metric.ci_high is not None:
        ends = [format_number(end * metric.scale, 2) for end in (metric.ci_low, metric.ci_high)]
        parts.append(f"95 % interval {ends[0]} to {ends[1]}")
    parts += [f"{metric.n} items"] if metric.n else []
    parts += [f"measured by {result.measured_elsewhere['tool']}"] if result.measured_elsewhere else []
    one = replace(result, metrics={name: metric})
    details = {field: to_plain(getattr(one, field)) for field in CARRIED}
    return f"{', '.join(parts).replace(_MARK, ' ')}{_MARK}{json.dumps(details, ensure_ascii=False)}"


def read(file: Path) -> list[Imported]:
    """The result of a file that `convert` made.

    Raises:
        UserError: another tool's file, which states neither metric nor scale, or a value that its notes contradict.
    """
    content = read_yaml(file)
    if not isinstance(content, list) or not content:
        raise UserError(f"{file}: expected the Hub's evaluation results, a list of entries with dataset and value")
    metrics: dict[str, Metric] = {}
    for number, plain in enumerate(content, 1):
        entry = parse(Entry, plain, file)
        try:
            details = safe_json_loads(entry.notes.partition(_MARK)[2])
            protocol = {"task": details["benchmark"], "measured_elsewhere": f"protocol {details['fingerprint']}"}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}: entry {number}: notes: expected those of `clips-bench export`") from None
        about = {"protocol": protocol, "fingerprint": fingerprint(protocol)}
        result = restore(details | about, file, f"protocol {details['fingerprint']}")
        for name, metric in result.metrics.items():
            if name in metrics or not math.isclose(entry.value, metric.value * metric.scale, rel_tol=1e-9):
                raise UserError(f"{file}: entry {number}: value: expected {name} once, with the value of its notes")
            metrics[name] = metric
    return [Imported(replace(result, metrics=metrics))]
