"""Every command of the documentation does what it says it does: a page's blocks are run in order, in miniature."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
from conftest import SHARED
from docs_blocks import ROOT, Block, Shell, blocks, commands, pages, shell
from docs_rules import NOT_RUN, SWAPS, Rule, rule_for
from docs_world import copy_tree

from clips.commandline.commands import dispatch

RUN = [page for page in pages() if any(block.language in {"sh", "python"} for block in blocks(page))]
_PORT = "8000"
MODULES = {"torchrun": "torch.distributed.run", "clips": "clips", "llava-bridge": "llava_bridge"}
"""Programs whose trainings and dialogues are run as processes of their own, as readers do; other commands run in the
test's process, which saves their imports."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by a process of its own, whose training leaves nothing behind in this one."""
    folder = tmp_path_factory.mktemp("docs") / "world"
    code = "import pathlib, sys, docs_world; docs_world.make_world(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    return folder


class Reader:
    """A reader who follows a page, in a directory of their own."""

    def __init__(self, page: str, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.stack = contextlib.ExitStack()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def here(self, text: str) -> str:
        """``text`` with the paths and the port of this trial."""
        return re.sub(r"(?<![\w.])/data/", f"{self.folder}/data/", text).replace(f":{_PORT}", f":{self.port}")

    def do(self, block: Block) -> None:
        if block.language in {"yaml", "csv"} and block.title:
            text = block.text
            for old, new in SWAPS.get((self.page, block.title), ()):
                text = text.replace(old, new)
            (self.folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.title).write_text(self.here(text))
        elif block.language == "python":
            code = compile(textwrap.dedent(self.here(block.text)), str(block), "exec")  # one in a list is indented
            if needs := next((why for text, why in NOT_RUN.items() if text in block.text), ""):
                print(f"not run: {block} ({needs})")
                return
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                exec(code, {"__name__": "__main__"})
        elif block.language == "sh":
            for one in shell(block):
                self.call(one, rule_for(one))

    def call(self, one: Shell, rule: Rule) -> None:
        if rule.skip:
            print(f"not run: {one} ({rule.skip})")
            return
        if rule.shared and not SHARED.is_dir():
            print(f"not run: {one} (needs ../shared)")
            return
        text = f"{one.text} {rule.add}" + (f" --paths.shared {SHARED}" if rule.shared else "")
        for old, new in rule.swap:
            text = text.replace(old, new)
        words = shlex.split(self.here(text))
        print("run:", shlex.join(words), flush=True)
        if words[0] == "export":
            os.environ.update(word.split("=", 1) for word in words[1:])
        elif words[:2] == ["llava-bridge", "serve"]:
            pytest.importorskip("fastapi")
            self.stack.enter_context(served(words, self.port))
        elif "--tensorboard" in words:
            self.stack.enter_context(served(words, self.port))
        elif words[0] == "torchrun" or rule.typed or words[1:2] == ["train"]:
            command = [sys.executable, "-m", MODULES[words[0]], *words[1:]]
            ended = subprocess.run(command, capture_output=True, text=True, input=rule.typed, timeout=600, check=False)
            assert ended.returncode == 0, f"{one}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
        else:
            status = dispatch(words[0], "", commands(words[0]), words[1:])
            assert status == 0, f"{one}: ended with status {status}"


@contextlib.contextmanager
def served(words: list[str], port: str):
    """A server that answers, until the page has ended."""
    module = {"llava-bridge": "llava_bridge", "clips-bench": "benchmarks"}[words[0]]
    place = words.index("--port") if "--port" in words else len(words)
    command = [sys.executable, "-m", module, *words[1:place], "--port", port, *words[place + 2 :]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, process.stdout and process.stdout.read()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
                    break
                time.sleep(0.2)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)
            process.kill()


def outputs(page: str) -> list[str]:
    """What the commands and the configs of a page write: it is not there before."""
    found = []
    for block in blocks(page):
        if block.language == "sh":
            run = [one for one in shell(block) if not rule_for(one).skip]
            found += [match for one in run for match in re.findall(r"--output (\S+)", one.text)]
        elif block.title.endswith(".yaml"):
            found += re.findall(r"^output: (\S+)", block.text, re.MULTILINE)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # METEOR leaves its pipes open
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", RUN)
def test_a_page_can_be_followed(page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "reader"
    copy_tree(world, folder)
    for output in outputs(page):
        shutil.rmtree(folder / output, ignore_errors=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reader = Reader(page, folder)
    with reader.stack:
        for block in blocks(page):
            reader.do(block)
