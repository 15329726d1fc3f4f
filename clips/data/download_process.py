"""Downloads in a separate process, because they would take the interpreter lock from the training step.

The process starts with the first download and ends with its parent, also if that is killed; unfinished downloads leave
no file.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from clips.errors import UserError, error_reason

Download = Callable[[Path], None]
_MAX_DOWNLOADS = 16  # concurrent ones; more than the requesting threads
_CLOSE_SECONDS = 5.0
_COMMAND = "from clips.data.download_process import serve; serve({fd})"


class DownloadProcess:
    """Runs downloads for the threads of the process that created it.

    Forked processes, and all processes after `close`, run their downloads themselves.
    """

    def __init__(self) -> None:
        self._owner, self._closed = os.getpid(), False
        self._lock = threading.Lock()  # guards the following
        self._child: _Child | None = None

    def run(self, download: Download, path: Path) -> None:
        """Call the picklable ``download`` with ``path`` in the process.

        Raises:
            Exception: the download's exception, or an OSError if it cannot be pickled.
            OSError: the process ended; the next call starts another one.
        """
        if os.getpid() != self._owner:
            return download(path)
        with self._lock:
            if not self._closed and (self._child is None or self._child.ended):
                self._child = _Child()
            child = self._child if not self._closed else None
        return download(path) if child is None else child.run(download, path)

    def close(self) -> None:
        """End the process; unfinished downloads raise OSError."""
        with self._lock:
            self._closed = True
            child, self._child = self._child, None
        if child is not None and os.getpid() == self._owner:
            child.close()


class _Child:
    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _COMMAND.format(fd=theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards the following, and sending
        self._waiting: dict[int, concurrent.futures.Future[None]] = {}
        self.ended = False
        threading.Thread(target=self._receive, name="downloads", daemon=True).start()

    def run(self, download: Download, path: Path) -> None:
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            if self.ended:
                raise OSError("the process that downloads has ended")
            number = next(self._numbers)
            self._waiting[number] = future
            with contextlib.suppress(OSError):  # the process has ended; `_receive` reports it
                self._connection.send((number, download, path))
        future.result()

    def _receive(self) -> None:
        """Pass results to the waiting threads until the process ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, error = self._connection.recv()
                with self._lock:
                    future = self._waiting.pop(number)
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
        with self._lock:
            self.ended = True
        for future in self._waiting.values():
            future.set_exception(OSError("the process that downloads has ended"))
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)


def serve(fd: int) -> None:
    """Main loop of the process: run the downloads that arrive at ``fd`` until the requesting process ends.

    Ignores signals, which schedulers and terminals send to every process: training handles them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection, sending, unfinished = Connection(fd), threading.Lock(), set[Path]()

    def run(number: int, download: Download, path: Path) -> None:
        error = None
        unfinished.add(path)
        try:
            download(path)
        except Exception as raised:  # file systems raise errors of their own
            error = _sendable(raised)
        unfinished.discard(path)
        with sending, contextlib.suppress(OSError):
            connection.send((number, error))

    executor = concurrent.futures.ThreadPoolExecutor(_MAX_DOWNLOADS)
    with contextlib.suppress(EOFError, OSError):
        while True:
            executor.submit(run, *connection.recv())
    for path in unfinished.copy():
        path.unlink(missing_ok=True)
    os._exit(0)  # without waiting for downloads


def _sendable(error: Exception) -> Exception:
    """``error``, or an OSError with the same message if its class may not be picklable."""
    is_picklable = isinstance(error, UserError) or type(error).__module__ == "builtins"
    return error if is_picklable else OSError(error_reason(error))
