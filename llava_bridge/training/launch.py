"""Start training processes, several through the ``deepspeed`` launcher, and communicate with them.

The command's process imports neither torch nor transformers. It prints the lines that the processes report, writes all
other output of the launcher and the libraries to a log file, and raises the user errors of the processes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from clips.commandline.signals import StopRequest, exit_status_for_signal, graceful_shutdown
from clips.core.artifact import log_info
from clips.errors import UserError
from clips.safe_text import redact, strip_control_chars
from clips.text_files import safe_json_loads

_COMMAND_PID = "LLAVA_BRIDGE_COMMAND_PID"
_REPORT, _USER_ERROR, _STATUS = "\x1e", "\x1f", "\x1d"  # prefixes of the lines that a process prints for the command
STOP_FILE = "stop"
"""The file in a work directory with which the command requests its processes to stop."""
_TAIL_LINES = 25
_SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
# Error messages of a full disk: of the system, safetensors and torch.save.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "unexpected pos", "PytorchStreamWriter failed")


def launcher_world_size() -> int | None:
    """Number of processes of the distributed launcher (deepspeed, torchrun); None without one."""
    launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if launched else None


def is_main_process() -> bool:
    """Whether this is the process of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def is_reporting_process() -> bool:
    """Whether this process is the command itself, or rank 0 of another launcher."""
    return is_main_process() and _COMMAND_PID not in os.environ


def launch(arguments: Sequence[str], processes: int, log: Path, lock: int | None = None) -> None:
    """Run ``llava-bridge ARGUMENTS`` in ``processes`` processes, several under the DeepSpeed launcher, and wait.

    Args:
        arguments: the command and its options.
        processes: number of processes on this machine.
        log: file of the processes' output.
        lock: a file descriptor that the launcher keeps open until its processes have ended.

    Raises:
        UserError: of a process.
        SystemExit: a process failed otherwise, and the end of the log has been printed; or the run was stopped.
    """
    environment = {**os.environ, _COMMAND_PID: str(os.getpid())}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    if processes == 1:  # a launcher would import torch in another process first
        command = [sys.executable, "-u", "-m"]
        environment |= _SINGLE_PROCESS | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    else:
        hosts = base64.urlsafe_b64encode(json.dumps({"localhost": _gpus(processes)}).encode()).decode()
        command = [*_deepspeed(), f"--world_info={hosts}", "--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
        command += ["--no_local_rank", "--module"]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    user_errors: list[str] = []
    reported_status = None
    with (
        log.open("a", encoding="utf-8") as file,
        _forward_stop_signals(log.with_name(STOP_FILE)),
        _process_group([*command, "llava_bridge", *arguments], environment, lock) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line.lstrip(_REPORT + _USER_ERROR + _STATUS))
            if line.startswith(_REPORT):
                log_info(line[1:].rstrip("\n"))
            elif line.startswith(_STATUS):
                reported_status = int(line[1:])
            elif line.startswith(_USER_ERROR):
                user_errors.append(line[1:].rstrip("\n"))
            else:
                tail.append(line)
        status = process.wait()
    if user_errors:
        raise UserError(user_errors[0])
    if reported_status is not None:
        raise SystemExit(reported_status)
    if status:
        log_info("".join(tail).rstrip("\n"))
        log_info(f"llava-bridge: a training process ended with status {status}; its whole log: {log}")
        raise SystemExit(1)


def _gpus(processes: int) -> list[int] | list[str]:
    """The GPU of each process: those in CUDA_VISIBLE_DEVICES, else the first ones; UserError if fewer are visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible:
        return list(range(processes))
    ids = visible.split(",")
    if len(ids) < processes:
        raise UserError(f"distributed.num_processes: expected at most {len(ids)}, as CUDA_VISIBLE_DEVICES is {visible}")
    return ids[:processes]


@contextlib.contextmanager
def _forward_stop_signals(file: Path) -> Iterator[None]:
    """SIGTERM and Ctrl-C request the training processes to save and stop; a second Ctrl-C ends them immediately."""
    file.unlink(missing_ok=True)
    partial = file.with_suffix(".partial")

    def write_stop_file(number: int) -> None:
        partial.write_text(str(number))
        partial.replace(file)  # readers never see an empty file

    with graceful_shutdown(write_stop_file):
        yield


class DistributedStopRequest:
    """A stop request for a training: a signal to any of its processes, or to the command.

    Args:
        request: the signals to this process.
        work: the run's work directory.
    """

    def __init__(self, request: StopRequest, work: Path) -> None:
        self.request = request
        self.file = work / STOP_FILE

    def is_requested(self) -> bool:
        """Whether this process has received a request."""
        return self.request.signal != 0 or self.file.is_file()

    def of_any_process(self) -> int:
        """The signal, 0 for none, equal in all processes, which must call this together."""
        import torch

        if self.request.signal == 0 and is_main_process() and self.file.is_file():
            self.request.signal = int(self.file.read_text())
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        return self.request.of_any_process(device)


def exit_after_stop(number: int) -> NoReturn:
    """End this process, and the command that started it, after a stop by the signal ``number``."""
    _log_status(exit_status_for_signal(number))
    raise SystemExit(exit_status_for_signal(number))


def end_hung(status: int, reason: str) -> NoReturn:
    """End this process, and the command that started it, from a thread, since the main thread hangs."""
    log_rank0(reason)
    _log_status(status)
    os._exit(status)


def _log_status(status: int) -> None:
    if _COMMAND_PID in os.environ and is_main_process():
        _log_command(_STATUS, str(status))


def deepspeed_config(name: str, field: str = "distributed.deepspeed") -> dict[str, Any]:
    """The DeepSpeed config ``name``: a shipped one, or a JSON file; ``field`` begins errors.

    Raises:
        UserError: no such file, or no object in JSON.
    """
    shipped = Path(__file__).parent / "deepspeed_configs" / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        found = safe_json_loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.json")))
        raise UserError(f"{field}: expected a JSON file or one of {known}, got '{name}'") from None
    except ValueError as error:
        raise UserError(f"{field}: {path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{field}: {path}: expected a JSON object, got {type(found).__name__}")
    for part, default in (("zero_optimization", None), ("bf16", {}), ("fp16", {})):
        if not isinstance(found.get(part, default), dict):
            raise UserError(f"{field}: {path}: {part}: expected an object, got {json.dumps(found.get(part))}")
    return found


def log_rank0(line: str) -> None:
    """Log a line in rank 0, through the command that started it."""
    if not is_main_process():
        return
    if _COMMAND_PID in os.environ:
        _log_command(_REPORT, line)
    else:
        log_info(line)


def _log_command(prefix: str, line: str) -> None:
    """Print a line for the command that started this process."""
    print(prefix + strip_control_chars(redact(line)), file=sys.stderr, flush=True)


@contextlib.contextmanager
def forward_user_errors() -> Iterator[None]:
    """Report user errors, full disks among them, to the command that started this process, and raise them.

    Raises:
        UserError: the error.
    """
    try:
        yield
    except Exception as error:
        user_error = error if isinstance(error, UserError) else _disk_full_error(error)
        if user_error is None:
            raise
        if _COMMAND_PID in os.environ:
            _log_command(_USER_ERROR, " ".join(str(user_error).splitlines()))
        raise user_error from None


def _disk_full_error(error: Exception) -> UserError | None:
    if not any(sign in str(error) for sign in _DISK_FULL):
        return None
    where = getattr(error, "filename", None) or "output"
    return UserError(f"{where}: the disk is full; free some space and run the same command again")


def is_parent_dead() -> bool:
    """Whether the command that started this process has ended."""
    pid = os.environ.get(_COMMAND_PID)
    if pid is None:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _deepspeed() -> list[str]:
    """The command that ``deepspeed`` starts on each host; on one host its search for others is not needed."""
    return [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]


@contextlib.contextmanager
def _process_group(
    command: Sequence[str], environment: dict[str, str], lock: int | None
) -> Iterator[subprocess.Popen[str]]:
    """A process whose process group is ended with the block."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
        if process.stdout is not None:
            process.stdout.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
