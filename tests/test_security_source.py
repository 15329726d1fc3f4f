"""Nothing in the packages' source runs what a file says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("clips", "llava_bridge", "benchmarks", "scripts")
SHELL_ALLOWED = {"clips/data/remote_files.py"}  # pipe: addresses, which only the user's own config may hold
PICKLE_ALLOWED = {"clips/loader/prefetch.py"}  # what its parent writes to its standard input
_NAMES = {"eval", "exec", "compile", "__import__"}
_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
_UNPACKERS = {"extractall", "unpack_archive"}
_LOADERS = {"StrictLoader", "_Loader", "_Plain", "SafeLoader"}
MARKDOWN = "clips/model_card.py"  # whose pages are Markdown


def faults(tree: ast.AST, where: str) -> Iterator[str]:
    """What a source file does that it should not, by line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for fault in _of_call(node, where):
                yield f"{where}:{node.lineno}: {fault}"
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in _MODULES
            and node.attr != "UnpicklingError"
            and where not in PICKLE_ALLOWED
        ):
            yield f"{where}:{node.lineno}: {ast.unparse(node)}"


def _of_call(call: ast.Call, where: str) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    last = name.rpartition(".")[2]
    if name in _NAMES:
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in {"np.load", "numpy.load"} and given.get("allow_pickle", "False") != "False":
        yield "numpy.load with allow_pickle"
    if name in {"yaml.load", "yaml.load_all"}:
        loader = given.get("Loader") or (ast.unparse(call.args[1]) if len(call.args) > 1 else "none")
        if loader not in _LOADERS:
            yield f"yaml.load with {loader}"
    if name in {"yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}:
        yield name
    if given.get("shell", "False") != "False" and where not in SHELL_ALLOWED:
        yield "a shell"
    if given.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    if last == "from_pretrained" and "Auto" in name and "trust_remote_code" not in given:
        yield "from_pretrained without trust_remote_code=False: transformers would ask on the terminal"
    if last in _UNPACKERS or name == "tar.extract":
        yield last
    if last == "Environment" and "jinja2" in name and given.get("autoescape") != "True" and where != MARKDOWN:
        yield "a template without autoescape"


def test_no_source_file_runs_what_it_reads() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 150
    found = [
        fault
        for path in files
        for fault in faults(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())
    ]
    assert not found, "\n".join(found)


def test_each_of_these_is_seen_and_nothing_else() -> None:
    for line in (
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(content)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)",
        "tar.extractall(path)",
        "jinja2.Environment(loader=loader)",
    ):
        assert list(faults(ast.parse(line), "clips/some.py")), line
    fine = "torch.load(path, weights_only=True); yaml.load(text, Loader=StrictLoader); model.eval(); np.load(path)"
    assert not list(faults(ast.parse(fine), "clips/some.py"))
