"""The time from the command to the first step of a LLaVA's training, compared with the import of its libraries.

    python scripts/bench/bridge_start.py --shared ../shared

One side is ``llava-bridge train`` (tiny_vit, the LLM of ``--llm``, real questions about photos, one step): the seconds
from its start until the first step is logged. The other side is a Python that only imports the libraries of that
training. The sides alternate, after a round that warms up the file cache.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bridge_step import write_mix
from measure import alternate, machine, speed_up, spread

LIBRARIES = "torch, deepspeed, accelerate, timm, transformers; from transformers import LlavaForConditionalGeneration, "
LIBRARIES += "LlavaProcessor, LlamaForCausalLM, AutoTokenizer, Trainer"


def main() -> None:
    args = arguments()
    print(machine("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(args, Path(folder))
        sides: dict[str, Callable[[], float]]
        sides = {"begun": functools.partial(until_first_step, config, Path(folder)), "imported": until_imported}
        seconds = alternate(sides, args.rounds)  # the warm-up is of the file cache
    print(
        f"{args.processes} process(es): first step after {spread(seconds['begun']):.2f} s, import of the libraries "
        f"{spread(seconds['imported']):.2f} s, the one ÷ the other {speed_up(seconds, 'imported', 'begun'):.2f}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared", help="a folder with data/cocoqa, data/coco_long, models/")
    parser.add_argument("--llm", help="a directory; shared/models/stories15M if not given")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def write_config(args: argparse.Namespace, folder: Path) -> Path:
    shared = Path(args.shared).resolve()
    weights = shared / "models/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors"
    mix = write_mix(shared, folder / "mix.json", 4 * args.batch)
    stage = {"data": [{"path": str(mix), "image_root": str(shared)}], "max_steps": 1, "global_batch_size": args.batch}
    config: dict[str, Any] = {
        "output": str(folder / "llava"),
        "encoder": f"timm:tiny_vit_5m_224@{weights}",
        "llm": args.llm or str(shared / "models/stories15M"),
        "stages": ["align"],
        "align": stage,
        "distributed": {"num_processes": args.processes},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def until_first_step(config: Path, folder: Path) -> float:
    """Seconds from the command's start until its first step is logged; the output is removed."""
    started = time.time()
    command = [sys.executable, "-m", "llava_bridge", "train", "--config", str(config)]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    first = json.loads((folder / "llava/metrics.jsonl").read_text().splitlines()[0])
    shutil.rmtree(folder / "llava")
    return float(first["time"]) - started


def until_imported() -> float:
    started = time.time()
    code = f"import {LIBRARIES}; print()"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.time() - started


if __name__ == "__main__":
    main()
