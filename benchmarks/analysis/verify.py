"""``clips-bench verify``: checks of the harness against known values; a check is one entry in ``CHECKS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.analysis import checks
from benchmarks.analysis.checks import Check, CheckFailedError, CheckSkippedError, VerifyConfig
from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.reference_results import select_reference_results
from benchmarks.tasks.mllm.offline_tasks import data_root
from benchmarks.tasks.registry import get_benchmark as find_benchmark
from clips.errors import UserError, unknown_name_error

CHECKS: dict[str, Check] = {
    "recall": Check(about="recall by its definition", run=checks.check_recall_by_definition),
    "ties": Check(about="recall of a constant model", run=checks.check_constant_model),
    "clip_benchmark": Check(about="recall by CLIP_benchmark's function", run=checks.check_clip_benchmark),
    "pope": Check(about="POPE on a known case", run=checks.check_pope),
    "mme": Check(about="MME on a known case", run=checks.check_mme),
    "vqa": Check(about="VQA accuracy on a known case", run=checks.check_vqa),
    "exact_match": Check(about="exact match on a known case", run=checks.check_exact_match),
    "captions": Check(about="CIDEr and BLEU on a known case", run=checks.check_captions),
    "tests": Check(about="statistics on known cases", run=checks.check_statistics),
    "averages": Check(about="averages of open_clip's table", run=checks.check_averages),
    "recalls": Check(about="consistency of published recalls", run=checks.check_recalls),
    "lmms_eval": Check(about="lmms-eval's own command", run=checks.check_lmms_eval),
    "rerun": Check(about="a re-run of an open_clip model", run=checks.check_rerun),
}


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
        find_results_by_row(config.results, "results")
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
