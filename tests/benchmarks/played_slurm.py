"""Plays SLURM's programs on one machine, without accounting, by the name under which it is called.

Jobs lie in the directory PLAYED_SLURM: files with the arguments of sbatch, the pid of its shell, its state. There is no
queue: what is submitted runs, unless a file ``hold`` is there.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

JOBS = Path(os.environ["PLAYED_SLURM"])


def sbatch(*words: str) -> None:
    asked: dict[str, str] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        flag = not equals and (not rest or rest[0].startswith("-"))
        asked[name.lstrip("-")] = value if equals else "" if flag else rest.pop(0)
    if asked.get("p") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    number = 101 + len(list(JOBS.glob("job.*")))
    (JOBS / f"job.{number}").write_text(json.dumps(asked), encoding="utf-8")
    keeper = [sys.executable, __file__, "keep", str(number)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(keeper, start_new_session=True, **quiet)
    print(number)


def keep(number: str) -> None:
    """Run a job and note its state."""
    asked = json.loads((JOBS / f"job.{number}").read_text(encoding="utf-8"))
    state = JOBS / f"state.{number}"
    state.write_text("PENDING", encoding="utf-8")
    while (JOBS / "hold").exists():
        if (JOBS / f"cancelled.{number}").exists():
            state.write_text("CANCELLED", encoding="utf-8")
            return
        time.sleep(0.05)
    slurm = {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "localhost", "SLURM_PROCID": "0"}
    with Path(asked["output"].replace("%j", number)).open("ab") as log:
        shell = subprocess.Popen(
            ["bash", "-c", asked["wrap"]], env={**os.environ, **slurm}, cwd=asked["D"], stdout=log, stderr=log
        )
    (JOBS / f"pid.{number}").write_text(str(shell.pid), encoding="utf-8")
    state.write_text("RUNNING", encoding="utf-8")
    status = shell.wait()
    cancelled = (JOBS / f"cancelled.{number}").exists()
    state.write_text("CANCELLED" if cancelled else "FAILED" if status else "COMPLETED", encoding="utf-8")


def srun(*words: str) -> None:
    rest = list(words)
    while rest[0].startswith("-"):
        rest.pop(0)
    os.execvp(rest[0], rest)


def squeue(*words: str) -> None:
    asked = dict(re.findall(r"--(\w+)[= ]([^ ]+(?: %j)?)", " ".join(words)))
    for path in sorted(JOBS.glob("state.*")):
        number, state = path.name.partition(".")[2], path.read_text(encoding="utf-8")
        name = json.loads((JOBS / f"job.{number}").read_text(encoding="utf-8"))["job-name"]
        if asked["states"] in {"all", state} and asked.get("name", name) == name:
            print(asked["format"].replace("%i", number).replace("%T", state).replace("%j", name))


def scancel(*words: str) -> None:
    for number in [word for word in words if word.isdecimal()]:
        (JOBS / f"cancelled.{number}").touch()
        if (pid := JOBS / f"pid.{number}").is_file():
            tell(int(pid.read_text(encoding="utf-8")), signal.SIGTERM)


def tell(leader: int, number: int) -> None:
    """Send a signal to a job's processes, those that have sessions of their own included."""
    below = {leader}
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((path / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[1])
            below |= {int(path.name)} if parent in below else set()
    for pid in below - {leader}:  # the batch shell waits
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def scontrol(*_words: str) -> None:
    print("MinJobAge               = 300 sec")


def sacct(*_words: str) -> None:
    sys.exit("Slurm accounting storage is disabled")


def sinfo(*_words: str) -> None:
    print("debug*")


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    played = {each.__name__: each for each in (sbatch, srun, squeue, scancel, scontrol, sacct, sinfo)}
    if sys.argv[1:2] == ["keep"]:
        keep(sys.argv[2])
    else:
        played[name](*sys.argv[1:])
