"""Start training processes, several through the ``deepspeed`` launcher, and speak with them.

The command's own process stays light: it imports neither torch nor transformers. It passes on what the
processes report, keeps everything else that the launcher and the libraries print in a log file, and turns a
user's mistake found inside a process into its own one line and exit status.
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
from clips.redaction import redact
from clips.sanitize import strip_control_chars

_COMMAND_PID = "LLAVA_BRIDGE_COMMAND_PID"
_REPORT, _MISTAKE, _STATUS = "\x1e", "\x1f", "\x1d"  # begin the lines that a process prints for the command
STOP_FILE = "stop"
"""The file in a work directory by which the command asks its processes to stop."""
_TAIL = 25
_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
# What is raised where a disk is full: by the system, by safetensors, by torch.save.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "unexpected pos", "PytorchStreamWriter failed")


def launcher_world_size() -> int | None:
    """How many processes the distributed launcher (deepspeed, torchrun) has started; None if none started this one."""
    launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if launched else None


def is_main_process() -> bool:
    """Whether this is the process of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def is_reporting_process() -> bool:
    """Whether this process is the command itself, or rank 0 of processes that someone else's launcher started."""
    return is_main_process() and _COMMAND_PID not in os.environ


def launch(arguments: Sequence[str], processes: int, log: Path, lock: int | None = None) -> None:
    """Run ``llava-bridge ARGUMENTS`` in ``processes`` processes, several under the DeepSpeed launcher, and wait.

    Args:
        arguments: the command and its options.
        processes: how many on this machine.
        log: where everything is written that the processes print.
        lock: a file descriptor that the launcher keeps open until its processes have ended.

    Raises:
        UserError: a process ended with one.
        SystemExit: a process failed otherwise, and the end of the log has been printed; or the run was stopped.
    """
    environment = {**os.environ, _COMMAND_PID: str(os.getpid())}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    if processes == 1:  # a launcher would import torch once more before anything begins
        command = [sys.executable, "-u"]
        environment |= _ALONE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    else:
        machines = json.dumps({"localhost": _gpus(processes)}).encode()
        command = [*_deepspeed(), f"--world_info={base64.urlsafe_b64encode(machines).decode()}"]
        command += ["--master_addr=127.0.0.1"]
        command += [f"--master_port={_free_port()}", "--no_local_rank"]
    command += ["-m" if processes == 1 else "--module", "llava_bridge", *arguments]
    tail: deque[str] = deque(maxlen=_TAIL)
    mistakes: list[str] = []
    ended_as = None
    with (
        log.open("a", encoding="utf-8") as file,
        _stops_passed_on(log.with_name(STOP_FILE)),
        _group(command, environment, lock) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line.lstrip(_REPORT + _MISTAKE + _STATUS))
            if line.startswith(_REPORT):
                log_info(line[1:].rstrip("\n"))
            elif line.startswith(_STATUS):
                ended_as = int(line[1:])
            elif line.startswith(_MISTAKE):
                mistakes.append(line[1:].rstrip("\n"))
            else:
                tail.append(line)
        status = process.wait()
    if mistakes:
        raise UserError(mistakes[0])
    if ended_as is not None:
        raise SystemExit(ended_as)
    if status:
        log_info("".join(tail).rstrip("\n"))
        log_info(f"llava-bridge: a training process ended with status {status}; its whole log: {log}")
        raise SystemExit(1)


def _gpus(processes: int) -> list[int] | list[str]:
    """The GPU of each process, as the launcher is told: those that CUDA_VISIBLE_DEVICES shows, else the first ones.

    Raises:
        UserError: fewer are visible.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible:
        return list(range(processes))
    ids = visible.split(",")
    if len(ids) < processes:
        raise UserError(f"launch.num_processes: expected at most {len(ids)}, as CUDA_VISIBLE_DEVICES is {visible}")
    return ids[:processes]


@contextlib.contextmanager
def _stops_passed_on(file: Path) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C ask the training processes to save and stop; Ctrl-C once more ends them at once."""
    file.unlink(missing_ok=True)
    partial = file.with_suffix(".partial")

    def heard(number: int) -> None:
        partial.write_text(str(number))
        partial.replace(file)  # who finds it finds the number in it

    with graceful_shutdown(heard):
        yield


class DistributedStopRequest:
    """Whether anybody wants this training to stop: a signal to any of its processes, or to the command.

    Args:
        request: the signals to this process.
        work: the run's work directory.
    """

    def __init__(self, request: StopRequest, work: Path) -> None:
        self.request = request
        self.file = work / STOP_FILE

    def asked(self) -> bool:
        """Whether this process knows of such a wish."""
        return self.request.signal != 0 or self.file.is_file()

    def of_any_process(self) -> int:
        """The signal, 0 for none; all processes must call it together, and learn the same."""
        import torch

        if self.request.signal == 0 and is_main_process() and self.file.is_file():
            self.request.signal = int(self.file.read_text())
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        return self.request.of_any_process(device)


def exit_after_stop(number: int) -> NoReturn:
    """End this process, and the command that started it, after a stop by the signal ``number``."""
    _tell_status(exit_status_for_signal(number))
    raise SystemExit(exit_status_for_signal(number))


def end_hung(status: int, why: str) -> NoReturn:
    """End this process, and the command that started it, from a thread, as the main one waits for ever."""
    log_rank0(why)
    _tell_status(status)
    os._exit(status)


def _tell_status(status: int) -> None:
    if _COMMAND_PID in os.environ and is_main_process():
        _tell_command(_STATUS, str(status))


def deepspeed_config(name: str) -> dict[str, Any]:
    """The DeepSpeed settings that ``name`` says: one of the shipped ones, or a JSON file.

    Raises:
        UserError: no such file, or not JSON.
    """
    shipped = Path(__file__).parent / "deepspeed_configs" / f"{name}.json"
    path = shipped if shipped.is_file() else Path(name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        known = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.json")))
        raise UserError(f"launch.deepspeed: expected a JSON file or one of {known}, got '{name}'") from None
    except json.JSONDecodeError as error:
        raise UserError(f"launch.deepspeed: {path} is not valid JSON ({error})") from None


def log_rank0(line: str) -> None:
    """One line from rank 0 to whoever runs the command."""
    if not is_main_process():
        return
    if _COMMAND_PID in os.environ:
        _tell_command(_REPORT, line)
    else:
        log_info(line)


def _tell_command(mark: str, line: str) -> None:
    """A line for the command that started this process, which knows it by its mark."""
    print(mark + strip_control_chars(redact(line)), file=sys.stderr, flush=True)


@contextlib.contextmanager
def forward_user_errors() -> Iterator[None]:
    """Tell a user's mistake, as which a full disk counts, to the command that started this process; then let it pass.

    Raises:
        UserError: the mistake.
    """
    try:
        yield
    except Exception as error:
        mistake = error if isinstance(error, UserError) else _disk_full(error)
        if mistake is None:
            raise
        if _COMMAND_PID in os.environ:
            _tell_command(_MISTAKE, " ".join(str(mistake).splitlines()))
        raise mistake from None


def _disk_full(error: Exception) -> UserError | None:
    """What to tell if ``error`` means that a disk is full."""
    if not any(sign in str(error) for sign in _DISK_FULL):
        return None
    where = getattr(error, "filename", None) or "output"
    return UserError(f"{where}: the disk is full; free some space and run the same command again")


def is_parent_dead() -> bool:
    """Whether the command that started this process has died (then nobody wants the result any more)."""
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
    """What ``deepspeed`` itself starts on each machine; on one machine it need not be found out which those are."""
    return [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]


@contextlib.contextmanager
def _group(command: Sequence[str], environment: dict[str, str], lock: int | None) -> Iterator[subprocess.Popen[str]]:
    """A process whose whole process group is ended with the block."""
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
