"""``clips-bench card DIR --results PATH``: the README.md of an encoder or a LLaVA, with its evaluation results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.analysis.diff_command import metric_column
from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.report.cell_text import decimals
from benchmarks.report.formats.markdown import markdown_frame
from benchmarks.report.load_results import stale_results
from benchmarks.report.notes import SYNTHETIC_DATA_NOTE
from benchmarks.report.text_table import markdown_table
from benchmarks.results.formatting import commit_text, format_duration, format_number
from benchmarks.results.results import Metric, Result
from benchmarks.study.study_record import RECORD_FILE, read_study_record
from benchmarks.study.training_settings import read_training
from benchmarks.tasks.sizes import item_count_text
from clips.core.artifact import atomic_write, directory_hash, log_info, read_manifest
from clips.data.formats.dataset_format import WHOLE
from clips.errors import UserError, error_reason
from clips.model_card import MODEL_CARD
from clips.safe_text import escape_markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

_BEGIN, _END = "<!-- clips-bench: evaluation -->", "<!-- clips-bench: end of evaluation -->"
_TASKS = {
    "retrieval": "zero-shot-retrieval",
    "classification": "zero-shot-image-classification",
    "choice": "image-text-matching",
    "mllm": "image-text-to-text",
}
_NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """Write the evaluation results into a model's card, README.md: a table for readers, ``model-index`` for the Hub.

    It uses only results with this model's hash, and of a study only those that are up to date. Other content of the
    card stays; a model without a card gets one from its manifest.

    Args:
        directory: the encoder or LLaVA.
        results: a study's output, a directory of results, or a model's directory.
        model_name: in the card's title and metadata; by default the directory's.
    """

    directory: str
    results: str
    model_name: str | None = None


def run_card(config: CardConfig) -> None:
    """Write the card.

    Raises:
        UserError: no complete model there, no up-to-date results of it, or an unreadable card.
    """
    directory = Path(config.directory)
    manifest = read_manifest(directory)
    if "hash" not in manifest or "kind" not in manifest:
        raise UserError(f"{directory}: expected an encoder or a LLaVA with a manifest of this suite")
    model = directory_hash(directory)
    results = [result for row in find_results_by_row(config.results, "results").values() for result in row.values()]
    own = [result for result in results if result.model.get("hash") == model]
    if not own:
        raise UserError(
            f"results: none of the {len(results)} results in {config.results} is of {directory} ({model[:12]})"
        )
    stale = stale_results(own)
    left_out = [f"{each.benchmark}: out of date ({stale[each.path]})" for each in own if each.path in stale]
    own = [result for result in own if result.path not in stale]
    if not own:
        raise UserError(f"results: {config.results}: nothing of {directory} is up to date: {'; '.join(left_out)}")
    name = config.model_name or directory.resolve().name
    notes = [SYNTHETIC_DATA_NOTE] if _uses_synthetic_data(Path(config.results)) else []
    card = add_evaluation_section(_load_card(directory, manifest, name), own, name, notes, left_out)
    atomic_write(directory / MODEL_CARD, str(card))
    log_info(f"card: {directory / MODEL_CARD}, with {', '.join(result.benchmark for result in own)}")
    for line in left_out:
        log_info(f"skipped: {line}")


def _uses_synthetic_data(directory: Path) -> bool:
    """Whether this is a study that generated its data."""
    if not (directory / RECORD_FILE).is_file():
        return False
    return any(step.command.startswith("clips scenes") for step in read_study_record(directory).steps.values())


def add_evaluation_section(
    existing: ModelCard,
    results: Sequence[Result],
    name: str,
    notes: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> ModelCard:
    """The card with its evaluation section and metadata from ``results``.

    Args:
        existing: the current card.
        results: the results of this model.
        name: the model's name, in the metadata.
        notes: caveats for readers of the numbers.
        left_out: as text, the excluded results with the reasons.
    """
    from huggingface_hub import ModelCard, ModelCardData

    entries = [entry for result in results for entry in eval_results(result)]
    data = existing.data
    assert isinstance(data, ModelCardData)  # ModelCard itself, despite its annotation
    data.model_name, data.eval_results = name, entries or None
    section = _render(
        "results.md.jinja",
        begin=_BEGIN,
        end=_END,
        results=[result for result in results if result.metrics],
        missing=[*_missing(results), *left_out],
        notes=notes,
        metrics_table=_metrics_table,
        protocol_table=_protocol_table,
    ).strip()
    text = re.sub(f"\n*{_BEGIN}.*?{_END}\n*", "\n\n", existing.text, flags=re.DOTALL).strip()
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n\n{section}\n")


def eval_results(result: Result) -> list[EvalResult]:
    """A result's primary metrics for the Hub's ``model-index``, scaled for display."""
    from huggingface_hub import EvalResult

    split = result.protocol.get("split")
    return [
        EvalResult(
            task_type=_TASKS.get(result.benchmark_type, result.benchmark_type),
            dataset_type=result.benchmark,
            dataset_name=result.benchmark,
            dataset_split=str(split) if split not in {None, WHOLE} else None,
            dataset_args={"data_hash": str(result.protocol.get("data_hash", _NOT_STATED))},
            metric_type=metric_name,
            metric_name=metric.label,
            metric_value=round(metric.value * metric.scale, 4),
            metric_args={
                "interval_95": [
                    None if end is None else round(end * metric.scale, 4) for end in (metric.ci_low, metric.ci_high)
                ],
                "items": metric.n,
                "protocol": result.fingerprint,
            },
        )
        for metric_name, metric in _primary_metrics(result).items()
    ]


def _primary_metrics(result: Result) -> dict[str, Metric]:
    return {name: result.metrics[name] for name in result.primary if name in result.metrics}


def _metrics_table(results: Sequence[Result]) -> str:
    import pandas as pd

    lines = [
        {
            "benchmark": escape_markdown(result.benchmark),
            "metric": escape_markdown(metric.label) + (" ↓" if metric.higher_is_better is False else ""),
            "value": _value(metric),
            "items": item_count_text(result, metric),
            "protocol": f"`{result.fingerprint[:12]}`",
        }
        for result in results
        for metric in _primary_metrics(result).values()
    ]
    columns = ["benchmark", "metric", "value", "items", "protocol"]
    return markdown_table(pd.DataFrame(lines, columns=columns).set_index("benchmark"), left=("metric", "protocol"))


def _protocol_table(result: Result) -> str:
    import pandas as pd

    lines = [
        (escape_markdown(name.replace("_", " ")), escape_markdown(str(result.protocol[name])))
        for name in result.protocol
    ]
    lines += [("measured", escape_markdown(result.created)), ("model", f"`{result.model.get('hash', '')[:12]}`")]
    lines.append(("suite", escape_markdown(commit_text(result.git) or "commit not known")))
    return markdown_table(pd.DataFrame(lines, columns=["name", ""]).set_index("name").rename_axis(None), left=("",))


def _value(metric: Metric) -> str:
    places, interval = decimals(metric_column(metric)), "no interval"
    if metric.ci_low is not None and metric.ci_high is not None:
        ends = (metric.ci_low, metric.ci_high)
        interval = ", ".join(format_number(end * metric.scale, places) for end in ends)
    return f"{format_number(metric.value * metric.scale, places)} [{interval}]"


def _missing(results: Sequence[Result]) -> Iterator[str]:
    """As text, the missing numbers with the reasons."""
    for result in results:
        if result.status == "failed":
            yield f"{result.benchmark}: failed ({result.failure_reason or 'no reason was recorded'})"
        for name, reason in result.missing_metrics.items():
            yield f"{result.benchmark}, {name}: {reason}"


def _load_card(directory: Path, manifest: Mapping[str, Any], name: str) -> ModelCard:
    """The model's card; a new one from the manifest if there is none."""
    from huggingface_hub import ModelCard

    path = directory / MODEL_CARD
    try:
        return ModelCard.load(path) if path.is_file() else ModelCard(_new_card(directory, manifest, name))
    except Exception as error:  # of YAML, the Hub's checks or the file system
        raise UserError(f"{path}: not a valid model card ({error_reason(error)})") from None


def _new_card(directory: Path, manifest: Mapping[str, Any], name: str) -> str:
    import pandas as pd
    import yaml

    kind = manifest["kind"]
    metadata = {"license": str(manifest.get("license") or "unknown")}
    if kind == "llava":
        metadata |= {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    facts = pd.DataFrame({"": training_facts(manifest, read_training(directory).main)})
    body = _render("model.md.jinja", title=name, kind=kind, facts=markdown_frame(facts, left=("",)))
    return f"---\n{yaml.safe_dump(metadata)}---\n{body}"


def training_facts(manifest: Mapping[str, Any], training: Mapping[str, str]) -> dict[str, str]:
    """The training of a model according to its manifest; missing facts appear as not stated.

    Args:
        manifest: the model's manifest.
        training: the main training settings, as text.
    """
    stages = manifest.get("stages") or {}
    llava_stages = stages if isinstance(stages, Mapping) else {}
    losses = {f"{name}, loss at its end": stage.get("loss") for name, stage in llava_stages.items()}
    git = manifest.get("git") or {}
    seconds = _seconds(manifest, [*llava_stages.values()] if llava_stages else [*stages])
    return {
        **({} if any(name.endswith("data") for name in training) else {"data": _NOT_STATED}),
        "seed": _NOT_STATED,
        **training,
        **{name: f"{loss:.3f}" for name, loss in losses.items() if isinstance(loss, int | float)},
        "training time": format_duration(seconds) if isinstance(seconds, int | float) else _NOT_STATED,
        "license of the weights": str(manifest.get("license") or _NOT_STATED),
        "suite": commit_text(git) or _NOT_STATED,
    }


def _seconds(manifest: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> Any:
    """Training time of all stages; the top-level field of an encoder's manifest is that of the last stage."""
    seconds = [each for stage in stages if isinstance(each := stage.get("seconds"), int | float)]
    return sum(seconds) if seconds and len(seconds) == len(stages) else manifest.get("seconds")


def _render(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the filter `text` escapes Markdown
    )
    environment.filters["text"] = escape_markdown
    return environment.get_template(template).render(values)
