"""The speed of this suite's training step of the ``clips`` recipe compared with OpenVision's JAX step, on one CPU.

    python scripts/bench/vs_openvision.py --openvision OpenVision --jax-python jaxenv/bin/python \\
        --captions captions.jsonl --web short --synthetic long

``OpenVision`` is a checkout of github.com/UCSC-VLAA/OpenVision; ``jaxenv`` an environment with the versions that it
requires: ``pip install jax==0.4.38 flax==0.10.2 optax ml_collections einops orbax-checkpoint absl-py scipy``.

Both sides ("ours" and "theirs") train the same shapes on the same tokens: towers, 80 tokens of web and of partial
synthetic caption, a decoder of 128 learnable tokens. OpenVision's side runs in a separate process under jit; the sides
alternate. It computes all 128 targets of every sample, while this suite skips those after a caption's end: the table
has a row with captions of full length ("full rows": equal work) and one with real captions. OpenVision's towers
recompute activations in the backward pass by default (``--remat full``); the comparison uses the faster ``none``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
from measure import alternate, begin, common_parser, parameters, record, speed_up, spread, table
from torch import Tensor

from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.captioner import shift_labels
from clips.training.train_step import train_step

HEAD = ["texts", "precision", "threads", "batch", "ours / s", "OpenVision / s", "times as fast"]


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # jax uses a thread for each allowed core
    begin(args)
    rows = []
    for captions in dict.fromkeys([None, args.captions]):
        for precision in args.precisions:
            rows.append(row(args, captions, precision))
            print(table(HEAD, rows[-1:]).splitlines()[-1], flush=True)
    print(table(HEAD, rows))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--openvision", required=True, help="a checkout of OpenVision's repository")
    parser.add_argument("--jax-python", required=True, help="a Python that has jax and flax")
    parser.add_argument("--remat", default="none", choices=["none", "full"])
    parser.add_argument("--size", default="S", choices=["S", "B"])
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--captions", help="JSON or JSONL with captions")
    parser.add_argument("--web", default="web", help="field of the web captions")
    parser.add_argument("--synthetic", default="fused", help="field of the synthetic captions")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    return parser.parse_args()


def row(args: argparse.Namespace, captions: str | None, precision: str) -> list[str]:
    model = ModelConfig(architecture=f"clips-{args.size.lower()}-16", image_size=args.image_size)
    texts = [measure.captions(captions, field, args.batch) for field in (args.web, args.synthetic)]
    run, batch = measure.start(model, RecipeConfig(name="clips"), precision, texts, args.device)
    with tempfile.TemporaryDirectory() as folder:
        theirs = OpenVision(args, precision, write_batch(batch, Path(folder) / "batch.npz"))
        print(f"parameters: ours {parameters(run.encoder) / 1e6:.1f} M, theirs {theirs.parameters / 1e6:.1f} M")
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: measure.seconds_of(lambda: train_step(run, batch), args.clock),
            "theirs": lambda: theirs.seconds(args.clock),
        }
        seconds = alternate(sides, args.rounds, warmup=2)  # jax may compile twice
        theirs.end()
    taken, faster = {name: spread(seconds[name]) for name in seconds}, speed_up(seconds, "ours", "theirs")
    label = "full rows" if captions is None else Path(captions).stem
    record(args, texts=label, precision=precision, seconds=taken, times_as_fast=faster)
    times = [f"{taken[name]:.3g}" for name in ("ours", "theirs")]
    return [label, precision, str(args.threads), str(args.batch), *times, f"{faster:.2f}"]


def write_batch(batch: dict[str, Tensor], path: Path) -> Path:
    """Write a batch in OpenVision's format: channels last, targets without the begin token, a mask of targets."""
    np.savez(
        path,
        image=batch["image"].permute(0, 2, 3, 1).numpy(),
        labels1=batch["web"].numpy().astype(np.int32),
        labels2=batch["partial"].numpy().astype(np.int32),
        targets=shift_labels(batch["target"]).numpy().astype(np.int32),
        counted=batch["target_mask"].numpy().astype(np.float32),
    )
    return path


class OpenVision:
    """OpenVision's training step in a separate process."""

    def __init__(self, args: argparse.Namespace, precision: str, batch: Path) -> None:
        options = {
            "openvision": args.openvision,
            "batch": str(batch),
            "size": args.size,
            "patch": "16",
            "precision": precision,
            "remat": args.remat,
        }
        script = str(Path(__file__).with_name("openvision_step.py"))
        command = [args.jax_python, "-W", "ignore", script, *(f"--{name}={value}" for name, value in options.items())]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"JAX_PLATFORMS": "cpu"},
        )
        self.parameters = int(self._answer()["parameters"])

    def seconds(self, clock: str) -> float:
        """Run a training step; its duration by ``clock``."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self._answer()
        assert np.isfinite(answer["loss"]), answer
        return answer[clock]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args!r}: ended with status {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Let the process end."""
        self.process.communicate()


if __name__ == "__main__":
    main()
