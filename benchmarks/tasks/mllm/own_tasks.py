"""The user's own tasks for lmms-eval: a YAML file, or a directory as for its ``--include_path``.

``task:`` names the file, the directory of one task, or ``FOLDER/TASK``, relative to the working directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.tasks.mllm.offline_tasks import definition, included, task_name
from clips.core.artifact import file_hash
from clips.errors import UserError, unknown_name_error


def own_task(task: str) -> tuple[str, Path] | None:
    """The task's name and the YAML file that defines it; None if ``task`` is not a path.

    Raises:
        UserError: the path does not exist, is not a task, or contains several.
    """
    path = Path(task).expanduser()
    if path.is_dir():
        tasks = _tasks(path)
        if len(tasks) != 1:
            raise UserError(
                f"task: {task}: expected a directory with one task, or {task}/TASK; TASK is {_listed(tasks)}"
            )
        return next(iter(tasks.items()))
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"task: {task}: no such file (expected a task in lmms-eval's format)")
        name = task_name(path)
        if name is None or path.suffix == ".yml":  # lmms-eval ignores .yml
            raise UserError(f"task: {task}: expected a .yaml file with 'task: NAME'")
        _tasks(path.parent)
        return name, path
    if len(path.parts) < 2:
        return None
    if not path.parent.is_dir():
        raise UserError(f"task: {task}: no such file or directory (expected a task in lmms-eval's format)")
    tasks = _tasks(path.parent)
    if path.name not in tasks:
        raise unknown_name_error(path.name, tasks, f"task in {path.parent}")
    return path.name, tasks[path.name]


def definition_hash(path: Path) -> str:
    """SHA-256 of a task's definition, its includes, the Python files next to them, and its local data files."""
    files = {path, *included(path)}
    files |= {each for file in list(files) for each in file.parent.glob("*.py")} | set(_data_files(path))
    hashes = sorted((file.name, file_hash(file)) for file in files if file.is_file())
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


def _data_files(path: Path) -> Iterator[Path]:
    """Local data files of the definition, relative to its directory."""
    data_files = (definition(path).get("dataset_kwargs") or {}).get("data_files") or []
    for value in _strings(data_files):
        yield from path.parent.glob(value) if not Path(value).is_absolute() else [Path(value)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


def _tasks(folder: Path) -> dict[str, Path]:
    """The tasks that a directory defines, at any depth."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = task_name(path)
        if name is not None and name in found:
            raise UserError(f"task: {folder}: two files define the task {name}: {found[name].name} and {path.name}")
        found |= {} if name is None else {name: path}
    return found


def _listed(names: Mapping[str, Path]) -> str:
    return "one of " + ", ".join(names) if names else "unknown: no .yaml file in it has 'task: NAME'"
