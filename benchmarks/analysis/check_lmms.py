"""lmms-eval's own command beside the harness: the same model, tasks and data, hence the same answers and scores."""

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

_NEW_TOKENS = 16  # an answer's cap on both sides: tasks that state none have another default in each


def check_lmms_eval(config: VerifyConfig) -> str:
    """Run both in a temporary directory and compare."""
    if config.llava is None or config.data is None:
        raise CheckSkippedError("needs --llava DIR and --data DIR")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        direct = _directly(config, folder)
        benchmarks = [
            BenchmarkConfig(name=task, data=config.data, limit=config.limit, max_new_tokens=_NEW_TOKENS)
            for task in config.tasks
        ]
        run_benchmarks(
            RunConfig(
                model_name="row", output=str(folder / "ours"), llava=config.llava, benchmarks=benchmarks, device="cpu"
            )
        )
        return "; ".join(_compare(task, folder, direct) for task in config.tasks)


def _directly(config: VerifyConfig, folder: Path) -> dict[str, Any]:
    """lmms-eval's own results, by its own command line."""
    assert config.data is not None
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_bridge", "--batch_size", "1", "--log_samples"]
    command += ["--model_args", f"pretrained={Path(str(config.llava)).resolve()},device=cpu"]
    command += ["--gen_kwargs", f"max_new_tokens={_NEW_TOKENS}", "--limit", str(config.limit)]
    command += ["--tasks", ",".join(config.tasks), "--output_path", str(folder / "direct")]
    kept = {name: str(folder / "cache") for name in ("HF_DATASETS_CACHE", "LMMS_EVAL_DATASETS_CACHE")}
    environment = os.environ | kept | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=data_root(config.data), env=environment, capture_output=True, text=True, check=False
    )
    files = [*(folder / "direct").rglob("*_results.json")]
    if not files:  # it ends with status 0 whatever happens
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise CheckFailedError(f"lmms-eval's command wrote no results: {last:.200}")
    return json.loads(files[0].read_text(encoding="utf-8"))["results"]


def _compare(task: str, folder: Path, direct: dict[str, Any]) -> str:
    result = read_result(result_path(folder / "ours", "row", task))
    (samples,) = (folder / "direct").rglob(f"*_samples_{task}.jsonl")
    lines = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    theirs = [str(line["filtered_resps"]) for line in sorted(lines, key=lambda line: line["doc_id"])]
    ours = read_items(result)["prediction"].tolist()
    unlike = sum(one != other for one, other in zip(ours, theirs, strict=True))
    if unlike:
        raise CheckFailedError(f"{task}: {unlike} of {len(ours)} answers differ")
    scores = {key.partition(",")[0]: value for key, value in direct[task].items()}
    shared = [name for name in result.metrics if isinstance(scores.get(name), int | float)]
    if not shared:
        raise CheckFailedError(f"{task}: no score in common")
    for name in shared:
        expect_close(result.metrics[name].value, float(scores[name]), f"{task} {name}")
    return f"{task}: {len(ours)} answers equal, and so {', '.join(shared)}"
