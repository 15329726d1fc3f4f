"""The shape of the house: no file imports itself through others, and the way to the training step is short."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from transformers import Trainer

from clips import cli, train

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("clips", "llava_bridge", "benchmarks")


def module_file(name: str) -> Path | None:
    """The file of a dotted module of the suite; None where there is no such module."""
    base = ROOT.joinpath(*name.split("."))
    places = (base / "__init__.py", base.with_suffix(".py")) if name.partition(".")[0] in PACKAGES else ()
    return next((path for path in places if path.is_file()), None)


def imported(path: Path) -> set[Path]:
    """The files of the suite that one imports: at its top, within a function, or for types alone."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if module_file(name) else node.module for name in inner]
    return {file for name in names if (file := module_file(name))}


def circles(arrows: dict[Path, set[Path]]) -> list[list[str]]:
    """Groups of files that reach each other."""
    files = sorted(arrows)
    index = {file: number for number, file in enumerate(files)}
    pairs = [(index[here], index[there]) for here in files for there in arrows[here]]
    rows, columns = zip(*pairs, strict=True)
    graph = csr_array(([1] * len(pairs), (rows, columns)), shape=(len(files), len(files)))
    _, group = connected_components(graph, directed=True, connection="strong")
    groups: dict[int, list[str]] = {}
    for file, number in zip(files, group, strict=True):
        groups.setdefault(number, []).append(file.relative_to(ROOT).as_posix())
    return [members for members in groups.values() if len(members) > 1]


def bound_names(path: Path) -> set[str]:
    """The names that a module binds outside its functions and classes."""
    names, nodes = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        nodes += ast.iter_child_nodes(node)
    return names


def unresolved_imports(path: Path, bound: Callable[[Path], set[str]]) -> list[str]:
    """The names that a file imports from the suite, at its top or within a function, and that do not exist."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            file = module_file(node.module)
            known = bound(file) if file else set()
            wrong += [name for name in names if name.rpartition(".")[2] not in known and not module_file(name)]
    return [f"{path.name}: {name}" for name in wrong]


def test_every_import_of_the_suite_resolves():
    files = [file for folder in (*PACKAGES, "scripts", "tests") for file in (ROOT / folder).rglob("*.py")]
    bound = functools.cache(bound_names)
    assert [line for file in files for line in unresolved_imports(file, bound)] == []


def test_an_import_of_a_missing_name_is_found(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from clips.train import train, trian\n    from clips.none import a\n")
    assert unresolved_imports(tmp_path / "a.py", bound_names) == ["a.py: clips.train.trian", "a.py: clips.none.a"]


def test_no_file_imports_itself_through_others():
    arrows = {file: imported(file) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert len(arrows) > 100
    assert circles(arrows) == []


def test_the_readers_of_datasets_know_nothing_of_the_training_loader():
    readers = [*(ROOT / "clips/data").rglob("*.py")]
    assert len(readers) > 15
    assert [str(file) for file in readers for other in imported(file) if other.parent == ROOT / "clips/loader"] == []


def test_a_circle_is_seen():
    first, second, third = (ROOT / f"clips/{name}.py" for name in "abc")
    assert circles({first: {second}, second: {third}, third: {second}}) == [["clips/b.py", "clips/c.py"]]


def test_the_loss_is_five_hops_from_the_command_and_all_of_them_in_one_file():
    assert cli.COMMANDS["train"].target == "clips.train:train"
    functions = {
        node.name: node for node in ast.parse(inspect.getsource(train)).body if isinstance(node, ast.FunctionDef)
    }
    hops = ("train", "train_stage", "train_loop", "train_step", "compute_gradients", "compute_losses")
    for caller, callee in itertools.pairwise(hops):
        calls = (node.func for node in ast.walk(functions[caller]) if isinstance(node, ast.Call))
        assert callee in {name.id for name in calls if isinstance(name, ast.Name)}, caller


def private_functions(files: Iterable[Path]) -> set[str]:
    """The functions, methods and classes of files whose names begin with one underscore."""
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    functions = (node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {name for name in functions if re.match("_[^_]", name)}


def named_functions(file: Path) -> Iterator[str]:
    """The functions that a test imports, reads of another object or replaces by name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            texts = (argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant))
            yield from (str(text).rpartition(".")[2] for text in texts)


def test_tests_name_no_private_function_of_the_suite():
    private = private_functions(file for folder in (*PACKAGES, "scripts") for file in (ROOT / folder).rglob("*.py"))
    private -= set(dir(Trainer))  # which the bridge's trainer overrides
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [f"{file.name}: {name}" for file in tests for name in named_functions(file) if name in private] == []


def test_a_private_function_in_a_test_is_found(tmp_path):
    (tmp_path / "a.py").write_text("def _f(): pass\ndef g(): pass\ndef __h__(): pass\n")
    (tmp_path / "b.py").write_text("from a import _f, g\na._f\nself._f\nsetattr(a, '_f', 1)\nsetattr('a._f', 1)\n")
    private = private_functions([tmp_path / "a.py"])
    assert private == {"_f"}
    assert [name for name in named_functions(tmp_path / "b.py") if name in private] == ["_f"] * 4
