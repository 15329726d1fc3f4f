"""Every Eval Ever's schema 0.3.0: one JSON for each model and benchmark, and JSON lines with its items.

    data/BENCHMARK/ORGANIZATION/MODEL/UUID.json
    data/BENCHMARK/ORGANIZATION/MODEL/UUID_samples.jsonl

Scores, intervals and numbers of items are in the schema's own fields: ratios from 0 to 1, points as they are shown.
``additional_details`` has the whole result as JSON, except ``NOT_CARRIED``.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.exchange.imported import Imported, parse, restore, safe_name
from benchmarks.results.result_types import Metric, Result
from clips.core.content import file_hash
from clips.core.identity import digest
from clips.errors import UserError
from clips.text_files import read_json, read_json_lines, safe_json_loads
from clips.typed_data import to_plain

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = "0.3.0"
NOT_CARRIED = ("path", "items", "command", "model")
"""Fields of a result with local paths; the model's hash is carried."""
IMAGE_COLUMNS = ("thumbnail", "map")
"""Columns of items that are lost."""
_DETAILS = "clips_bench"
_FULL_MARKS = (1.0, 100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The fields of a record that are read."""

    schema_version: str
    evaluation_id: str
    source_metadata: Mapping[str, Any]
    evaluation_results: Sequence[Mapping[str, Any]]
    detailed_evaluation_results: Mapping[str, Any] | None = None


def convert(result: Result, items: pd.DataFrame | None, *, organization: str, relationship: str) -> dict[str, str]:
    """Path → text of the files of a result: of its samples, if it has items, and of its record.

    Args:
        result: with numbers.
        items: its items, or None.
        organization: who evaluated, ``source_organization_name``.
        relationship: to the model's developer: ``first_party``, ``third_party``, ``collaborative`` or ``other``.
    """
    moment = datetime.datetime.fromisoformat(result.created) if result.created else datetime.datetime.now(datetime.UTC)
    retrieved = str(int(moment.timestamp()))
    identity = f"{result.benchmark}/{organization}/{result.model_name}/{retrieved}"
    details = {name: value for name, value in to_plain(result).items() if name not in NOT_CARRIED}
    details["model"] = {name: value for name, value in result.model.items() if name == "hash"}
    unique = uuid.UUID(digest(details | {"identity": identity})[:32], version=4)
    path = "/".join(["data", *map(safe_name, (result.benchmark, organization, result.model_name)), str(unique)])
    lines = (
        () if items is None else (json.dumps(each, ensure_ascii=False) for each in _samples(result, items, identity))
    )
    samples = "".join(f"{line}\n" for line in lines)
    measured = result.measured_elsewhere
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": identity,
        "retrieved_timestamp": retrieved,
        **({"evaluation_timestamp": result.created} if result.created else {}),
        "source_metadata": {
            "source_name": "clips-bench",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": relationship,
            "additional_details": {_DETAILS: json.dumps(details, ensure_ascii=False)},
        },
        "eval_library": {
            "name": measured.get("tool", "clips-bench"),
            "version": measured.get("version") or str(result.git.get("commit") or "unknown"),
        },
        "model_info": {
            "name": result.model_name,
            "id": f"{organization}/{result.model_name}",
            "additional_details": {"deployment_type": "self_deployed", "model_availability": "unknown"},
        },
        "evaluation_results": [_metric_entry(result.benchmark, *each) for each in result.metrics.items()],
    }
    if samples:
        record["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": f"{path}_samples.jsonl",
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(samples.encode()).hexdigest(),
            "total_rows": samples.count("\n"),
        }
    return ({f"{path}_samples.jsonl": samples} if samples else {}) | {f"{path}.json": json.dumps(record, indent=2)}


def _metric_entry(benchmark: str, name: str, metric: Metric) -> dict[str, Any]:
    unit, factor = _unit(metric)
    uncertainty: dict[str, Any] = {"num_samples": metric.n}
    if metric.ci_low is not None and metric.ci_high is not None:
        ends = {"lower": metric.ci_low * factor, "upper": metric.ci_high * factor}
        uncertainty["confidence_interval"] = {**ends, "confidence_level": 0.95, "method": metric.ci_method}
    return {
        "evaluation_result_id": f"{benchmark}/{name}",
        "evaluation_name": f"{benchmark}/{name}",
        "source_data": {"dataset_name": benchmark, "source_type": "other"},
        "metric_config": {
            "metric_id": name,
            "metric_name": metric.label,
            "metric_unit": unit,
            "lower_is_better": metric.higher_is_better is False,
        },
        "score_details": {"score": metric.value * factor, "uncertainty": uncertainty},
    }


def _unit(metric: Metric) -> tuple[str, float]:
    """The unit of a record's score, and the factor from the stored value to it: proportions stay from 0 to 1."""
    is_ratio = metric.scale == 100 and metric.aggregation != "mean_of_scores"
    return ("proportion", 1.0) if is_ratio else ("points", metric.scale)


def _samples(result: Result, items: pd.DataFrame, identity: str) -> Iterator[dict[str, Any]]:
    """A sample for each item, of the first primary metric; ``metadata`` has all columns as JSON."""
    items = items.drop(columns=[name for name in IMAGE_COLUMNS if name in items]).astype(object)
    name = f"{result.benchmark}/{next(iter(result.primary), next(iter(result.metrics), ''))}"
    full = next((marks for marks in _FULL_MARKS if items["score"].max() <= marks), _FULL_MARKS[-1])
    for row in items.to_dict("records"):
        answer, score = str(row["prediction"]), float(row["score"])
        attribution = {"turn_idx": 0, "source": "output.raw", "extracted_value": answer}
        yield {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": identity,
            "model_id": f"{identity.split('/')[1]}/{result.model_name}",
            "evaluation_name": name,
            "evaluation_result_id": name,
            "sample_id": str(row["item"]),
            "sample_hash": hashlib.sha256(f"{row['question']}{row['target']}".encode()).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": str(row["question"]), "reference": [str(row["target"])]},
            "output": {"raw": [answer]},
            "answer_attribution": [attribution | {"extraction_method": "scorer", "is_terminal": True}],
            "evaluation": {"score": score if score == score else 0.0, "is_correct": score >= full},
            **({} if score == score else {"error": "the item has no score"}),
            "metadata": {column: json.dumps(_plain(value), ensure_ascii=False) for column, value in row.items()},
        }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def read(file: Path) -> list[Imported]:
    """The result of a record that `convert` made, with its items if their file is there.

    Raises:
        UserError: another tool's record, which lacks this suite's details; scores or samples that it contradicts.
    """
    import pandas as pd

    record, samples = parse(Record, read_json(file), file), file.with_name(f"{file.stem}_samples.jsonl")
    try:
        details = safe_json_loads(record.source_metadata["additional_details"][_DETAILS])
        result = restore(details, file, "its details")
        scores = {
            each["metric_config"]["metric_id"]: each["score_details"]["score"] for each in record.evaluation_results
        }
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file}: expected a record of `clips-bench export`, with the details of its result") from None
    stated = {name: metric.value * _unit(metric)[1] for name, metric in result.metrics.items()}
    earlier = {name: metric.value for name, metric in result.metrics.items()}  # points as ratios
    if scores not in (stated, earlier):
        raise UserError(f"{file}: evaluation_results: expected the scores of its details, got others")
    if record.detailed_evaluation_results is None or not samples.is_file():
        return [Imported(result)]
    if file_hash(samples) != record.detailed_evaluation_results.get("checksum"):
        raise UserError(f"{samples}: expected the file whose SHA-256 {file.name} states, got another")
    rows = [row["metadata"] for _, row in read_json_lines(samples, others=("metadata",))]
    items = pd.DataFrame([{name: json.loads(text) for name, text in row.items()} for row in rows])
    return [Imported(result, items.assign(thumbnail=None))]
