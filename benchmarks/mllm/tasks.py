"""lmms-eval's tasks over local data, without the network and without a word to the terminal."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from clips.errors import UserError

_HUB = "lmms-lab-encoder"


def data_root(data: str) -> Path:
    """The directory below which a task's hub names are paths: ``data`` itself or ``data/hub``.

    Raises:
        UserError: no such directory.
    """
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{data}: no such directory (expected one in the hub's layout, holding {_HUB}/…)")
    inner = root / "hub"
    return (inner if not (root / _HUB).is_dir() and (inner / _HUB).is_dir() else root).resolve()


@functools.cache
def go_offline() -> None:
    """Cut this process off from the hub; works before and after the libraries are imported."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import datasets
    import huggingface_hub.constants
    import transformers.utils.logging
    from loguru import logger

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logger.disable("lmms_eval")
    with quiet():
        import lmms_eval.evaluator  # noqa: F401
        from lmms_eval.api.task import ConfigurableTask
    from tenacity import stop_after_attempt

    ConfigurableTask.download.retry.stop = stop_after_attempt(1)  # local data that fails once will fail again


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """An empty cache for ``datasets``, neither the user's nor another data root's.

    ``datasets`` keys its cache by the name of the data set, which is the same below every root: with a shared
    cache the second root would silently get the data of the first.
    """
    import datasets
    from lmms_eval.api import task

    folder = tempfile.TemporaryDirectory(prefix="clips-bench-")
    _kept.append(folder)  # memory-mapped as long as the task is used
    with (
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", Path(folder.name)),
        mock.patch.object(task, "_resolve_hf_datasets_cache_dir", return_value=folder.name),
    ):
        yield


_kept: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what libraries print (scorers and progress bars do)."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@functools.cache
def task_folders() -> dict[str, str]:
    """Every task of lmms-eval → the folder below its ``tasks`` that defines it. Nothing is imported."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lmms-eval is not installed")
    tasks = Path(spec.submodule_search_locations[0]) / "tasks"
    found = {}
    for path in sorted(tasks.rglob("*.yaml")):
        if name := _TASK_NAME.search(path.read_text(encoding="utf-8", errors="replace")):
            found[name[1]] = path.parent.relative_to(tasks).as_posix()
    return found


_TASK_NAME = re.compile(r"""^task[ ]*:[ ]*["']?([\w.-]+)["']?[ ]*(?:\#.*)?$""", re.MULTILINE)


@functools.cache
def manager(folder: str) -> Any:
    """lmms-eval's index of the tasks in one folder below its ``tasks`` (all 2,000 would take seconds)."""
    go_offline()
    import lmms_eval.tasks

    path = Path(lmms_eval.tasks.__file__).parent / folder
    with quiet():
        return lmms_eval.tasks.TaskManager(include_path=str(path), include_defaults=False, model_name="llava_bridge")


def load_task(name: str, folder: str, root: Path) -> Any:
    """One of lmms-eval's tasks with its data from below ``root``.

    Raises:
        UserError: data that are missing or malformed.
    """
    index = manager(folder)
    from lmms_eval.tasks import get_task_dict
    from lmms_eval.utils import load_yaml_config

    dataset = load_yaml_config(index.task_index[name]["yaml_path"], mode="full").get("dataset_path")
    if dataset and not (root / dataset).exists():
        raise UserError(f"{root}: expected the data of {name} in {dataset}/ below it")
    try:
        with quiet(), contextlib.chdir(root), _own_cache(), _without_workers():
            return get_task_dict([name], index, "simple")[name]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{root / (dataset or '')}: cannot be read as the data of {name} ({reason(error)})") from None


@contextlib.contextmanager
def _without_workers() -> Iterator[None]:
    """Let GQA join its pictures in this process: it asks for eight, which copy a process that holds a model."""
    import datasets

    original = datasets.Dataset.map

    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs | {"num_proc": None})

    with mock.patch.object(datasets.Dataset, "map", alone):
        yield


def reason(error: BaseException) -> str:
    """One line for an error, the last attempt's where it was tried several times."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    if inner is not None:
        return reason(inner)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
