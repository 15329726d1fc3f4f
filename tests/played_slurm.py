"""Plays sbatch, srun, squeue, scancel and scontrol on one machine, by the name under which it is called.

Jobs lie in the folder PLAYED_SLURM, one file each: the pid of its shell and what it was given. There is no queue: what
is submitted runs, unless a file ``hold`` is there, until it goes.
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


def options(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.M))


def sbatch(file: str) -> None:
    script = Path(file).read_text(encoding="utf-8")
    asked = options(script)
    if asked.get("partition") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    main = 1 + max([int(path.name.split("_")[0]) for path in JOBS.glob("[0-9]*")], default=100)
    tasks = range(int(asked["array"].split("%")[0].split("-")[1]) + 1) if "array" in asked else [None]
    for task in tasks:
        name = str(main) if task is None else f"{main}_{task}"
        spooled = JOBS / f"script.{name}"  # SLURM keeps a copy, too: submitit moves the file once sbatch has returned
        spooled.write_text(script, encoding="utf-8")
        (JOBS / name).write_text(json.dumps({"options": asked, "script": str(spooled)}), encoding="utf-8")
        start(name)
    print(f"Submitted batch job {main}")


def start(name: str) -> None:
    told = json.loads((JOBS / name).read_text(encoding="utf-8"))
    main, _, task = name.partition("_")
    slurm = {"SLURM_JOB_ID": main, "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_ARRAY_JOB_ID": main, "SLURM_ARRAY_TASK_ID": task} if task else {}
    wait = f"while [ -e {JOBS}/hold ]; do sleep 0.05; done"
    shell = subprocess.Popen(
        ["bash", "-c", f"{wait}; exec bash {told['script']}"],
        env={**os.environ, **slurm, "SLURM_JOB_NODELIST": "localhost", "SLURM_LOCALID": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (JOBS / f"pid.{name}").write_text(str(shell.pid), encoding="utf-8")


def srun(*arguments: str) -> None:
    words = list(arguments)
    places = {"%j": "SLURM_JOB_ID", "%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%t": "SLURM_PROCID"}
    files = {}
    while words[0].startswith("--"):
        word = words.pop(0)
        if word in {"--output", "--error"}:
            name = words.pop(0)
            for mark, variable in places.items():
                name = name.replace(mark, os.environ.get(variable, mark))
            files[word] = Path(name).open("ab")  # noqa: SIM115
    for word, number in (("--output", 1), ("--error", 2)):
        os.dup2(files[word].fileno(), number)
    os.execvp(words[0], words)


def scontrol(what: str, name: str) -> None:
    """``requeue``: another process starts the job again when this turn of it has ended."""
    assert what == "requeue"
    (JOBS / f"again.{name}").touch()
    if os.fork() == 0:
        os.setsid()
        while alive(name):
            time.sleep(0.05)
        start(name)
        (JOBS / f"again.{name}").unlink()


def alive(name: str) -> bool:
    try:
        pid = int((JOBS / f"pid.{name}").read_text(encoding="utf-8"))
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def squeue(*_arguments: str) -> None:
    if (JOBS / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    print(
        "\n".join(
            path.name.removeprefix("pid.")
            for path in JOBS.glob("pid.*")
            if alive(path.name[4:]) or (JOBS / f"again.{path.name[4:]}").exists()
        )
    )


def scancel(*names: str) -> None:
    asked = next((name.partition("=")[2] for name in names if name.startswith("--signal=")), None)
    names = tuple(name for name in names if not name.startswith("--"))
    for number in (signal.Signals[f"SIG{asked}"],) if asked else (signal.SIGTERM, signal.SIGKILL):
        for name in names:
            for path in JOBS.glob(f"pid.{name}*"):
                for pid in session(int(path.read_text(encoding="utf-8"))):
                    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                        os.kill(pid, number)
        time.sleep(0.3)


def session(leader: int) -> list[int]:
    """A job's processes, those that have sessions of their own included."""
    below, found = {leader}, []
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            parent = int((path / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(path.name) == leader or parent in below:
            below.add(int(path.name))
            found.append(int(path.name))
    return found


if __name__ == "__main__":
    played = {"sbatch": sbatch, "srun": srun, "squeue": squeue, "scancel": scancel, "scontrol": scontrol}
    played[Path(sys.argv[0]).name](*sys.argv[1:])
