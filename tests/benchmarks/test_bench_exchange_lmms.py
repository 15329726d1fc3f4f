"""Files that lmms-eval's own code writes about the listed tasks are imported with its numbers and their items."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_world as world
import pytest
from bench_tasks import PICTURES, TASKS, mmbench, write_task
from families import quick_of

from benchmarks.exchange.import_command import ImportConfig, run_import
from benchmarks.results.results import read_items, read_result
from benchmarks.tasks.mllm.llava_model import RecordedAnswersModel
from benchmarks.tasks.mllm.offline_tasks import go_offline, load_task, manager, suppress_output
from benchmarks.tasks.registry import get_benchmark

pytestmark = world.LMMS_EVAL_WARNS
WITHOUT_INTERVAL = {"ocrbench_accuracy", "math"}  # points of 1,000, not of these questions; of mmstar, not listed


def write_by_lmms_eval(name: str, folder: Path, columns: dict[str, list[Any]], split: str, said: Sequence[str]) -> Path:
    """The results and samples of a task, by lmms-eval's evaluator and logger; the last answer is repeated."""
    go_offline()
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    entry = get_benchmark(name)
    write_task(folder / "hub", name, columns, split)
    task = load_task(entry.task, entry.folder, folder / "hub", entry.dataset)
    answers = {number: said[min(number, len(said) - 1)] for number in range(PICTURES)}
    command = argparse.Namespace(output_path=str(folder), process_with_media=False)
    with suppress_output():
        found = simple_evaluate(
            model=RecordedAnswersModel(answers), tasks=[task], task_manager=manager(entry.folder), log_samples=True,
            process_docs_parallel=1, cli_args=command,
        )  # fmt: skip
        samples = found.pop("samples")
        tracker = EvaluationTracker(output_path=str(folder / "out"))
        tracker.general_config_tracker.model_name = tracker.general_config_tracker.model_name_sanitized = "theirs"
        tracker.save_results_aggregated(found, samples, "20261127_000000")
        for each, rows in samples.items():
            tracker.save_results_samples(each, rows)
    (file,) = (folder / "out").rglob("*_results.json")
    return file


@pytest.mark.parametrize("name", quick_of(TASKS, "ocrbench", "mmstar", "ai2d"))
def test_every_number_with_its_items(name: str, tmp_path: Path) -> None:
    file = write_by_lmms_eval(name, tmp_path, *TASKS[name][:3])
    theirs = json.loads(file.read_text(encoding="utf-8"))["results"][get_benchmark(name).task]
    run_import(ImportConfig(files=(str(file),), output=str(tmp_path / "imported")))
    result = read_result(tmp_path / f"imported/theirs/{name}.json")
    numbers = {key.partition(",")[0]: value for key, value in theirs.items() if isinstance(value, float)}
    numbers = {key: value for key, value in numbers.items() if "_stderr" not in key}
    assert numbers
    for metric, value in numbers.items():
        found = result.metrics[metric]
        assert found.value == value
        assert (found.ci_low is None) == (metric in WITHOUT_INTERVAL)
    by_hand = {metric: value for metric, value in TASKS[name][3].items() if metric != "ocrbench_points"}
    assert {metric: result.metrics[metric].value for metric in by_hand} == pytest.approx(by_hand)
    assert len(read_items(result)) == PICTURES


def test_mmbench_has_its_number_of_questions_and_no_interval(tmp_path: Path) -> None:
    """lmms-eval grades it at the end, so that no sample has a score."""
    file = write_by_lmms_eval("mmbench_en_dev_static", tmp_path, mmbench(), "dev", ["A"])
    run_import(ImportConfig(files=(str(file),), output=str(tmp_path / "imported")))
    result = read_result(tmp_path / "imported/theirs/mmbench_en_dev_static.json")
    assert result.metrics.keys() == {"gpt_eval_score", "unread"}
    metric = result.metrics["gpt_eval_score"]
    assert (metric.n, metric.ci_low, metric.ci_method) == (PICTURES, None, "none")
    assert read_items(result)["prediction"].tolist() == ["A"] * PICTURES
