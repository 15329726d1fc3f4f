"""Which source code a command runs, and one hash of it.

The hash covers the modules of the suite that the command's module reaches by imports, wherever in the
file they stand, and the data files beside them. Comments, docstrings and layout do not count, so that
only a change of behaviour makes a step run again. Nothing is imported: the files are read.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("clips", "llava_bridge", "benchmarks")
_ROOT = Path(__file__).resolve().parents[1]
_LAZY = re.compile(rf"(?P<module>(?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?::\w+)?")


def source_hash(module: str, root: Path = _ROOT) -> str:
    """SHA-256 over the code that ``module`` (dotted, with or without ``:function``) can reach."""
    digest = hashlib.sha256()
    for path in sorted(reachable_files(module.partition(":")[0], root)):
        digest.update(f"{path.relative_to(root).as_posix()}\0{_file_digest(path, path.stat().st_mtime_ns)}\0".encode())
    return digest.hexdigest()


def script_hash(script: Path, root: Path = _ROOT) -> str:
    """SHA-256 over a script and the code of the suite that it can reach."""
    files = {script}
    for name in _imports(script, script.stat().st_mtime_ns, ""):
        files |= reachable_files(name, root)
    parts = [f"{path.name}\0{_file_digest(path, path.stat().st_mtime_ns)}\0" for path in sorted(files)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def reachable_files(module: str, root: Path = _ROOT) -> set[Path]:
    """The source files that ``module`` imports, directly or not, and the data files in their folders."""
    files: set[Path] = set()
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = module_file(name, root)
        if path is None:
            continue
        files.add(path)
        files.update(_data_files(path.parent))
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        waiting += _imports(path, path.stat().st_mtime_ns, name)
    return files


def module_file(name: str, root: Path = _ROOT) -> Path | None:
    """The file of a dotted module of the suite; None where there is no such module."""
    if name.partition(".")[0] not in PACKAGES:
        return None
    base = root.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@functools.cache
def _imports(path: Path, _changed: int, name: str) -> tuple[str, ...]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(_imported_names(ast.parse(path.read_text(encoding="utf-8")), package))


def _imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # a name may be a module
        elif isinstance(node, ast.Constant) and (lazy := _LAZY.fullmatch(str(node.value))):
            yield lazy["module"]  # a registry's "module:attribute"


def _data_files(folder: Path) -> Iterator[Path]:
    """Files beside the modules of ``folder`` that are no code, those in subfolders without modules included."""
    for path in folder.iterdir():
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            yield path
        elif path.is_dir() and not any(path.glob("*.py")):
            yield from _data_files(path)


@functools.cache
def _file_digest(path: Path, _changed: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        content = ast.dump(_without_docstrings(ast.parse(content))).encode()
    return hashlib.sha256(content).hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _docstring(node):
            node.body = node.body[1:]
    return tree


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None
