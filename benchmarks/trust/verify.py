"""``clips-bench verify``: the harness against what is known; a check is one entry in ``CHECKS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.catalogue import find as find_benchmark
from benchmarks.mllm.tasks import data_root
from benchmarks.published.rows import select_rows
from benchmarks.trust import check_lmms, check_published, check_recall, check_scorers
from benchmarks.trust.checking import Check, CheckFailedError, CheckSkippedError, VerifyConfig
from benchmarks.trust.rows import find_rows
from benchmarks.wording import visible
from clips.errors import UserError, suggest

CHECKS: dict[str, Check] = {
    "recall": Check(about="recall by its definition", run=check_recall.recall_by_definition),
    "ties": Check(about="recall of a model that cannot tell", run=check_recall.recall_of_a_constant_model),
    "clip_benchmark": Check(about="recall by CLIP_benchmark's function", run=check_recall.recall_of_clip_benchmark),
    "pope": Check(about="POPE by hand", run=check_scorers.pope),
    "mme": Check(about="MME by hand", run=check_scorers.mme),
    "vqa": Check(about="VQA accuracy by hand", run=check_scorers.vqa),
    "exact_match": Check(about="exact match by hand", run=check_scorers.exact_match),
    "captions": Check(about="CIDEr and BLEU by hand", run=check_scorers.captions),
    "tests": Check(about="intervals and corrections by hand", run=check_scorers.tests),
    "averages": Check(about="averages of open_clip's table", run=check_published.averages),
    "recalls": Check(about="published recalls among themselves", run=check_published.recalls),
    "lmms_eval": Check(about="lmms-eval's own command", run=check_lmms.lmms_eval),
    "rerun": Check(about="a re-run of an open_clip model", run=check_published.rerun),
}


@dataclass(frozen=True)
class Finding:
    """How a check ended, and what it found."""

    name: str
    outcome: Literal["ok", "failed", "skipped"]
    detail: str


def verify(config: VerifyConfig) -> None:
    """Print the table; the command ends with status 1 where a check failed.

    Raises:
        UserError: an unknown check, task or published row, or a directory that is not there.
        SystemExit: some check failed.
    """
    for name in config.only:
        if name not in CHECKS:
            raise suggest(name, CHECKS, "check")
    if config.results is not None:
        find_rows(config.results, "results")
        select_rows([f"openclip:{config.published}"])
    if config.data is not None:
        data_root(config.data)
        if not (Path(str(config.llava)) / "config.json").is_file():
            raise UserError(f"llava: {config.llava}: expected a LLaVA directory, with config.json")
        for task in config.tasks:
            find_benchmark(task)
    findings = [find(name, config) for name in config.only or CHECKS]
    _print(findings)
    if any(finding.outcome == "failed" for finding in findings):
        raise SystemExit(1)


def find(name: str, config: VerifyConfig) -> Finding:
    """Make one check; whatever breaks in it is a failure."""
    try:
        return Finding(name, "ok", CHECKS[name].run(config))
    except CheckSkippedError as reason:
        return Finding(name, "skipped", str(reason))
    except (CheckFailedError, UserError) as reason:
        return Finding(name, "failed", str(reason))
    except Exception as error:
        return Finding(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "failed": "bold red", "skipped": "dim"}
    table = Table()
    for head in ("check", "", "what was found"):
        table.add_column(head)
    for finding in findings:
        about = CHECKS[finding.name].about
        table.add_row(about, Text(finding.outcome, style=styles[finding.outcome]), Text(visible(finding.detail)))
    console = Console(highlight=False)
    console.print(table)
    counts = {kind: sum(finding.outcome == kind for finding in findings) for kind in styles}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
