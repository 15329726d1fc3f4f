"""The code that scores a task, as a hash for the protocol: lmms-eval changes scorers without a new version number."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.tasks.mllm.caption_metrics import caption_scorer_hash
from benchmarks.tasks.mllm.offline_tasks import definition, definition_files, definition_of, task_directory
from clips.core.identity import digest, file_hash

_FUNCTION = re.compile(r"!function[ ]+([\w.]+)\.\w+")
_CORE = ("api/filter.py", "api/metrics.py", "api/reasoning.py", "api/task.py", "filters/*.py")
"""Files of lmms-eval that handle the answers of every task."""


@functools.cache
def scorer_hash(task: str, own: str = "") -> str:
    """SHA-256 of the code that scores a task: its definition with the included ones, and the modules of its functions.

    With the modules go those of lmms-eval and of the task's directory that they import, lmms-eval's filters and
    metrics, and, if it scores captions, pycocoevalcap with its tokenizer. Nothing is imported.

    Args:
        task: its name in lmms-eval.
        own: the YAML file of a user's task.
    """
    path = Path(own) if own else definition_of(task)
    library = task_directory().parent
    functions = {
        _module(definition_file.parent, name, library)
        for definition_file in definition_files(path)
        for name in _FUNCTION.findall(definition_file.read_text(encoding="utf-8", errors="replace"))
    }
    files, captions = _with_imports({file for file in functions if file}, library)
    files |= {file for pattern in _CORE for file in library.glob(pattern)}
    hashes = sorted((_place(file, library), file_hash(file)) for file in files)
    # its data have a hash of their own, and may be named by a path of this machine
    settings = {name: value for name, value in definition(path).items() if name not in {"dataset_kwargs", "include"}}
    return digest({"definition": repr(settings), "files": hashes, "captions": captions and caption_scorer_hash()})


def _with_imports(files: set[Path], library: Path) -> tuple[set[Path], bool]:
    """The files and those that they import, of lmms-eval or from their own directory; whether captions are scored."""
    files_read, waiting, captions = set[Path](), [*files], False
    while waiting:
        file = waiting.pop()
        if file in files_read:
            continue
        files_read.add(file)
        if file.is_relative_to(library) and file.relative_to(library).parts[0] in {"api", "models", file.name}:
            continue  # they are about running models: every task would depend on all of lmms-eval
        for folder, name in _imports(file):
            captions |= name.partition(".")[0] == "pycocoevalcap"
            if module := _module(folder, name, library):
                waiting.append(module)
    return files_read, captions


def _imports(file: Path) -> Iterator[tuple[Path, str]]:
    """(directory that a relative name refers to, dotted name) of each module that a file may import."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # importing it reports the error
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((file.parent, each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = [file.parent, *file.parents][node.level]
            name = node.module or ""
            yield from ((folder, f"{name}.{each.name}".strip(".")) for each in node.names)  # a module, or a name in one
            yield folder, name


def _module(folder: Path, name: str, library: Path) -> Path | None:
    """The file of a module, next to its importer (as lmms-eval looks first) or in lmms-eval; None for any other."""
    head, *rest = name.split(".")
    places = [folder.joinpath(head, *rest)] if head else []
    places += [library.joinpath(*rest)] if head == library.name else []
    files = (file for place in places for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"))
    return next((file.resolve() for file in files if file.is_file()), None)


def _place(file: Path, library: Path) -> str:
    return str(file.relative_to(library)) if file.is_relative_to(library) else file.name
