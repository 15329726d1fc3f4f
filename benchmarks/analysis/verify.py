"""``clips-bench verify``: the harness against what is known; a check is one entry in ``CHECKS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.analysis import check_lmms, check_recall, check_reference_results, check_scorers
from benchmarks.analysis.check_base import Check, CheckFailedError, CheckSkippedError, VerifyConfig
from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.reference_results.load import select_reference_results
from benchmarks.tasks.mllm.offline_tasks import data_root
from benchmarks.tasks.registry import get_benchmark as find_benchmark
from clips.errors import UserError, unknown_name_error

CHECKS: dict[str, Check] = {
    "recall": Check(about="recall by its definition", run=check_recall.check_recall_by_definition),
    "ties": Check(about="recall of a model that cannot tell", run=check_recall.check_constant_model),
    "clip_benchmark": Check(about="recall by CLIP_benchmark's function", run=check_recall.check_clip_benchmark),
    "pope": Check(about="POPE by hand", run=check_scorers.check_pope),
    "mme": Check(about="MME by hand", run=check_scorers.check_mme),
    "vqa": Check(about="VQA accuracy by hand", run=check_scorers.check_vqa),
    "exact_match": Check(about="exact match by hand", run=check_scorers.check_exact_match),
    "captions": Check(about="CIDEr and BLEU by hand", run=check_scorers.check_captions),
    "tests": Check(about="intervals and corrections by hand", run=check_scorers.check_statistics),
    "averages": Check(about="averages of open_clip's table", run=check_reference_results.check_averages),
    "recalls": Check(about="published recalls among themselves", run=check_reference_results.check_recalls),
    "lmms_eval": Check(about="lmms-eval's own command", run=check_lmms.check_lmms_eval),
    "rerun": Check(about="a re-run of an open_clip model", run=check_reference_results.check_rerun),
}


@dataclass(frozen=True)
class CheckResult:
    """How a check ended, and what it found."""

    name: str
    outcome: Literal["ok", "failed", "skipped"]
    detail: str


def run_verify(config: VerifyConfig) -> None:
    """Print the table; the command ends with status 1 where a check failed.

    Raises:
        UserError: an unknown check, task or published row, or a directory that is not there.
        SystemExit: some check failed.
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
    findings = [run_check(name, config) for name in config.include or CHECKS]
    _print(findings)
    if any(finding.outcome == "failed" for finding in findings):
        raise SystemExit(1)


def run_check(name: str, config: VerifyConfig) -> CheckResult:
    """Make one check; whatever breaks in it is a failure."""
    try:
        return CheckResult(name, "ok", CHECKS[name].run(config))
    except CheckSkippedError as reason:
        return CheckResult(name, "skipped", str(reason))
    except (CheckFailedError, UserError) as reason:
        return CheckResult(name, "failed", str(reason))
    except Exception as error:
        return CheckResult(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


def _print(findings: Sequence[CheckResult]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "failed": "bold red", "skipped": "dim"}
    table = Table()
    for head in ("check", "", "what was found"):
        table.add_column(head)
    for finding in findings:
        about = CHECKS[finding.name].about
        table.add_row(
            about, Text(finding.outcome, style=styles[finding.outcome]), Text(strip_control_chars(finding.detail))
        )
    console = Console(highlight=False)
    console.print(table)
    counts = {kind: sum(finding.outcome == kind for finding in findings) for kind in styles}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
