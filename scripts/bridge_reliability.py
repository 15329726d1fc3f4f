"""Kill a LLaVA's training with -9 repeatedly, and check that the result is the same.

    python scripts/bridge_reliability.py --kills 50

Two processes under ZeRO-2 align and instruct a tiny LLaVA, on shuffled samples of which one in a hundred has a broken
image. Each kill hits all processes, only the command, or one of the two training processes. Final weights and counts of
broken samples must equal those of an uninterrupted training, bit for bit. Exit status 1 if they differ. About half an
hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
from reliability import directory, kill_options, noise_image, print_result

LAUNCHED = 2


def main() -> int:
    options = kill_options(__doc__, 50)
    options.add_argument("--steps", type=int, default=3000, help="of each of the two stages")
    options.add_argument("--deepspeed", default="zero2")
    arguments = options.parse_args()
    with directory(arguments.work) as work:
        make_world(work, random.Random(arguments.seed))
        passed = survives_kills(work, arguments, random.Random(arguments.seed))
    return 0 if passed else 1


def make_world(work: Path, rng: random.Random) -> None:
    """Write images with conversations, one in a hundred broken, and a small LLM with its tokenizer."""
    import torch

    from llava_bridge.model.small_llama import SmallLlamaConfig, new_llama, train_tokenizer

    (work / "data").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(400):
        name, content = f"{index}.png", b"broken" if rng.random() < 0.01 or index == 7 else noise_image(index)
        (work / "data" / name).write_bytes(content)
        messages = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": f"It is {index}."}]
        rows.append({"id": name, "image": name, "conversations": messages})
    (work / "data" / "talk.json").write_text(json.dumps(rows))
    config = SmallLlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128
    )
    tokenizer = train_tokenizer([f"USER: Which? ASSISTANT: It is {index}." for index in range(50)], config)
    torch.manual_seed(0)
    new_llama(config, tokenizer).save_pretrained(work / "llm")
    tokenizer.save_pretrained(work / "llm")


def write_config(work: Path, name: str, arguments: argparse.Namespace) -> Path:
    stage = {"data": [{"path": str(work / "data" / "talk.json")}], "max_steps": arguments.steps, "global_batch_size": 4}
    path = work / f"{name}.json"
    path.write_text(
        json.dumps(
            {
                "output": str(work / name),
                "encoder": "timm:vit_tiny_patch16_224@random",
                "image_size": 32,
                "llm": str(work / "llm"),
                "align": {**stage, "learning_rate": 1e-3},
                "instruct": {**stage, "learning_rate": 1e-4},
                "distributed": {"num_processes": LAUNCHED, "deepspeed": arguments.deepspeed},
                "precision": "fp32",
                "logging_steps": 20,
                "save_steps": 20,
                "max_invalid_ratio": 0.1,
            }
        )
    )
    return path


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llava_bridge", "train", "--config", str(config)]
    with log.open("ab") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)


def last_checkpoint(work: Path) -> str:
    """The last complete checkpoint of the killed training."""
    marks = work.glob(".killed.work/*/checkpoints/checkpoint-*/complete")
    steps = {mark.parts[-4]: int(mark.parent.name.rpartition("-")[2]) for mark in sorted(marks, key=_step)}
    done = [path.parent.name for path in work.glob(".killed.work/*/model")]
    return f"{', '.join([*done, *(f'{stage} {step}' for stage, step in steps.items())]) or 'the beginning'}"


def done_steps(work: Path) -> int:
    """The number of logged steps of the killed training, over both stages."""
    metrics = work / ".killed.work" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    last = {row["stage"]: row["step"] for row in sorted(rows, key=lambda row: row["step"])}
    return sum(last.values())


def _step(mark: Path) -> int:
    return int(mark.parent.name.rpartition("-")[2])


def survives_kills(work: Path, arguments: argparse.Namespace, rng: random.Random) -> bool:
    began, whole = time.monotonic(), start(write_config(work, "whole", arguments), work / "whole.log")
    while not list(work.glob(".whole.work/metrics.jsonl")) and whole.poll() is None:
        time.sleep(0.1)
    startup = time.monotonic() - began
    if whole.wait():
        return print_result(False, f"the uninterrupted training failed, see {work / 'whole.log'}")
    config, places, done = write_config(work, "killed", arguments), set(), 0
    while done < arguments.kills:
        process, until = start(config, work / "killed.log"), time.monotonic() + rng.uniform(0.3, 3) * startup
        enough = done_steps(work) + rng.uniform(0, 3 * arguments.steps / arguments.kills)  # of both stages' steps
        while process.poll() is None and time.monotonic() < until and done_steps(work) < enough:
            time.sleep(0.05)
        if process.poll() == 0:
            break  # it ended before the last kill
        kill(process, rng)
        done += 1
        places.add(saved := last_checkpoint(work))
        print(f"\rkill {done} of {arguments.kills}, saved at {saved}   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if start(config, work / "killed.log").wait():
        return print_result(False, f"the killed training did not end, see {work / 'killed.log'}")
    same = (work / "whole" / "model.safetensors").read_bytes() == (work / "killed" / "model.safetensors").read_bytes()
    reports = [json.loads((work / name / "manifest.json").read_text())["stages"] for name in ("whole", "killed")]
    invalid = [{stage: summary["invalid_samples"]["count"] for stage, summary in stages.items()} for stages in reports]
    spread = 4 * len(places) >= done
    return print_result(
        done == arguments.kills and spread and same and invalid[0] == invalid[1] and invalid[0]["align"] > 0,
        f"{done} kills of {arguments.kills}, resumed from {len(places)} checkpoints: weights "
        f"{'equal' if same else 'differ'}; broken samples met: {invalid[0]} and {invalid[1]}",
    )


def kill(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Kill all processes, only the command, or one training process; returns when all have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        training = [one for one in family if "--no_local_rank" not in one.cmdline() and "train" in one.cmdline()]
        way = rng.random()
        if way < 0.2:
            victims = []
        elif way < 0.5 and training:
            victims = [rng.choice(training)]
        else:
            victims = family
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        if way < 0.2 or not victims or victims is family:
            process.kill()
        psutil.wait_procs(family, timeout=60)
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
