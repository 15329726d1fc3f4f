"""``clips-bench verify``: the harness beside CLIP_benchmark, lmms-eval's own command and open_clip's published table.

These need what a test lacks: a package, data, a re-run. What the code alone decides is in the project's tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.reference_results import select_reference_results
from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.tasks.encoders.recall import RECALL_KS, compute_ranks
from benchmarks.tasks.mllm.offline_tasks import data_root
from benchmarks.tasks.registry import configure
from benchmarks.tasks.registry import get_benchmark as find_benchmark
from benchmarks.tasks.run_benchmarks import RunConfig, run_benchmarks
from clips.errors import UserError, unknown_name_error
from clips.ranges import Positive


class CheckFailedError(Exception):
    """The harness misbehaves; the message states the found and the expected value."""


class CheckSkippedError(Exception):
    """The check could not run; the message states its requirement."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check the harness against other tools, and print a table of checks.

    Args:
        include: names of checks; all if empty.
        llava: a LLaVA directory, to run lmms-eval's own command next to the harness.
        data: the data of its tasks, as in ``clips-bench run``.
        tasks: lmms-eval's tasks for that check.
        limit: number of questions per task.
        results: a model's directory of results, for a model with results published by open_clip.
        reference_model: that model, ``ViT-B-32/openai``.
    """

    include: tuple[str, ...] = ()
    llava: str | None = None
    data: str | None = None
    tasks: tuple[str, ...] = ("pope",)
    limit: Positive = 32
    results: str | None = None
    reference_model: str | None = None

    def __post_init__(self) -> None:
        for one, other in (("llava", "data"), ("results", "reference_model")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                missing = one if getattr(self, one) is None else other
                raise UserError(f"{missing}: required, since the check needs both '{one}' and '{other}'")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    Args:
        about: the checked property.
        run: config → finding; raises `CheckFailedError` or `CheckSkippedError`.
    """

    about: str
    run: Callable[[VerifyConfig], str]


@dataclass(frozen=True)
class CheckResult:
    """The status and finding of a check."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    detail: str


def run_verify(config: VerifyConfig) -> None:
    """Print the table; the command exits with status 1 if a check failed.

    Raises:
        UserError: an unknown check, task or published model, or a missing directory.
        SystemExit: a check failed.
    """
    for name in config.include:
        if name not in CHECKS:
            raise unknown_name_error(name, CHECKS, "check")
    if config.results is not None:
        find_results_by_row(config.results, "results")  # an invalid file is rejected here, a report shows it as one
        select_reference_results([f"openclip:{config.reference_model}"])
    if config.data is not None:
        data_root(config.data)
        if not (Path(str(config.llava)) / "config.json").is_file():
            raise UserError(f"llava: {config.llava}: expected a LLaVA directory, with config.json")
        for task in config.tasks:
            find_benchmark(task)
    results = [run_check(name, config) for name in config.include or CHECKS]
    _print(results)
    if any(result.status == "failed" for result in results):
        raise SystemExit(1)


def run_check(name: str, config: VerifyConfig) -> CheckResult:
    """Run one check; any exception in it is a failure."""
    try:
        return CheckResult(name, "ok", CHECKS[name].run(config))
    except CheckSkippedError as reason:
        return CheckResult(name, "skipped", str(reason))
    except (CheckFailedError, UserError) as reason:
        return CheckResult(name, "failed", str(reason))
    except Exception as error:
        return CheckResult(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


def _print(results: Sequence[CheckResult]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "failed": "bold red", "skipped": "dim"}
    table = Table()
    for header in ("check", "", "finding"):
        table.add_column(header)
    for result in results:
        status = Text(result.status, style=styles[result.status])
        table.add_row(CHECKS[result.name].about, status, Text(strip_control_chars(result.detail)))
    console = Console(highlight=False)
    console.print(table)
    counts = {status: sum(result.status == status for result in results) for status in styles}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))


_NUM_IMAGES, _WIDTH = 300, 32


def check_clip_benchmark(_: VerifyConfig) -> str:
    """CLIP_benchmark's function on the same similarities, without ties, which it orders as ``topk`` does."""
    try:
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
    except ImportError:
        raise CheckSkippedError("CLIP_benchmark is not installed (pip install 'clips-suite[verify]')") from None
    import torch

    generator = torch.Generator().manual_seed(0)
    owner = np.repeat(np.arange(_NUM_IMAGES), 1 + np.arange(_NUM_IMAGES) % 5)  # one to five captions an image
    images = torch.nn.functional.normalize(torch.randn(_NUM_IMAGES, _WIDTH, generator=generator), dim=1)
    noise = torch.randn(len(owner), _WIDTH, generator=generator) / _WIDTH**0.5
    captions = torch.nn.functional.normalize(images[owner] + 1.5 * noise, dim=1)
    pairs = np.stack([owner, np.arange(len(owner))], axis=1)
    to_captions, to_images = compute_ranks(images, captions, pairs)
    scores = captions @ images.T
    correct = torch.as_tensor(owner)[:, None] == torch.arange(_NUM_IMAGES)[None, :]
    for k in RECALL_KS:
        for ranks, expected in (
            (to_images, recall_at_k(scores, correct, k)),
            (to_captions, recall_at_k(scores.T, correct.T, k)),
        ):
            num_different = int((ranks.hit(k) != (expected > 0).numpy()).sum())
            if num_different:
                raise CheckFailedError(f"R@{k}: {num_different} of {len(expected)} queries differ")
    equal = torch.ones(_NUM_IMAGES, 4) / 2
    by_order = (recall_at_k(equal @ equal[owner].T, correct.T, 5) > 0).float().mean()
    chance = compute_ranks(equal, equal[owner], pairs)[0].hit(5).mean()
    return (
        f"all queries agree. If all similarities are equal, CLIP_benchmark's I→T R@5 is {by_order:.1%} and depends on "
        f"the order of the captions; the harness gives {chance:.1%}, which is chance"
    )


def check_rerun(config: VerifyConfig) -> str:
    """The published recalls of an open_clip model are in the intervals of its re-run, on all images of the data."""
    if config.results is None:
        raise CheckSkippedError("needs --results DIR and --reference_model NAME, a model in open_clip's table")
    from benchmarks.analysis.compare_command import read_side
    from benchmarks.report.published import printed_numbers
    from benchmarks.report.report import build_report

    (published,) = select_reference_results([f"openclip:{config.reference_model}"])
    numbers = [
        (printed.verdict, f"{cell.column.title} {cell.number} [{cell.interval}], printed {printed.value:.1f}")
        for cell in build_report(read_side(config.results, "results")).details.scores
        for printed in printed_numbers(cell, published)
    ]
    outside = [text for verdict, text in numbers if verdict == "outside"]
    inside = [text for verdict, text in numbers if verdict == "inside"]
    if outside:
        raise CheckFailedError(f"{len(outside)} of {len(outside) + len(inside)} outside: {'; '.join(outside)}")
    if not inside:
        raise CheckSkippedError("its results have no whole benchmark named coco… or flickr30k… with intervals")
    return "; ".join(inside)


_NEW_TOKENS = 16  # answer length on both sides: tasks that set none have different defaults


def check_lmms_eval(config: VerifyConfig) -> str:
    """Run both in a temporary directory and compare."""
    if config.llava is None or config.data is None:
        raise CheckSkippedError("needs --llava DIR and --data DIR")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        expected = _run_lmms_eval(config, directory)
        benchmarks = [
            configure(name=task, data=config.data, limit=config.limit, max_new_tokens=_NEW_TOKENS)
            for task in config.tasks
        ]
        output = str(directory / "harness")
        run_benchmarks(
            RunConfig(model_name="model", output=output, llava=config.llava, benchmarks=benchmarks, device="cpu")
        )
        return "; ".join(_compare(task, directory, expected) for task in config.tasks)


def _run_lmms_eval(config: VerifyConfig, directory: Path) -> dict[str, Any]:
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
        ours, theirs = result.metrics[name].value, float(scores[name])
        if not abs(ours - theirs) <= 1e-6:
            raise CheckFailedError(f"{task} {name}: lmms-eval has {theirs:.6g}, the harness {ours:.6g}")
    return f"{task}: {len(answers)} answers equal, and so {', '.join(shared)}"


CHECKS: dict[str, Check] = {
    "clip_benchmark": Check(about="recall by CLIP_benchmark's function", run=check_clip_benchmark),
    "lmms_eval": Check(about="lmms-eval's own command", run=check_lmms_eval),
    "rerun": Check(about="a re-run of an open_clip model", run=check_rerun),
}
