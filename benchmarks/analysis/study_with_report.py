"""``clips-bench study run`` and ``rerun`` followed by the report; the study package does not depend on reports."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study import commands


def run_study_with_report(config: commands.StudyConfig) -> None:
    """Run the pending steps, then write the report and print its answer. Exit status 1 if a step failed."""
    commands.run_study_steps(config, report=_report)


def rerun_study_with_report(config: commands.RerunConfig) -> None:
    """Forget that the steps were done, then run the study and report it.

    Raises:
        UserError: a name that no step has, or another runner works in this directory.
    """
    commands.rerun_steps(config, report=_report)


def _report(output: Path) -> None:
    from benchmarks.report.report_command import ReportConfig, write_report

    write_report(ReportConfig(inputs=(str(output),)), brief=True)
