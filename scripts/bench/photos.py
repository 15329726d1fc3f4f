"""A short training on real photographs, on the data of scripts/studies/photos.yaml, and its retrieval on others.

    python scripts/bench/photos.py --shared ../shared --device cuda --steps 170

Trains an encoder for each recipe with `clips train`, then runs the study's retrieval benchmark. In contrast to the
study the trunk is tiny_vit at 160 pixels, and all its layers are trained, on random crops, so that the device does a
whole step. Prints and records loss, samples per second, waiting for data, MFU, and the metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measure import common_parser, machine, record

STUDY = Path(__file__).resolve().parents[1] / "studies" / "photos.yaml"
BENCHMARK = "flickr8k"


def main() -> None:
    args = arguments()
    print(machine(args.device))
    with tempfile.TemporaryDirectory() as folder:
        for recipe in args.recipes:
            trained, began = Path(folder) / recipe, time.perf_counter()
            train(args, recipe, trained)
            seconds = time.perf_counter() - began
            entries = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
            metrics = evaluate(args, recipe, trained, Path(folder) / "results")
            losses = [entry["loss"] for entry in entries]
            record(args, recipe=recipe, seconds=seconds, losses=losses, last=entries[-1], metrics=metrics)
            print(f"{recipe}: {seconds:.0f} s, loss {losses[0]:.3f} to {losses[-1]:.3f}, {metrics}", flush=True)


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--shared", default="../shared", help="a folder with data/flickr8k and models/tiny_vit_5m_224")
    parser.add_argument("--recipes", nargs="+", default=["clip", "clips"])
    parser.add_argument("--steps", type=int, default=170)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that load photos")
    parser.add_argument("--limit", type=int, default=300, help="photos of the benchmark")
    return parser.parse_args()


def study(args: argparse.Namespace) -> dict[str, Any]:
    """The study with the paths of ``--shared``."""
    text = STUDY.read_text(encoding="utf-8").replace("$shared", str(Path(args.shared).resolve()))
    return dict(yaml.safe_load(text))


def train(args: argparse.Namespace, recipe: str, output: Path) -> None:
    config = study(args)["defaults"]["encoder"]
    config["recipe"]["name"] = recipe
    trunk = Path(args.shared).resolve() / "models/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors"
    config["model"] = {"architecture": "clips-tinyvit", "image_size": 160, "pretrained_trunk": str(trunk)}
    config["data"]["augment"] = {"crop_scale_min": 0.6, "horizontal_flip": True}
    config["optimizer"]["learning_rate"] = 5.0e-4
    del config["validation"]
    config["data"]["num_workers"] = args.workers
    config |= {"output": str(output), "max_steps": args.steps, "global_batch_size": args.batch}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    run(args, "clips", "train", "--config", str(path))


def evaluate(args: argparse.Namespace, recipe: str, trained: Path, results: Path) -> dict[str, float]:
    """The values of the retrieval metrics."""
    benchmark = study(args)["benchmarks"][BENCHMARK] | {"name": BENCHMARK, "limit": args.limit}
    chosen = ["--benchmarks", json.dumps([benchmark]), "--device", args.device]
    run(args, "benchmarks", "run", "encoder", str(trained), "--output", str(results), "--model_name", recipe, *chosen)
    found = json.loads((results / recipe / f"{BENCHMARK}.json").read_text(encoding="utf-8"))
    return {name: metric["value"] for name, metric in found["metrics"].items()}


def run(args: argparse.Namespace, *command: str) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}  # a training takes a GPU if there is one
    subprocess.run([sys.executable, "-m", *command], env=os.environ | hidden, check=True)


if __name__ == "__main__":
    main()
