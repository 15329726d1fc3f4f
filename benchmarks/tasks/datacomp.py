"""DataComp's 38 tasks, as benchmarks of their own and as the group ``datacomp``.

Source: tasklist.yml, evaluate.py and eval_utils of mlfoundations/datacomp (arXiv 2304.14108). FairFace and UTKFace are
on that list, too, but have no main metric and are not among the 38.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tasks.benchmark import Benchmark

GROUP = "datacomp"
PROTOCOL_ENTRY = "datacomp_task"
_CACHE = "hf_cache"  # of the three tasks that DataComp reads with ``datasets``
_KINDS = {"retrieval": "retrieval", "misc": "winogavil"}  # the others are classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCompTask:
    """A row of ``datacomp_tasks.csv``.

    Args:
        task: DataComp's key, ``vtab/caltech101``.
        title: DataComp's name.
        items: number of images, or of WinoGAViL's cues.
        metric: the main metric, in this suite's names.
        group: ``ImageNet``, ``ImageNet shifts``, ``VTAB`` or ``retrieval``, as in DataComp's aggregate_scores.py; empty
            if it only enters the average.
    """

    task: str
    title: str
    items: int
    metric: str
    group: str

    @property
    def name(self) -> str:
        """The last part of the key, ``caltech101``."""
        return self.task.rpartition("/")[2].removesuffix("_test_image_text_retrieval").replace("-", "_")

    @property
    def kind(self) -> str:
        """The benchmark that evaluates it."""
        return _KINDS.get(self.task.partition("/")[0], "classification")

    @property
    def folder(self) -> str:
        """Its directory below that of DataComp's download_evalsets.py."""
        if self.kind != "classification":
            return f"{_CACHE}/nlphuji___{self.task.rpartition('/')[2]}"
        return f"wds_{self.task.removeprefix('fairness/').replace('/', '-')}_test"


def _read_tasks() -> dict[str, DataCompTask]:
    with Path(__file__).with_name("datacomp_tasks.csv").open(encoding="utf-8", newline="") as stream:
        rows: list[dict[str, Any]] = [{**row, "items": int(row["items"])} for row in csv.DictReader(stream)]
    return {row["task"]: DataCompTask(**row) for row in rows}


TASKS = _read_tasks()
"""DataComp's key → task."""


def datacomp_benchmarks(known: Mapping[str, Benchmark]) -> dict[str, Benchmark]:
    """``datacomp_NAME`` → the benchmark of a task; its only settings are data and limit (and the images' directory)."""
    return {
        f"{GROUP}_{task.name}": dataclasses.replace(
            known[task.kind],
            about=f"DataComp: {task.title}",
            takes=() if task.kind == "classification" else ("image_root",),
            primary=(task.metric,),
            items=task.items,
            license="see its source",
            datacomp_task=task.task,
        )
        for task in TASKS.values()
    }


def datacomp_members(name: str, data: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Column → the task's directory below DataComp's, and its settings.

    Args:
        name: begins the columns' names.
        data: DataComp's directory, as it stands in the settings.
    """
    return {
        f"{name}_{task.name}": (
            task.folder,
            {"task": f"{GROUP}_{task.name}", "data": f"{data}/{task.folder}"}
            | ({} if task.kind == "classification" else {"image_root": f"{data}/{_CACHE}"}),
        )
        for task in TASKS.values()
    }
