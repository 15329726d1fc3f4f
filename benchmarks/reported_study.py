"""``clips-bench study run`` and ``rerun``: where a study meets its report, of which its steps know nothing."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study import commands, upkeep


def run_study(config: commands.StudyConfig) -> None:
    """Run what is missing, then write the report and print its table. Exit status 1 where a step failed."""
    commands.run_study(config, report=_report)


def rerun(config: upkeep.RerunConfig) -> None:
    """Forget that the steps were done, then run the study and report it.

    Raises:
        UserError: a name that no step has, or another runner works in this directory.
    """
    upkeep.rerun(config, report=_report)


def _report(output: Path) -> None:
    from benchmarks.report.command import ReportConfig, report

    report(ReportConfig(directory=str(output)))
