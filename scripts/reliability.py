"""Break a training as clusters do, and check that the result is the same.

    python scripts/reliability.py --kills 100

The training has two processes with one DataLoader worker each, a shuffle buffer of 20 shards, and one broken sample and
one broken shard in a hundred.

1. Repeated kill -9 at random moments, of all processes or of one: the final parameters equal those of an uninterrupted
   training, bit for bit, and the same broken samples are reported.
2. A flipped byte in a checkpoint: an error names the file.
3. A full disk while a checkpoint is written: a one-line error, and the previous checkpoint is intact (needs the right
   to mount a small tmpfs).

It prints a line for each; exit status 1 if one fails or cannot be tried. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clips.data.tar_index import add_member

SHARDS, SAMPLES = 100, 10
WEIGHTS = ("open_clip_model.safetensors", "captioner.safetensors")


def kill_options(description: str | None, kills: int) -> argparse.ArgumentParser:
    """A parser with the options of every script that kills processes."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=kills)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--work", type=Path, help="a directory to work in; a temporary one if not given")
    return options


@contextlib.contextmanager
def directory(work: Path | None) -> Iterator[Path]:
    """The directory ``work``, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        yield work or Path(temporary)


def main() -> int:
    options = kill_options(__doc__, 100)
    options.add_argument("--steps", type=int, default=8000)
    options.add_argument("--strategy", default="ddp", help="how the two processes share the model: ddp, fsdp, zero1 …")
    arguments = options.parse_args()
    with directory(arguments.work) as work:
        data = write_data(work / "data", random.Random(arguments.seed))
        passed = [
            survives_kills(work, data, arguments),
            rejects_a_flipped_byte(work, data),
            survives_a_full_disk(work, data),
        ]
    return 0 if all(passed) else 1


# ---------------------------------------------------------------- data and config


def write_data(folder: Path, rng: random.Random) -> Path:
    """Write shards of images with captions: one sample in a hundred undecodable, one shard in a hundred truncated.

    ``sizes.json`` states their counts as for remote shards, so that the loader must replace the missing samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    broken, cut = set(rng.sample(range(SHARDS * SAMPLES), SHARDS * SAMPLES // 100)), rng.randrange(SHARDS)
    for shard in range(SHARDS):
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(shard * SAMPLES, (shard + 1) * SAMPLES):
                add_member(tar, f"{index:06d}.png", b"broken" if index in broken else noise_image(index))
                captions = {"web_caption": f"thing {index}", "synthetic_caption": f"It is {index}. There are {index}."}
                add_member(tar, f"{index:06d}.json", json.dumps(captions).encode())
        if shard == cut:
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    sizes = {f"{shard:05d}.tar": SAMPLES for shard in range(SHARDS)}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    return folder


def noise_image(index: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(index).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((24, 24)).save(stream, "png")
    return stream.getvalue()


def write_config(output: Path, data: Path, steps: int, parallel: str = "ddp") -> Path:
    path = output.with_name(f"{output.name}.json")
    path.write_text(
        json.dumps(
            {
                "output": str(output),
                "data": {
                    "sources": [{"path": str(data)}],
                    "shuffle_buffer_shards": 20,
                    "max_invalid_ratio": 0.05,
                    "num_workers": 1,
                },
                "distributed": {"strategy": parallel},
                "model": {"architecture": "clips-tiny", "image_size": 16, "context_length": 12},
                "recipe": {"name": "clips", "captioner": {"max_length": 12, "num_layers": 1, "max_loss_tokens": 2}},
                "max_steps": steps,
                "global_batch_size": 4,
                "precision": "fp32",
                "logging_steps": 50,
                "save_steps": 10,
            }
        )
    )
    return path


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a training with two processes in a new session."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "clips.cli", "train", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)


def finish(config: Path, log: Path) -> int:
    return start(config, log).wait()


def checkpoints(output: Path) -> list[Path]:
    return sorted(path.parent for path in output.glob(".checkpoints/[!.]*/train_state.json"))


# ---------------------------------------------------------------- the trials


def survives_kills(work: Path, data: Path, arguments: argparse.Namespace) -> bool:
    kills, settings, rng = arguments.kills, (arguments.steps, arguments.strategy), random.Random(arguments.seed)
    whole, killed = work / "whole", work / "killed"
    began, process = time.monotonic(), start(write_config(whole, data, *settings), work / "whole.log")
    while not checkpoints(whole) and process.poll() is None:
        time.sleep(0.1)
    startup = time.monotonic() - began
    if process.wait():
        return print_result(False, f"the uninterrupted training failed, see {work / 'whole.log'}")
    config = write_config(killed, data, *settings)
    done, resumed_at = 0, set()
    while done < kills:
        process = start(config, work / "killed.log")
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(rng.uniform(0, 2 * startup)) == 0:
                break  # it ended before the last kill
        kill(process, rng)
        done += 1
        resumed_at.add(checkpoints(killed)[-1].name if checkpoints(killed) else "the beginning")
        print(f"\rkill {done} of {kills}, saved at {max(resumed_at)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if finish(config, work / "killed.log"):
        return print_result(False, f"the killed training did not end, see {work / 'killed.log'}")
    same = all((whole / name).read_bytes() == (killed / name).read_bytes() for name in WEIGHTS)
    reports = [json.loads((output / "summary.json").read_text())["invalid_samples"] for output in (whole, killed)]
    spent = f"{done} kills of {kills}" + ("" if done == kills else " (give it more --steps)")
    spread = 5 * len(resumed_at) >= done  # otherwise the machine was too busy for much progress
    return print_result(
        done == kills and spread and same and reports[0] == reports[1] and reports[0]["count"] > 0,
        f"{spent}, resumed from {len(resumed_at)} checkpoints: parameters "
        f"{'equal' if same else 'differ'}; broken samples met: {reports[0]['count']} and {reports[1]['count']}",
    )


def kill(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Kill all processes, or one of the two, whose launcher then ends the other."""
    workers = [int(pid) for pid in children(process.pid)]
    if workers and rng.random() < 0.3:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
        process.wait()
        return
    for pid in [*workers, process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def children(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def rejects_a_flipped_byte(work: Path, data: Path) -> bool:
    output = work / "flipped"
    config = write_config(output, data, 100_000)
    process = start(config, work / "flipped.log")
    while not checkpoints(output) and process.poll() is None:
        time.sleep(0.1)
    kill(process, random.Random(1))
    victim = max(checkpoints(output)[-1].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (work / "flipped.log").unlink()
    status = finish(config, work / "flipped.log")
    lines = [line for line in (work / "flipped.log").read_text().splitlines() if f"{victim}: damaged" in line]
    return print_result(status != 0 and bool(lines), f"a flipped byte: {lines[0] if lines else 'not noticed'}")


def survives_a_full_disk(work: Path, data: Path) -> bool:
    with small_disk(work / "disk") as disk:
        if disk is None:
            print("SKIPPED  a full disk: no right to mount a tmpfs here")
            return False
        output = disk / "run"
        config = write_config(work / "full", data, 100_000)
        config.write_text(config.read_text().replace(str(work / "full"), str(output)))
        process = start(config, work / "full.log")
        while not checkpoints(output) and process.poll() is None:
            time.sleep(0.1)
        size = sum(path.stat().st_size for path in checkpoints(output)[-1].iterdir())
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * max(0, free - size // 2))
        status = process.wait()
        left = checkpoints(output)
        ballast.unlink()
        lines = [line for line in (work / "full.log").read_text().splitlines() if "the disk is full" in line]
        process = start(config, work / "again.log")
        before = left[-1].name if left else ""
        while process.poll() is None and not (checkpoints(output) and checkpoints(output)[-1].name > before):
            time.sleep(0.1)
        resumed = process.poll() is None
        kill(process, random.Random(1))
        return print_result(
            status != 0 and bool(lines) and bool(left) and resumed,
            f"a full disk: {lines[0] if lines else 'no line reports it'}; {before} stayed, and the training "
            f"{'resumed' if resumed else 'did not resume'} from it",
        )


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    folder.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", folder], capture_output=True)
    try:
        yield folder if mount.returncode == 0 else None
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def print_result(passed: bool, text: str) -> bool:
    print(f"{'passed ' if passed else 'FAILED '} {text}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main())
