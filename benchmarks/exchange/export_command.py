"""``clips-bench export RESULTS --format FORMAT --output DIR``: results for the Hub, or for Every Eval Ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.exchange import eval_results, every_eval_ever
from benchmarks.results.results import Result, has_items, read_items, read_results
from benchmarks.tasks.registry import BENCHMARKS
from clips.core.artifact import atomic_write, log_info, writable_directory
from clips.errors import UserError, unknown_name_error


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write results in another project's format.

    Args:
        results: a directory of results, or a study's output.
        output: the directory to write to. For ``eval_results`` the files are ``.eval_results/BENCHMARK.yaml`` in it, so
            it is a model's directory; for ``every_eval_ever`` ``data/BENCHMARK/ORGANIZATION/MODEL/``.
        format: ``eval_results`` (the Hub's) or ``every_eval_ever``.
        model_name: the model to export; ``eval_results`` needs it if there are several.
        datasets: benchmark → its dataset on the Hub, ``{pope: ORG/NAME}``, for ``eval_results``; by default that of
            `clips-bench list`.
        organization: who evaluated, for ``every_eval_ever``.
        relationship: of that organization to the model, for ``every_eval_ever``.
    """

    results: str
    output: str
    format: Literal["eval_results", "every_eval_ever"]
    model_name: str | None = None
    datasets: Mapping[str, str] = field(default_factory=dict)
    organization: str = "unknown"
    relationship: Literal["first_party", "third_party", "collaborative", "other"] = "other"


def run_export(config: ExportConfig) -> None:
    """Convert all results, then write them.

    Raises:
        UserError: no results, an unknown model, or several models where the format has one.
    """
    root = Path(config.results)
    found = read_results(root / "results" if (root / "results").is_dir() else root)
    models = list(dict.fromkeys(result.model_name for result in found))
    if config.model_name is not None and config.model_name not in models:
        raise unknown_name_error(config.model_name, models, "model")
    if config.format == "eval_results" and config.model_name is None and len(models) > 1:
        raise UserError(f"model_name: expected one of {', '.join(models)}: the files belong to one model's repository")
    chosen = [result for result in found if config.model_name in {None, result.model_name} and result.metrics]
    texts = {name: text for result in chosen for name, text in _convert(config, result).items()}
    if not texts:
        raise UserError(f"{config.results}: expected results with numbers and known datasets, found none")
    directory = writable_directory(config.output)
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / name, text)
        log_info(f"{directory / name}")


def _convert(config: ExportConfig, result: Result) -> dict[str, str]:
    """Path → text of a result's files."""
    if config.format == "every_eval_ever":
        items = read_items(result) if has_items(result) else None
        about = {"organization": config.organization, "relationship": config.relationship}
        return every_eval_ever.convert(result, items, **about)
    task = str(result.protocol.get("task", "")).removeprefix("lmms-eval's ")
    entry = BENCHMARKS.get(task) or BENCHMARKS.get(result.benchmark)
    dataset = config.datasets.get(result.benchmark) or (entry.dataset if entry else "")
    if not dataset:
        log_info(f"skipped: {result.benchmark}: no dataset of the Hub is known; state it in --datasets")
        return {}
    return eval_results.convert(result, dataset)
