"""lmms-eval's ``DATE_results.json``, with its ``DATE_samples_TASK.jsonl`` if they are in the same directory.

Versions before 0.2 wrote ``results.json`` and ``TASK.json``.

Scale: numbers are as the task's aggregation returns them, ratios from 0 to 1 for most tasks, points for MME and judges.
``METRIC_stderr,FILTER`` is the standard error of a mean over questions and is used where the items give no interval.
``METRIC_stderr_clt`` is not: lmms-eval writes the same number for POPE's accuracy, precision, recall and F1.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.exchange.imported import (
    NOT_STATED,
    Imported,
    check_scale,
    has_values,
    make_imported,
    measured_metric,
)
from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.results import columns_of
from benchmarks.results.statistics import aggregate
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores
from benchmarks.tasks.mllm.items import QuestionImage, items_table
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS, TaskMetrics, default_task_metrics
from benchmarks.tasks.mllm.unread import add_unread
from clips.core.chat_client import REASONING_TAGS
from clips.errors import UserError, error_reason
from clips.safe_text import log_info
from clips.text_files import check_keys, read_json, read_json_lines
from clips.typed_data import from_plain

if TYPE_CHECKING:
    import pandas as pd

TOOL = "lmms-eval"
_RENAMED = {"mme_percetion_score": "mme_perception_score"}  # before 0.4
_NAME_ARGUMENTS = ("peft", "delta", "pretrained", "model", "model_version", "model_name", "model_id", "path", "engine")
"""Arguments of a model that name it, as lmms-eval 0.7 looks for them; earlier versions know few of them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The fields of ``results.json`` that are read; all but the last six by task."""

    results: Mapping[str, Mapping[str, Any]]
    configs: Mapping[str, Mapping[str, Any]]
    n_samples: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    higher_is_better: Mapping[str, Mapping[str, bool | None]] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    model_name: str | None = None
    model_source: str | None = None
    lmms_eval_version: str | None = None
    system_instruction: str | None = None
    date: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def read(file: Path) -> list[Imported]:
    """The results of all tasks of a run; groups of tasks have no samples and are omitted, as are tasks without numbers.

    Raises:
        UserError: a wrong type, or samples of another run.
    """
    content = read_json(file)
    if isinstance(content, Mapping):  # "n-samples", and fields of no interest here
        names = {each.name for each in dataclasses.fields(Run)}
        content = {name: value for key, value in content.items() if (name := key.replace("-", "_")) in names}
    run = from_plain(Run, content, what=str(file))
    tasks = [_read_task(file, run, task) for task in run.results if task in run.configs]
    return [each for each in tasks if each is not None]


def _read_task(file: Path, run: Run, task: str) -> Imported | None:
    metric_list = run.configs[task].get("metric_list") or []
    if not isinstance(metric_list, list):
        raise UserError(f"{file}: expected a list in configs.{task}.metric_list, got {metric_list!r:.80}")
    defined = {  # as in lmms-eval, higher is better unless the task says something else
        _renamed(each["metric"]): each.get("higher_is_better", True)
        for each in metric_list
        if isinstance(each, Mapping) and isinstance(each.get("metric"), str)
    }
    defined |= {_renamed(name): up for name, up in run.higher_is_better.get(task, {}).items()}
    listed = TASK_METRICS.get(task)
    values, errors, filters, left_out = _numbers(run.results[task])
    if left_out:
        log_info(f"{file}: {task}: not imported: {', '.join(left_out)}")
    if defined:  # a fork adds its FLOPs, seconds and bytes to the numbers
        known = {*defined, *(listed.metrics if listed else ())}
        if others := [name for name in values if name not in known]:
            log_info(f"{file}: {task}: not imported, as the task does not define them as metrics: {', '.join(others)}")
        values = {name: value for name, value in values.items() if name in known}
    if not values:
        return None
    stated = _num_questions(run, task)
    used = {filters[name] for name in values}
    samples = _samples(file, task, stated, used)
    count = stated or len(samples)
    unlisted = {name: value for name, value in values.items() if listed is None or name not in listed.metrics}
    reader = default_task_metrics(samples, unlisted, defined)
    if listed is not None:  # mmstar's abilities, names of other versions
        reader = dataclasses.replace(listed, metrics={**reader.metrics, **listed.metrics})
    items = _items(file, task, samples, reader) if samples else None
    metrics = {
        name: measured_metric(reader.metrics[name], value, items=items, n=count, standard_error=errors.get(name))
        for name, value in values.items()
    }
    contradicted = dict[str, str]()
    means = {
        each["metric"]: each.get("aggregation")
        for each in metric_list
        if isinstance(each, Mapping) and each.get("metric")
    }
    for name, value in values.items():
        spec, agrees = reader.metrics[name], items is not None and metrics[name].aggregation is not None
        check_scale(spec, value, f"{file}: {task}: {name}", stated=name in unlisted or agrees)
        is_known = name not in unlisted or means.get(name) == "mean"  # the formula
        if items is not None and is_known and spec.aggregation and has_values(items, spec) and not agrees:
            own = aggregate(spec.aggregation, columns_of(items, spec.columns), spec.columns)
            contradicted[name] = f"{name} is {value:g}, but {own:g} by its samples"
    if contradicted:
        log_info(f"{file}: {task}: {'; '.join(contradicted.values())}: imported without an interval")
    if items is not None and all(metrics[name].aggregation for name in values if name not in unlisted):
        extra = {name: spec for name, spec in reader.extra.items() if has_values(items, spec)}
        metrics |= {name: measured_metric(spec, None, items=items) for name, spec in extra.items()}
    if items is not None and run.configs[task].get("output_type", "generate_until") == "generate_until":
        named = {name: spec for name, spec in {**reader.metrics, **reader.extra}.items() if name not in contradicted}
        unread = add_unread(items, samples, named, reader.primary)
        metrics |= {
            name: measured_metric(spec, None, items=items) for name, spec in unread.items() if has_values(items, spec)
        }
    parts = [metrics.get(f"mme_{part}_score") for part in ("perception", "cognition")]
    if listed is not None and "mme_total" in listed.extra and "mme_total" not in metrics and all(parts):
        metrics["mme_total"] = measured_metric(
            listed.extra["mme_total"], sum(each.value for each in parts if each), n=count
        )
    primary = [name for name in reader.primary if name in metrics]
    try:
        created = datetime.datetime.strptime(run.date or "", "%Y%m%d_%H%M%S").isoformat()
    except ValueError:
        created = ""
    return make_imported(
        file,
        tool=TOOL,
        # the branch and commit of the directory in which lmms-eval ran, which may be another repository than its own
        version=f"{run.lmms_eval_version} of its working directory" if run.lmms_eval_version else NOT_STATED,
        model=_model_name(run, file),
        benchmark=task,
        benchmark_type="mllm",
        metrics=metrics,
        primary=primary or [name for name in reader.metrics if name in metrics],
        settings=_settings(run, task) | _filter_entry({name: filters[name] for name in values}),
        items=items,
        contradicted="; ".join(contradicted.values()),
        created=created,
    )


def _renamed(name: str) -> str:
    return _RENAMED.get(name, name)


def _model_name(run: Run, file: Path) -> str:
    """The model's name; a file without one, as earlier versions wrote of models behind APIs, is a model of its own."""
    arguments = run.config.get("model_args") or ""
    pairs = arguments.items() if isinstance(arguments, Mapping) else re.findall(r"([^,=]+)=([^,]*)", str(arguments))
    stated = {str(name).strip(): str(value) for name, value in pairs}
    named = run.model_name or next((stated[name] for name in _NAME_ARGUMENTS if stated.get(name)), "")
    source = run.model_source or run.config.get("model") or TOOL
    return named or f"{source}-{run.date or file.absolute().parent.name}"


def _numbers(
    entries: Mapping[str, Any],
) -> tuple[dict[str, float], dict[str, float], dict[str, str], list[str]]:
    """Metric → its number, its printed standard error, and its answer filter, the first of several.

    And a text for each number that is left out: of another filter, or none that a result can have.
    """
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    filters: dict[str, str] = {}
    left_out: list[str] = []
    for key, value in entries.items():
        stated, _, answer_filter = key.partition(",")
        name = _renamed(stated)
        if "_stderr" in name or name.strip() in {"", "alias"} or value is None:  # null of a file for a server
            continue
        if not _is_number(value):
            left_out.append(f"{key} (no number: {json.dumps(value, default=str):.40})")
        elif name in values:
            left_out.append(f"{key} (as {name} has several answer filters, that of '{filters[name]}' is used)")
        else:
            values[name], filters[name] = float(value), answer_filter
            error = entries.get(f"{stated}_stderr,{answer_filter}")
            errors |= {name: float(error)} if _is_number(error) else {}  # type: ignore[arg-type]
    return values, errors, filters, left_out


def _filter_entry(filters: Mapping[str, str]) -> Entries:
    """The protocol entry on how answers were filtered; empty for lmms-eval's default, no filter."""
    if {*filters.values()} <= {"", "none"}:
        return {}
    return {"answer_filter": json.dumps(filters, ensure_ascii=False, sort_keys=True)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _samples(results: Path, task: str, count: int, filters: Collection[str]) -> list[dict[str, Any]]:
    """The samples by question, in the form of lmms-eval's own log; files since 0.2 lack the rows of the data.

    Of samples that state their answer filter, those of ``filters``.
    """
    file = results.with_name(f"{results.name.removesuffix('results.json')}samples_{task}.jsonl")
    rows: Iterable[tuple[int, dict[str, Any]]] = ()
    if file.is_file():
        rows = read_json_lines(file, others=("doc_id",))
    elif results.name == "results.json" and (file := results.with_name(f"{task}.json")).is_file():
        content = read_json(file)
        rows = enumerate(
            content["logs"] if isinstance(content, dict) and isinstance(content.get("logs"), list) else [], 1
        )
    samples: dict[int, dict[str, Any]] = {}
    of_others: Counter[str] = Counter()
    for number, row in rows:
        check_keys(row, f"{file} item {number}", texts=(), others=("doc_id",))
        if not isinstance(row["doc_id"], int):
            raise UserError(f"{file} line {number}: doc_id: expected the question's index, got {row['doc_id']!r:.60}")
        if "" not in filters and row.get("filter", "") not in {"", *filters}:
            of_others[str(row["filter"])] += 1
            continue
        row = {_renamed(name): value for name, value in row.items()}
        answer = row.get("filtered_resps", "")
        first = answer[0] if isinstance(answer, list) and answer else answer
        first = first[0] if isinstance(first, list) and first else first
        entries = [entry for entry in row.values() if isinstance(entry, dict)]  # of metrics: MME's has the category
        doc = row.get("doc") or {"category": next((entry["category"] for entry in entries if "category" in entry), "")}
        prompt = row.get("input") or next(iter(_flat(row.get("arguments"))), "")
        shape = {"doc": doc, "filtered_resps": [first], "arguments": [prompt]}
        samples.setdefault(row["doc_id"], {"target": ""} | row | shape)
    for name, skipped in of_others.items():
        log_info(f"{file}: {skipped:,} samples of the answer filter '{name:.80}' are not used, as its numbers are not")
    if samples and count and len(samples) != count:
        raise UserError(f"{file}: expected {count} questions, as the results state, got {len(samples)}")
    return [samples[number] for number in sorted(samples)]


def _flat(arguments: Any) -> list[Any]:
    """The arguments of a question's first request."""
    inner = arguments[0] if isinstance(arguments, list) and arguments else None
    return inner if isinstance(inner, list) else arguments if isinstance(arguments, list) else []


def _items(file: Path, task: str, samples: list[dict[str, Any]], reader: TaskMetrics) -> pd.DataFrame | None:
    """The items; questions whose image the file does not name count as questions about different images.

    None if the file has no scores of single questions (CIDEr), for which nocaps needs the rows of the data.
    """
    try:
        media = {each["doc_id"]: each["input_media"] for each in samples if each.get("input_media")}
        images = {number: QuestionImage(str(names[0]), None) for number, names in media.items()}
        return items_table(samples, images, reader.columns(samples, ImageCaptionScores()), reader.score)
    except KeyError:
        return None
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{file}: the samples of {task} are not lmms-eval's ({error_reason(error)})") from None


def _num_questions(run: Run, task: str) -> int:
    """The number of questions as stated, 0 if it is not: lmms-eval counts those before its ``--offset``, too."""
    counts = run.n_samples.get(task, {})
    rest = counts.get("original", 0) - int(run.config.get("offset") or 0)
    used = counts.get("effective", 0)
    return min(used, rest) if rest > 0 else used


def _settings(run: Run, task: str) -> Entries:
    config, counts, used = run.configs[task], run.n_samples.get(task, {}), _num_questions(run, task)
    arguments = run.config.get("resolved_cli_args")
    tags = arguments.get("reasoning_tags") if isinstance(arguments, Mapping) else None
    others = {
        "offset": run.config.get("offset"),
        "system_instruction": run.system_instruction,
        "reasoning_tags": "" if tags == json.dumps(REASONING_TAGS) else tags,
    }
    splits = (config.get(f"{name}_split") for name in ("test", "validation"))
    return {
        "task": f"lmms-eval's {task}",
        "dataset": str(config.get("dataset_path") or NOT_STATED),
        "split": str(next(filter(None, splits), NOT_STATED)),
        "questions": used,
        "prompt": _plain_settings(config.get("lmms_eval_specific_kwargs")),
        "decoding": _plain_settings(config.get("generation_kwargs")),
        "shots": str(config.get("num_fewshot") or 0),
        "task_version": str(run.versions.get(task, NOT_STATED)),
        **full_size_entry(used, counts.get("original", 0)),
        **{name: str(value) for name, value in others.items() if value},  # by default there are none
    }


def _plain_settings(settings: Any) -> str:
    """Nested settings as one protocol entry, without those of single models."""
    stated = settings.items() if isinstance(settings, Mapping) else ()
    plain = {name: value for name, value in stated if isinstance(value, str | int | float | bool | list)}
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)
