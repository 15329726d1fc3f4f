"""The figures of a report, for the formats that have them as files."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report.curves import learning_curves
from benchmarks.report.model import Report
from benchmarks.report.settings import setting_panels
from benchmarks.report.source import few_rows


def figures(report: Report) -> Mapping[str, str]:
    """Name → ``<svg>`` as the page shows it."""
    drawn = [panel.svg for panel in setting_panels(report)]
    drawn += [panel.svg for panel in learning_curves(few_rows(report.source))]
    return {f"figure-{number}": svg for number, svg in enumerate(drawn, 1)}
