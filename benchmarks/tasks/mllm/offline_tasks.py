"""lmms-eval's tasks, shipped or the user's own, over local data: no network access, no output to the terminal."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.util
import io
import os
import re
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import yaml

from benchmarks.tasks.mllm.judge import scorer_environment
from clips.core.identity import file_hash
from clips.errors import UserError, unknown_name_error

_HUB = "lmms-lab-encoder"


def data_root(data: str) -> Path:
    """The directory whose subdirectories have Hub names: ``data`` or ``data/hub``.

    Raises:
        UserError: no such directory.
    """
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{data}: no such directory (expected one in the Hub's structure, with {_HUB}/…)")
    inner = root / "hub"
    return (inner if not (root / _HUB).is_dir() and (inner / _HUB).is_dir() else root).resolve()


@functools.cache
def go_offline() -> None:
    """Disable access to the Hub, and import lmms-eval without its output."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import datasets
    import huggingface_hub.constants
    import transformers.utils.logging

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its warnings become part of UserError
    transformers.utils.logging.disable_progress_bar()
    from loguru import logger

    logger.disable("lmms_eval")
    with suppress_output():
        import lmms_eval.evaluator  # noqa: F401
        from lmms_eval.api.task import ConfigurableTask
    from tenacity import stop_after_attempt

    ConfigurableTask.download.retry.stop = stop_after_attempt(1)  # local data that fails once will fail again


@contextlib.contextmanager
def _own_cache() -> Iterator[tempfile.TemporaryDirectory[str]]:
    """An empty cache for ``datasets``, which the caller removes; it is as large as the dataset, and memory-mapped.

    ``datasets`` keys its cache by the dataset's name, which is the same below every data root: with a shared cache, a
    second root would silently read the data of the first.
    """
    import datasets
    from lmms_eval.api import task

    folder = tempfile.TemporaryDirectory(prefix="clips-bench-")
    with (
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", Path(folder.name)),
        mock.patch.object(task, "_resolve_hf_datasets_cache_dir", return_value=folder.name),
    ):
        try:
            yield folder
        except BaseException:
            folder.cleanup()
            raise


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress the output of libraries (scorers, progress bars)."""
    _outer_stderr.append(sys.stderr)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _outer_stderr.pop()


def unsuppressed_stderr() -> TextIO:
    """Standard error outside of ``suppress_output``, for messages to the user."""
    return _outer_stderr[0] if _outer_stderr else sys.stderr


_outer_stderr: list[TextIO] = []


@functools.cache
def task_folders() -> dict[str, str]:
    """Every task of lmms-eval → the directory below its ``tasks`` that defines it. Nothing is imported."""
    return {name: path.parent.relative_to(_tasks()).as_posix() for name, path in _definitions()[0].items()}


@functools.cache
def task_groups() -> dict[str, tuple[str, ...]]:
    """Every group of lmms-eval's tasks → its members, with nested groups expanded."""
    groups = _definitions()[1]

    def members(name: str, above: tuple[str, ...]) -> Iterator[str]:
        for member in groups[name]:
            if member not in groups:
                yield member
            elif member not in above:
                yield from members(member, (*above, name))

    return {name: tuple(dict.fromkeys(members(name, (name,)))) for name in groups}


def _tasks() -> Path:
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lmms-eval is not installed")
    return Path(spec.submodule_search_locations[0]) / "tasks"


@functools.cache
def _definitions() -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The defining file of each task, and the members of each group."""
    tasks: dict[str, Path] = {}
    groups: dict[str, list[str]] = {}
    for path in sorted(_tasks().rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        task, group = _TASK_NAME.search(text), _GROUP_NAME.search(text)
        if task:
            tasks[task[1]] = path
        if group:
            groups.setdefault(group[1], []).extend([task[1]] if task else _members(text))
    return tasks, groups


def _members(text: str) -> list[str]:
    """The tasks and groups under ``task`` of a group's file: names, or mappings with a name."""
    listed = yaml.load(text, _Plain).get("task") or []
    found = [each if isinstance(each, str) else each.get("task") or each.get("group") for each in listed]
    return [name for name in found if isinstance(name, str)]


def task_name(path: Path) -> str | None:
    """The task that a YAML file defines; None if it defines none."""
    found = _TASK_NAME.search(path.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def dataset_name(task: str, own: Path | None = None) -> str:
    """The Hub repo id of the dataset of lmms-eval's task, or of the user's own file, there also any other directory.

    Empty if it names neither, but a reader of ``datasets`` (json, imagefolder, …) for its ``data_files``.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    name = definition(own or _definitions()[0][task]).get("dataset_path")
    if not isinstance(name, str) or name in _PACKAGED_DATASETS_MODULES or Path(name).is_absolute():
        return ""
    return name if own or _HUB_NAME.fullmatch(name) else ""


def dataset_config_name(task: str) -> str | None:
    """The dataset configuration that a task reads; None for the default."""
    return definition(_definitions()[0][task]).get("dataset_name")


def definition(path: Path) -> dict[str, Any]:
    """A task's definition merged with the included ones, functions unresolved.

    Raises:
        UserError: one of the files is missing or not YAML.
    """
    merged: dict[str, Any] = {}
    for file in reversed(_includes(path)):
        merged |= definition(file)
    return merged | _yaml(path)


def included(path: Path) -> list[Path]:
    """The files that a task's definition includes, recursively."""
    return [each for file in _includes(path) for each in (file, *included(file))]


def _includes(path: Path) -> list[Path]:
    names = _yaml(path).get("include") or []
    return [path.parent / name for name in ([names] if isinstance(names, str) else names)]


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8", errors="replace"), _Plain)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error_reason(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected the definition of a task, 'task: NAME' and so on")
    return found


class _Plain(yaml.SafeLoader):
    """YAML with custom tags (``!function``) as strings, so that nothing is imported."""


_Plain.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))

_TASK_NAME = re.compile(r"""^task[ ]*:[ ]*["']?([\w.-]+)["']?[ ]*(?:\#.*)?$""", re.MULTILINE)
_GROUP_NAME = re.compile(r"""^group[ ]*:[ ]*["']?([\w.+-]+)["']?[ ]*(?:\#.*)?$""", re.MULTILINE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@functools.cache
def manager(folder: str) -> Any:
    """lmms-eval's index of the tasks in one directory, below its ``tasks`` or any other (all 2,000 take seconds)."""
    go_offline()
    import lmms_eval.tasks

    path = Path(lmms_eval.tasks.__file__).parent / folder
    with suppress_output():
        return lmms_eval.tasks.TaskManager(include_path=str(path), include_defaults=False, model_name="llava_bridge")


def load_task(name: str, folder: str, root: Path, dataset: str, *, simple: bool = True) -> Any:
    """One of lmms-eval's tasks with its data below ``root``; a temporary copy of them exists as long as the task does.

    Args:
        folder: directory of the definition, below lmms-eval's ``tasks`` or any other.
        dataset: the path of its data below ``root``; empty if its definition names other files.
        simple: whether its models take text and images separately, not as a conversation.

    Raises:
        UserError: data that are missing or malformed; the message names the first invalid file.
    """
    gc.collect()  # tasks refer to themselves, so that the earlier one and its copy may still exist
    index = manager(folder)
    from lmms_eval.tasks import get_task_dict

    if dataset and not (root / dataset).exists():
        raise UserError(f"{root}: expected the data of {name} in {dataset}/ below it")
    try:
        with suppress_output(), contextlib.chdir(root), _own_cache() as cache, without_workers(), scorer_environment():
            task = get_task_dict([name], index, "simple" if simple else "chat")[name]
    except UserError:
        raise
    except Exception as error:
        path = find_broken_parquet(root / dataset) or root / dataset
        raise UserError(f"{path}: cannot be read as the data of {name} ({error_reason(error)})") from None
    weakref.finalize(task, cache.cleanup)
    return task


def find_broken_parquet(dataset: Path) -> Path | None:
    """The first parquet file of a dataset that is truncated or not parquet; None if all are complete."""
    import pyarrow.parquet

    for path in sorted(dataset.rglob("*.parquet")):
        try:
            pyarrow.parquet.read_metadata(path)
        except (OSError, ValueError):
            return path
    return None


def select_questions(task: Any, numbers: Sequence[int]) -> None:
    """Restrict a task to some questions; their indices change."""
    split = task.config.test_split or task.config.validation_split
    for docs in {id(each): each for each in (task.dataset, task.dataset_no_image)}.values():
        docs[split] = docs[split].select(numbers)


@contextlib.contextmanager
def without_workers() -> Iterator[None]:
    """Make tasks that map their data in several processes do so in this one, without copies of the model."""
    import datasets

    original = datasets.Dataset.map

    def without_workers(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs | {"num_proc": None})

    with mock.patch.object(datasets.Dataset, "map", without_workers):
        yield


def error_reason(error: BaseException) -> str:
    """One line for an error, for retries that of the last attempt."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    if inner is not None:
        return error_reason(inner)
    text = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def own_task(task: str) -> tuple[str, Path] | None:
    """The task's name and the YAML file that defines it; None if ``task`` is not a path.

    Raises:
        UserError: the path does not exist, is not a task, or contains several.
    """
    path = Path(task).expanduser()
    if path.is_dir():
        tasks = _own_tasks(path)
        if len(tasks) != 1:
            names = f"one of {', '.join(tasks)}" if tasks else "unknown: no .yaml file in it has 'task: NAME'"
            raise UserError(f"task: {task}: expected a directory with one task, or {task}/TASK; TASK is {names}")
        return next(iter(tasks.items()))
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"task: {task}: no such file (expected a task in lmms-eval's format)")
        name = task_name(path)
        if name is None or path.suffix == ".yml":  # lmms-eval ignores .yml
            raise UserError(f"task: {task}: expected a .yaml file with 'task: NAME'")
        _own_tasks(path.parent)
        return name, path
    if len(path.parts) < 2:
        return None
    if not path.parent.is_dir():
        raise UserError(f"task: {task}: no such file or directory (expected a task in lmms-eval's format)")
    tasks = _own_tasks(path.parent)
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
    data_files = (definition(path).get("dataset_kwargs") or {}).get("data_files") or []
    for value in _strings(data_files):
        yield from path.parent.glob(value) if not Path(value).is_absolute() else [Path(value)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


def _own_tasks(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = task_name(path)
        if name is not None and name in found:
            raise UserError(f"task: {folder}: two files define the task {name}: {found[name].name} and {path.name}")
        found |= {} if name is None else {name: path}
    return found
