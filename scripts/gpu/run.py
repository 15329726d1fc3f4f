"""Run the parts of `parts.py` in order; a cut loses nothing, and a second run continues behind it.

    bash scripts/gpu/run.sh --out results                          all parts, on a GPU
    bash scripts/gpu/run.sh --out results --part step profile      these only
    bash scripts/gpu/run.sh --out results --seconds 570            stops itself after that time
    bash scripts/gpu/run.sh --out results --device cpu --small     each part in its small form

``results.jsonl`` gets a line when a command begins and when it ends, with the lines that it writes in between, one for
each measurement; ``log.txt`` all output. Commands that ended well are skipped by the next run with the same folder,
others start again. A part has `parts.SECONDS`; after these its command is ended, and the next part begins.

What is needed beyond the machine's own packages comes from the kit: wheels of packages that are installed there already
are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import parts

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("torch", "torchvision", "triton", "transformers", "accelerate", "timm", "peft", "numpy")
LEAST_SECONDS = 30  # that must be left for a command to start
GRACE_SECONDS = 10  # between asking a command to end and killing it


def main() -> int:
    began = time.monotonic()
    args = arguments()
    table = parts.SMALL if args.small else parts.FULL
    if args.list:
        print("\n".join(f"{name}: {line}" for name in args.part for line in table[name]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the running command first
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.jsonl")
    environment = prepare(args.kit, args.work)
    results.write(event="machine", **describe_machine())
    stop = began + args.seconds if args.seconds else float("inf")
    for name in args.part:
        limit = min(stop, time.monotonic() + parts.SECONDS)
        for line in table[name]:
            run(name, line, args, results, environment, limit)
    failed = results.failed(table, args)
    print(f"{args.out}: {len(failed)} commands did not end well", *failed, sep="\n  ")
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-results")
    parser.add_argument("--kit", type=Path, default=ROOT / "build/gpu-kit")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-work", help="for packages, data, large files")
    parser.add_argument("--part", nargs="+", default=list(parts.FULL), choices=list(parts.FULL))
    parser.add_argument("--seconds", type=float, help="stop after these, installing included")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="each part in its small form")
    parser.add_argument("--list", action="store_true", help="print the commands")
    args = parser.parse_args()
    for name in ("out", "kit", "work"):
        setattr(args, name, getattr(args, name).resolve())
    return args


# ---------------------------------------------------------------- results


class Results:
    """The lines of earlier runs and of this one; a line that a cut has left unfinished is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):
            self._append("\n")

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def write(self, **values: Any) -> None:
        self._append(json.dumps({"time": round(time.time(), 1), **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def done(self) -> set[tuple[str, str, str]]:
        """Part, command line and device of the commands that ended well."""
        ends = (line for line in self.read() if line.get("event") == "end" and line["status"] == 0)
        return {(line["part"], line["command"], line["device"]) for line in ends}

    def failed(self, table: dict[str, list[str]], args: argparse.Namespace) -> list[str]:
        done = self.done()
        return [line for name in args.part for line in table[name] if (name, line, args.device) not in done]


def describe_machine() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        gpu = ""
    versions = {name: version for name in VERSIONS if (version := installed(name))}
    return {"gpu": gpu, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


# ---------------------------------------------------------------- the kit


def installed(name: str) -> str | None:
    """The version of a package of this machine, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_wheels(folder: Path) -> list[str]:
    """The kit's wheels of packages that this machine lacks."""
    return [str(path) for path in sorted(folder.glob("*.whl")) if installed(path.name.partition("-")[0]) is None]


def prepare(kit: Path, work: Path) -> dict[str, str]:
    """Install and unpack the kit below ``work``, unless that is done; returns the environment of the commands."""
    if not (kit / "data.tar.gz").is_file():
        raise SystemExit(f"{kit}: expected the folder that scripts/gpu/kit.sh makes")
    site, data = work / "site", work / "data"
    for leftover in work.glob("*.part"):  # of a cut
        shutil.rmtree(leftover)
    if not (wheels := missing_wheels(kit / "wheels")):
        site.mkdir(parents=True, exist_ok=True)
    elif not site.is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*install, "--target", f"{site}.part", *wheels], check=True)
        Path(f"{site}.part").rename(site)
    if not data.is_dir():
        Path(f"{data}.part").mkdir()
        subprocess.run(["tar", "-xzf", kit / "data.tar.gz", "-C", f"{data}.part"], check=True)
        Path(f"{data}.part").rename(data)
    paths = [str(ROOT), str(ROOT / "scripts/gpu"), str(site)]
    more = {"HF_HUB_OFFLINE": "1", "DS_BUILD_OPS": "0", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    programs = os.pathsep.join([str(site / "bin"), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(paths), "PATH": programs}


# ---------------------------------------------------------------- a command


def run(
    part: str, line: str, args: argparse.Namespace, results: Results, environment: dict[str, str], limit: float
) -> None:
    """Run a command until ``limit``, unless an earlier run has done it or there is little time left."""
    named = {"part": part, "command": line, "device": args.device}
    if (part, line, args.device) in results.done() or limit - time.monotonic() < LEAST_SECONDS:
        return
    results.write(event="begin", **named)
    began = time.monotonic()
    with subprocess.Popen(["tee", "-a", str(args.out / "log.txt")], stdin=subprocess.PIPE, bufsize=0) as log:
        assert log.stdin is not None
        log.stdin.write(f"\n== {part}: {line}\n".encode())
        process = subprocess.Popen(
            full_command(line, args), cwd=ROOT, env=environment | threads(line), stdout=log.stdin,
            stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        try:
            status: int | str = process.wait(max(0.0, limit - began))
        except subprocess.TimeoutExpired:
            status = "cut"
        finally:  # also what it has started
            end(process)
    results.write(event="end", **named, status=status, seconds=round(time.monotonic() - began, 1))


def threads(line: str) -> dict[str, str]:
    """The threads of each of pytest's processes, as in scripts/test.sh; scripts have an argument for theirs."""
    return {"OMP_NUM_THREADS": "1"} if line.startswith("-m pytest") else {}


def full_command(line: str, args: argparse.Namespace) -> list[str]:
    """The words of a command line of `parts`, with the folders, the device and the file of the results."""
    words = [word.format(data=args.work / "data", work=args.work) for word in shlex.split(line)]
    device = [] if words[0] == "-m" else ["--device", args.device]
    return [sys.executable, *words, *device, "--json", str(args.out / "results.jsonl")]


def end(process: subprocess.Popen[bytes]) -> None:
    """End the group of a process, and the groups that it has started, as the bridge's launcher does."""
    started = descendants(process.pid) if process.poll() is None else []
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in started:
        if each.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[Any]:
    """Its processes of psutil, which comes with accelerate; without it ``--list`` still works."""
    import psutil

    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    sys.exit(main())
