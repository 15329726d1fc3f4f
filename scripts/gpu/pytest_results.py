"""A pytest plugin: a JSON line for each test that does not pass, and one with the counts, in the file of ``--json``."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

_counts: collections.Counter[str] = collections.Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--json``."""
    parser.addoption("--json", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Record the results in the main process, which gets those of all workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(config.getoption("json")))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"script": "pytest", **values}) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test by its call, or by the reason why it was not called."""
        if report.when == "call" or not report.passed:
            _counts[report.outcome] += 1
            if report.failed:
                self.write(test=report.nodeid, outcome=report.outcome, error=report.longreprtext[-1500:])
            elif report.skipped:
                self.write(test=report.nodeid, outcome=report.outcome, error=str(report.longrepr)[-300:])

    def pytest_sessionfinish(self) -> None:
        """Write the counts."""
        self.write(tests=dict(_counts))
