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
import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import yaml

from benchmarks.tasks.mllm.judge import scorer_environment
from clips.core.artifact import directory_hash
from clips.core.identity import file_hash, file_stamps
from clips.errors import UserError, unknown_name_error
from clips.text_files import safe_json_loads

DOWNLOAD_RECORD = "download_record.json"
_HUB = "lmms-lab-encoder"
_TASK_NAME = re.compile(r"""^task[ ]*:[ ]*["']?([\w.-]+)["']?[ ]*(?:\#.*)?$""", re.MULTILINE)
_GROUP_NAME = re.compile(r"""^group[ ]*:[ ]*["']?([\w.+-]+)["']?[ ]*(?:\#.*)?$""", re.MULTILINE)


# Data below one root


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


def read_record(root: Path) -> dict[str, Any]:
    """Hub name → its files by `clips-bench download`; empty if nothing was downloaded.

    Raises:
        UserError: the record cannot be read.
    """
    try:
        record = safe_json_loads((root / DOWNLOAD_RECORD).read_text(encoding="utf-8"))["datasets"]
        return {str(name): {"revision": str(each["revision"]), "files": dict(each["files"])}
                for name, each in record.items()}  # fmt: skip
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root / DOWNLOAD_RECORD}: not a record of `clips-bench download` ({error})") from None


def changed_files(root: Path, name: str, files: dict[str, str]) -> Iterator[Path]:
    """The files of a dataset that are missing or changed since the download."""
    for file, expected in sorted(files.items()):
        path = root / name / file
        if not path.is_file() or file_hash(path) != expected:
            yield path


def dataset_hash(root: Path, name: str, benchmark: str) -> str:
    """SHA-256 of a dataset's files, cached per process until one of them changes.

    Raises:
        UserError: there are no such files, or one of them differs from the download record; datasets without one pass.
    """
    dataset = root / name
    if not dataset.is_dir():
        raise _missing_data(root, name, benchmark)
    return _checked_hash(root, dataset, (*file_stamps(dataset), *file_stamps(root / DOWNLOAD_RECORD)))


def _missing_data(root: Path, dataset: str, task: str) -> UserError:
    of_hub = "/" in dataset  # a task of one's own may name a local directory
    hint = f"; `clips-bench download {task} --output {root}` fetches it" if of_hub else ""
    return UserError(f"{root}: expected the data of {task} in {dataset}/ below it{hint}")


@functools.lru_cache(maxsize=8)
def _checked_hash(root: Path, dataset: Path, _stamp: object) -> str:
    for name, entry in read_record(root).items():
        for path in changed_files(root, name, entry["files"]) if root / name == dataset else ():
            problem = "changed since the download (its hash differs)" if path.is_file() else "missing"
            raise UserError(f"{path}: {problem}; run `clips-bench download` again")
    return directory_hash(dataset, follow_links=True)


# Definitions of tasks


class _Plain(yaml.SafeLoader):
    """YAML with custom tags (``!function``) as strings, so that nothing is imported."""


_Plain.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))


@functools.cache
def _definitions() -> tuple[Path, dict[str, Path], dict[str, list[str]]]:
    """lmms-eval's directory of tasks, the defining file of each task, and the members of each group."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lmms-eval is not installed")
    folder = Path(spec.submodule_search_locations[0]).resolve() / "tasks"
    tasks: dict[str, Path] = {}
    groups: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        task, group = _TASK_NAME.search(text), _GROUP_NAME.search(text)
        if task:
            tasks[task[1]] = path
        if group:
            # members are names, or mappings with a name
            listed = [task[1]] if task else yaml.load(text, _Plain).get("task") or []
            names = [each if isinstance(each, str) else each.get("task") or each.get("group") for each in listed]
            groups.setdefault(group[1], []).extend(name for name in names if isinstance(name, str))
    return folder, tasks, groups


@functools.cache
def task_folders() -> dict[str, str]:
    """Every task of lmms-eval → the directory below its ``tasks`` that defines it. Nothing is imported."""
    folder, tasks, _ = _definitions()
    return {name: path.parent.relative_to(folder).as_posix() for name, path in tasks.items()}


@functools.cache
def task_groups() -> dict[str, tuple[str, ...]]:
    """Every group of lmms-eval's tasks → its members, with nested groups expanded."""
    _, _, groups = _definitions()

    def members(name: str, above: tuple[str, ...]) -> Iterator[str]:
        for member in groups[name]:
            if member not in groups:
                yield member
            elif member not in above:
                yield from members(member, (*above, name))

    return {name: tuple(dict.fromkeys(members(name, (name,)))) for name in groups}


def dataset_name(task: str, own: Path | None = None) -> str:
    """The Hub repo id of the dataset of lmms-eval's task, or of the user's own file, there also any other directory.

    Empty if it names neither, but a reader of ``datasets`` (json, imagefolder, …) for its ``data_files``.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    name = definition(own or _definitions()[1][task]).get("dataset_path")
    if not isinstance(name, str) or name in _PACKAGED_DATASETS_MODULES or Path(name).is_absolute():
        return ""
    return name if own or re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""


def dataset_config_name(task: str) -> str | None:
    """The dataset configuration that a task reads; None for the default."""
    return definition(_definitions()[1][task]).get("dataset_name")


def definition(path: Path) -> dict[str, Any]:
    """A task's definition merged with the included ones, functions unresolved.

    Raises:
        UserError: one of the files is missing or not YAML.
    """
    own, files = _read_definition(path)
    merged: dict[str, Any] = {}
    for file in reversed(files):
        merged |= definition(file)
    return merged | own


def _read_definition(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """A file's own definitions, and the files that it includes."""
    try:
        definition = yaml.load(path.read_text(encoding="utf-8", errors="replace"), _Plain)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error_reason(error)})") from None
    if not isinstance(definition, dict):
        raise UserError(f"{path}: expected the definition of a task, 'task: NAME' and so on")
    names = definition.get("include") or []
    return definition, [path.parent / name for name in ([names] if isinstance(names, str) else names)]


def definition_files(path: Path) -> list[Path]:
    """A task's YAML file and those that it includes, directly or not."""
    return [path, *(each for file in _read_definition(path)[1] for each in definition_files(file))]


def task_directory() -> Path:
    """lmms-eval's directory of tasks."""
    return _definitions()[0]


def definition_of(task: str) -> Path:
    """The YAML file that defines one of lmms-eval's tasks."""
    return _definitions()[1][task]


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
        name = _task_name(path)
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


def _own_tasks(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = _task_name(path)
        if name is not None and name in files:
            raise UserError(f"task: {folder}: two files define the task {name}: {files[name].name} and {path.name}")
        files |= {} if name is None else {name: path}
    return files


def _task_name(path: Path) -> str | None:
    stated = _TASK_NAME.search(path.read_text(encoding="utf-8", errors="replace"))
    return stated[1] if stated else None


def definition_hash(path: Path) -> str:
    """SHA-256 of a task's definition, its includes, the Python files next to them, and its local data files."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list):
            for each in value.values() if isinstance(value, Mapping) else value:
                yield from strings(each)

    definitions = {*definition_files(path)}
    files = definitions | {each for file in definitions for each in file.parent.glob("*.py")}
    for name in strings((definition(path).get("dataset_kwargs") or {}).get("data_files") or []):
        files |= {Path(name)} if Path(name).is_absolute() else {*path.parent.glob(name)}
    hashes = sorted((file.name, file_hash(file)) for file in files if file.is_file())
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


# Tasks with their data


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


_outer_stderr: list[TextIO] = []


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
        raise _missing_data(root, dataset, name)
    try:
        with suppress_output(), contextlib.chdir(root), _own_cache() as cache, scorer_environment():
            task = get_task_dict([name], index, "simple" if simple else "chat")[name]
            weakref.finalize(task, shutil.rmtree, cache, ignore_errors=True)
    except UserError:
        raise
    except Exception as error:
        path = _broken_parquet(root / dataset) or root / dataset
        raise UserError(f"{path}: cannot be read as the data of {name} ({error_reason(error)})") from None
    from benchmarks.tasks.mllm.task_images import decode_as_in_training

    decode_as_in_training(task)
    return task


@contextlib.contextmanager
def _own_cache() -> Iterator[Path]:
    """An empty cache for ``datasets``, as large as the dataset, and memory-mapped; the caller removes it, unless the
    block fails.

    ``datasets`` keys its cache by the dataset's name, which is the same below every data root: with a shared cache, a
    second root would silently read the data of the first.
    """
    import datasets
    from lmms_eval.api import task

    # a signal right after a `mkdtemp` would lose the name, and so the directory
    folder = Path(tempfile.gettempdir(), f"clips-bench-{uuid.uuid4().hex}")
    original = datasets.Dataset.map

    # tasks that map their data in several processes would copy the model into each
    def in_this_process(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs | {"num_proc": None})

    try:
        folder.mkdir(mode=0o700)
        with (
            mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder),
            mock.patch.object(task, "_resolve_hf_datasets_cache_dir", return_value=str(folder)),
            mock.patch.object(datasets.Dataset, "map", in_this_process),
        ):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _broken_parquet(dataset: Path) -> Path | None:
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


def error_reason(error: BaseException) -> str:
    """One line for an error, for retries that of the last attempt."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    if inner is not None:
        return error_reason(inner)
    text = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
