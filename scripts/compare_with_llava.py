"""Compare the losses of `llava-bridge train` with those of LLaVA's own training, step by step.

    python scripts/compare_with_llava.py --llava LLaVA --site site --llm models/stories15M --data talk.json

``LLaVA`` is a checkout of github.com/haotian-liu/LLaVA, ``site`` a directory of the libraries that it requires (`pip
install --no-deps --target site transformers==4.37.2 tokenizers==0.15.2 accelerate==0.21.0 huggingface_hub==0.20.3`);
the others are this environment's. ``models/stories15M`` is a Llama with SentencePiece's ``tokenizer.model``,
``talk.json`` LLaVA's JSON list with an image in each sample. The tower and the projector are small and untrained.

Both sides start from the same weights and read the same samples in the same order, in the stages of LLaVA-1.5's
scripts: captions for the projector, then conversations for projector and LLM. Each side starts its second stage from
its own projector. Both compute in float32 on the CPU. Exit status 1 if a loss differs by more than 1e-3.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from llava_material import write_parts

from clips.errors import UserError

TOLERANCE = 1e-3
STAGES = ("align", "instruct")


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        check(args)
        with tempfile.TemporaryDirectory() as temporary:
            ours, theirs = train_both(args, Path(args.keep or temporary))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    largest = float(np.max([show(name, ours[name], theirs[name]) for name in STAGES]))  # a NaN if there is one
    print(f"largest difference {largest:.2g}, allowed {TOLERANCE:g}")
    return int(not largest <= TOLERANCE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llava", required=True, help="checkout of LLaVA's repository")
    parser.add_argument("--site", required=True, help="directory of LLaVA's libraries")
    parser.add_argument("--llm", required=True, help="directory of a Llama with tokenizer.model and tokenizer.json")
    parser.add_argument("--data", required=True, help="LLaVA's JSON list")
    parser.add_argument("--images", help="folder of its images; default: that of the file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--micro_batch", type=int, help="samples of a micro-batch; default: the whole batch")
    parser.add_argument("--align_lr", type=float, default=1e-3)
    parser.add_argument("--instruct_lr", type=float, default=2e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tower", choices=["theirs", "float32"], default="float32", help="theirs always computes in half precision"
    )
    parser.add_argument("--keep", help="work in this directory and leave it")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise UserError for an invalid option."""
    expected = {
        "llava": (Path(args.llava) / "llava/train/train.py", "a checkout of haotian-liu/LLaVA"),
        "site": (Path(args.site) / "transformers/__init__.py", "a directory with transformers 4.37.2 in it"),
        "llm": (Path(args.llm) / "tokenizer.model", "a Llama with SentencePiece's tokenizer.model"),
        "data": (Path(args.data), "LLaVA's JSON list"),
    }
    for option, (file, what) in expected.items():
        if not file.is_file():
            raise UserError(f"--{option}: expected {what}, but {file} is missing")
    if args.batch % (args.micro_batch or args.batch):
        raise UserError(f"--micro_batch: expected a divisor of --batch ({args.batch}), got {args.micro_batch}")
    rows = json.loads(Path(args.data).read_text())
    if len(rows) < (needed := args.steps * args.batch):
        raise UserError(f"--data: expected {needed} samples, so that none comes twice, got {len(rows)}")
    if any("image" not in row for row in rows):
        raise UserError("--data: expected an image in each sample")


# ---------------------------------------------------------------- initial weights and data


def prepare(args: argparse.Namespace, folder: Path) -> Any:
    """Write weights and data of both sides to ``folder``; returns the config of `llava-bridge train`."""
    import torch

    from llava_bridge.conversion.convert_command import ConvertConfig, run_convert
    from llava_bridge.data import ConversationSourceConfig
    from llava_bridge.training.stage_config import StageConfig
    from llava_bridge.training.train_config import DistributedConfig, LlavaTrainConfig

    torch.manual_seed(args.seed)
    write_parts(Path(args.llm), folder)
    run_convert(ConvertConfig(source=str(folder / "projector"), llm=str(folder / "llm"), output=str(folder / "start")))
    common = {"max_steps": args.steps, "global_batch_size": args.batch, "micro_batch_size": args.micro_batch}
    images = str(Path(args.images or Path(args.data).parent).resolve())
    stages: dict[str, Any] = {}
    for name, rows in zip(STAGES, write_data(args, folder), strict=True):
        data = [ConversationSourceConfig(path=str(rows), image_root=images, missing_images="error")]
        stages[name] = StageConfig(data=data, learning_rate=getattr(args, f"{name}_lr"), **common)
    stages["align"] = dataclasses.replace(stages["align"], chat_template="plain", image_aspect_ratio="crop")
    stages["instruct"] = dataclasses.replace(stages["instruct"], group_by_modality_length=True)
    return LlavaTrainConfig(
        output=str(folder / "ours"),
        llava=str(folder / "start"),
        distributed=DistributedConfig(num_processes=1),
        precision="fp32",
        seed=args.seed,
        save_steps=0,
        logging_steps=1,
        max_invalid_ratio=0.0,
        **stages,
    )


def write_data(args: argparse.Namespace, folder: Path) -> list[Path]:
    """Write the rows of each stage; the first has one answer per row, because `plain` supports one only."""
    rows = json.loads(Path(args.data).read_text())[: args.steps * args.batch]
    short = [{**row, "conversations": row["conversations"][:2]} for row in rows]
    files = [folder / f"{name}.json" for name in STAGES]
    for file, some in zip(files, (short, rows), strict=True):
        file.write_text(json.dumps(some))
    return files


# ---------------------------------------------------------------- the two trainings


def train_both(args: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Stage → losses of `llava-bridge train`, and of LLaVA; all files are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = prepare(args, folder)
    return train_ours(config, folder), train_theirs(args, config, folder)


def train_ours(config: Any, folder: Path) -> dict[str, list[float]]:
    """Stage → losses of `llava-bridge train`."""
    from clips.typed_data import to_yaml

    (folder / "ours.yaml").write_text(to_yaml(config))
    _run([sys.executable, "-m", "llava_bridge", "train", "--config", str(folder / "ours.yaml")])
    lines = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    return {name: [line["loss"] for line in lines if line["stage"] == name] for name in STAGES}


def train_theirs(args: argparse.Namespace, config: Any, folder: Path) -> dict[str, list[float]]:
    """Stage → losses of LLaVA's training."""
    losses = {}
    for name in STAGES:
        rows = json.loads(Path(config.stage(name).data[0].path).read_text())
        (folder / f"{name}_ordered.json").write_text(
            json.dumps([rows[index] for index in our_order(config, name, folder)])
        )
        file = folder / f"{name}_losses.json"
        script = [str(Path(__file__).with_name("llava_step.py")), f"--llava={args.llava}", f"--tower={args.tower}"]
        given = [f"--{option}={value}" for option, value in their_options(config, name, folder).items()]
        _run([sys.executable, *script, f"--losses={file}", *given], PYTHONPATH=str(Path(args.site).resolve()))
        losses[name] = json.loads(file.read_text())
    return losses


def their_options(config: Any, name: str, folder: Path) -> dict[str, Any]:
    """The options of `llava/train/train.py`, as in `scripts/v1_5/pretrain.sh` and `finetune.sh` except for sizes."""
    stage = config.stage(name)
    micro = stage.micro_batch_size or stage.global_batch_size
    if name == "align":
        own = {"version": "plain", "image_aspect_ratio": "square", "tune_mm_mlp_adapter": True}
    else:
        own = {"version": "v1", "image_aspect_ratio": "pad"}
    begun = folder / ("projector" if name == "align" else "theirs_align")
    return {
        **own,
        "model_name_or_path": folder / "llm",
        "vision_tower": folder / "tower",
        "pretrain_mm_mlp_adapter": begun / "mm_projector.bin",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_patch_token": False,
        "data_path": folder / f"{name}_ordered.json",
        "image_root": stage.data[0].image_root,
        "output_dir": folder / f"theirs_{name}",
        "num_train_epochs": 1,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": stage.global_batch_size // micro,
        "learning_rate": stage.learning_rate,
        "weight_decay": stage.weight_decay,
        "warmup_ratio": stage.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "model_max_length": 2048,
        "lazy_preprocess": True,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": config.seed,
    }


def our_order(config: Any, name: str, folder: Path) -> list[int]:
    """The indices of the samples in the order of `llava-bridge train`."""
    from llava_bridge.training.setup import setup_stage
    from llava_bridge.training.trainer import make_sampler

    stage = config.stage(name)
    alone = config if name == "align" else dataclasses.replace(config, stages=[name])
    dataset = setup_stage(alone, name, folder).dataset
    return list(
        make_sampler(dataset, stage, stage.max_steps, config.seed, stage.micro_batch_size or stage.global_batch_size)
    )


def _run(command: list[str], **environment: str) -> None:
    ended = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment})
    if ended.returncode:
        raise UserError(f"{Path(command[1]).name} {command[2]} ended with status {ended.returncode}; see above")


def show(name: str, ours: list[float], theirs: list[float]) -> float:
    """Print the two curves; returns their largest difference."""
    print(f"{name}: step, our loss, theirs, difference")
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
        print(f"{step:4} {mine:10.6f} {other:10.6f} {mine - other:10.2g}")
    return float(np.max(np.abs(np.subtract(ours, theirs))))


if __name__ == "__main__":
    sys.exit(main())
