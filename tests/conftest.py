"""Fixtures for all tests."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from clips.commandline import progress

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"
ROOMS = [TESTS.parent, TESTS, *(TESTS / room for room in ("clips", "llava_bridge", "benchmarks", "scripts"))]
# Processes that tests start find the packages of this tree and the tests' own modules, as this one does.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*map(str, ROOMS), os.environ.get("PYTHONPATH")]))

# A shell ignores Ctrl-C for what it runs in the background, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


if "PYTEST_XDIST_WORKER" in os.environ:  # it imports all test files, and timm would import wandb with them, for 7 s
    from clips.lazy_import import without_wandb

    with without_wandb():
        import timm  # noqa: F401


# Forked DataLoader workers inherit the handler; see `pytest_pyfunc_call`.
faulthandler.register(signal.SIGUSR2, file=2)


LONGEST = ("docs_run", "clips_distributed", "bridge_stages", "study_kills", "bridge_mixed", "study_slurm", "packaging")
"""Files whose slow tests take minutes; a file runs in one worker, and a long one at the end would run alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, in ``make test-long`` (xdist sorts by number of tests unless told not to)."""
    first = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    """Print what the workers of a test do that ran out of time: pytest-timeout shows this process alone."""
    try:
        return (yield)
    except pytest.fail.Exception as error:
        if str(error).startswith("Timeout"):
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGUSR2)
            time.sleep(1.0)
        raise


def pytest_unconfigure() -> None:
    """Keep what SWIG made for sentencepiece: 0.2.1 crashes where Python takes it down, and pytest then ends with status
    139 after tests that all passed.
    """
    gc.unfreeze()  # or libraries that count what is left complain of leaks
    for name, module in list(sys.modules.items()):
        if name.startswith("swig_runtime_data"):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(module.type_pointer_capsule))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data and models next to the checkout; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder with real data and models")
    return SHARED


_frozen_modules = 0


progress.SILENT_SECONDS = 600.0  # what a command prints is compared whole, on slow machines, too


@pytest.fixture(autouse=True)
def _modules_are_not_garbage() -> None:
    """Take imported modules out of garbage collection.

    lmms-eval and accelerate collect garbage after every task, which looks through all of torch and transformers: that
    is 70 % of the time of tests that evaluate a miniature LLaVA.
    """
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 100:
        gc.collect()
        gc.freeze()
        _frozen_modules = len(sys.modules)


@pytest.fixture(autouse=True)
def _no_processes_left() -> Iterator[None]:
    """A test that begins a training by hand leaves no process group behind."""
    yield
    if "clips.parallel.distributed" in sys.modules:
        sys.modules["clips.parallel.distributed"].end_processes()


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root ``hub`` about six images, and ``llava``, which transformers alone has made."""
    import bench_world

    root = tmp_path_factory.mktemp("places")
    bench_world.write_hub(root / "hub")
    bench_world.write_llava(root / "llava")
    return root


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Copies a finished study, run once, to a folder; with other fields its file is changed since."""
    import study_engine

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        study_engine.use_fakes(patch)
        study_engine.run_study(study_engine.write_study(folder))

    def copy(to: Path, **fields: object) -> Any:
        shutil.copytree(folder / "out", to / "out", symlinks=True)
        return study_engine.write_study(to, **fields)

    return copy


@pytest.fixture(scope="session")
def bridge_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained ViT in open_clip's hub layout."""
    import bridge_world

    directory = tmp_path_factory.mktemp("bridge") / "encoder"
    bridge_world.make_encoder(directory, bridge_world.VIT)
    return directory


@pytest.fixture(scope="session")
def bridge_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained Llama with its own tokenizer."""
    import bridge_world

    return bridge_world.make_llm(tmp_path_factory.mktemp("bridge") / "llm")


@pytest.fixture(scope="session")
def bridge_llava(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_llm: Path) -> Path:
    """An untrained LLaVA of the two."""
    import bridge_world

    return bridge_world.make_llava(tmp_path_factory.mktemp("bridge") / "llava", bridge_encoder, bridge_llm)


@pytest.fixture(scope="session")
def bridge_talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one color with conversations (talk.json)."""
    import bridge_world

    return bridge_world.make_talk(tmp_path_factory.mktemp("bridge") / "talk")


@pytest.fixture(scope="session")
def bridge_parts(bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path) -> Any:
    """The three as `bridge_world.Parts`."""
    import bridge_world

    return bridge_world.Parts(bridge_encoder, bridge_llm, bridge_talk)


@pytest.fixture(scope="session")
def bridge_long_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama with a context that has room for tiles and for LLaVA's preamble."""
    import bridge_world

    return bridge_world.make_llm(tmp_path_factory.mktemp("bridge") / "long_llm", context=400)


@pytest.fixture(scope="session")
def bridge_album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several shapes with talk about one image, two, and none."""
    import bridge_world

    return bridge_world.make_album(tmp_path_factory.mktemp("bridge") / "album")


@pytest.fixture(scope="session")
def original_parts() -> Any:
    """The random parts of a LLaVA in its first authors' layout."""
    import original_world

    return original_world.Parts()


@pytest.fixture(scope="session")
def original_tower(tmp_path_factory: pytest.TempPathFactory, original_parts: Any) -> Path:
    """Its CLIP as a directory of transformers."""
    import original_world

    return original_world.write_tower(original_parts, tmp_path_factory.mktemp("original") / "clip")
