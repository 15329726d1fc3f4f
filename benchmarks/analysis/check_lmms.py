"""Comparison with lmms-eval's own command: the same model, tasks and data must give the same answers and scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.analysis.check_base import CheckFailedError, CheckSkippedError, VerifyConfig, expect_close
from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.tasks.mllm.offline_tasks import data_root
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig

_NEW_TOKENS = 16  # answer length on both sides: tasks that set none have different defaults


def check_lmms_eval(config: VerifyConfig) -> str:
    """Run both in a temporary directory and compare."""
    if config.llava is None or config.data is None:
        raise CheckSkippedError("needs --llava DIR and --data DIR")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        expected = _run_lmms_eval(config, directory)
        benchmarks = [
            BenchmarkConfig(name=task, data=config.data, limit=config.limit, max_new_tokens=_NEW_TOKENS)
            for task in config.tasks
        ]
        output = str(directory / "harness")
        run_benchmarks(
            RunConfig(model_name="model", output=output, llava=config.llava, benchmarks=benchmarks, device="cpu")
        )
        return "; ".join(_compare(task, directory, expected) for task in config.tasks)


def _run_lmms_eval(config: VerifyConfig, directory: Path) -> dict[str, Any]:
    """The results of lmms-eval's own command."""
    assert config.data is not None
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_bridge", "--batch_size", "1", "--log_samples"]
    command += ["--model_args", f"pretrained={Path(str(config.llava)).resolve()},device=cpu"]
    command += ["--gen_kwargs", f"max_new_tokens={_NEW_TOKENS}", "--limit", str(config.limit)]
    command += ["--tasks", ",".join(config.tasks), "--output_path", str(directory / "lmms_eval")]
    caches = {name: str(directory / "cache") for name in ("HF_DATASETS_CACHE", "LMMS_EVAL_DATASETS_CACHE")}
    environment = os.environ | caches | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    process = subprocess.run(
        command, cwd=data_root(config.data), env=environment, capture_output=True, text=True, check=False
    )
    files = [*(directory / "lmms_eval").rglob("*_results.json")]
    if not files:  # its exit status is always 0
        last_line = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckFailedError(f"lmms-eval's command wrote no results: {last_line:.200}")
    return json.loads(files[0].read_text(encoding="utf-8"))["results"]


def _compare(task: str, directory: Path, expected: dict[str, Any]) -> str:
    result = read_result(result_path(directory / "harness", "model", task))
    (samples,) = (directory / "lmms_eval").rglob(f"*_samples_{task}.jsonl")
    lines = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    expected_answers = [str(line["filtered_resps"]) for line in sorted(lines, key=lambda line: line["doc_id"])]
    answers = read_items(result)["prediction"].tolist()
    num_different = sum(one != other for one, other in zip(answers, expected_answers, strict=True))
    if num_different:
        raise CheckFailedError(f"{task}: {num_different} of {len(answers)} answers differ")
    scores = {key.partition(",")[0]: value for key, value in expected[task].items()}
    shared = [name for name in result.metrics if isinstance(scores.get(name), int | float)]
    if not shared:
        raise CheckFailedError(f"{task}: no score in common")
    for name in shared:
        expect_close(result.metrics[name].value, float(scores[name]), f"{task} {name}")
    return f"{task}: {len(answers)} answers equal, and so {', '.join(shared)}"
