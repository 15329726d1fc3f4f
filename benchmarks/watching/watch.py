"""``clips-bench watch STUDY``: how far a study or a training is, redrawn while it runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.watching.snapshot import snapshot, watched_directory
from clips.core.artifact import say
from clips.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Follow a study or a training from beside it: it only reads, and may be ended at any time.

    Args:
        directory: a study's file or output, or the output of a training.
        once: print how far it is and end, as is done where nothing runs or nobody looks (no terminal).
        every: seconds between looks.
        tensorboard: instead of the terminal, serve the trainings' curves by TensorBoard on this machine, from copies:
            what is watched stays as it is.
        port: of TensorBoard.
    """

    directory: str
    once: bool = False
    every: float = 2.0
    tensorboard: bool = False
    port: int = 6006

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise UserError(f"every: expected more than 0 seconds, got {self.every:g}")
        if not 0 < self.port < 65536:
            raise UserError(f"port: expected a number from 1 to 65535, got {self.port}")


def watch(config: WatchConfig) -> None:
    """Show it until it ends or Ctrl-C.

    Raises:
        UserError: no study or training there, or TensorBoard is asked for and not installed.
    """
    from rich.console import Console

    directory = watched_directory(config.directory)
    if config.tensorboard:
        _board(directory, config)
        return
    console = Console(highlight=False)
    follow(directory, console, once=config.once or not console.is_terminal, wait=lambda: time.sleep(config.every))


def follow(directory: Path, console: Console, *, once: bool, wait: Callable[[], None]) -> None:
    """Draw snapshots until there is nothing more to come.

    Args:
        directory: the study's output or the training's.
        console: where to.
        once: only one.
        wait: called between two.
    """
    from rich.live import Live

    from benchmarks.watching.view import view

    seen = snapshot(directory)
    if once or not seen.goes_on:
        console.print(view(seen, console.width))
        return
    with Live(view(seen, console.width), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while seen.goes_on:
            wait()
            seen = snapshot(directory)
            live.update(view(seen, console.width), refresh=True)


def _board(directory: Path, config: WatchConfig) -> None:
    from benchmarks.watching.board import Board, serve

    with tempfile.TemporaryDirectory(prefix="clips-watch-") as logs:
        board = Board(directory, Path(logs))
        board.collect()
        server = serve(Path(logs), config.port)
        say(f"watch: http://localhost:{config.port}/ (Ctrl-C ends it)")
        try:
            while server.poll() is None:
                time.sleep(config.every)
                board.collect()
        finally:
            server.terminate()
            server.wait()
            board.close()
        if server.returncode:
            raise UserError(f"port: TensorBoard ended with status {server.returncode}; is {config.port} taken?")
