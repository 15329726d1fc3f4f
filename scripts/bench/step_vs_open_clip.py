"""The speed of this suite's training step compared with open_clip's, with the same model, tokens and batch.

    python scripts/bench/step_vs_open_clip.py --captions ../shared/data/capsfusion_5k.jsonl --threads 2
    python scripts/bench/step_vs_open_clip.py --device cuda --architecture clips-l-14 --batch 512 --rounds 30

"theirs" is ``open_clip_train.train.train_one_epoch`` on a loader of one batch, with the default optimizer, loss and
autocast of open_clip's ``main``; "ours" is ``clips.train.train_step``. For ``clip`` both train a copy of
one open_clip model. For ``coca`` each trains its own decoder on towers of the same shapes, with the same width, depth
and heads: open_clip's decoder has self- and cross-attention blocks after a causal text tower, this suite's has one
block per layer over image and text. Parameters and operations of both are printed. Without ``--captions`` every text
fills its row.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import measure
import torch
from measure import begin, common_parser, flops, parameters, record, speed_up, spread, table, take_turns
from torch import Tensor

from clips.method.clips_model import ClipsModel
from clips.method.recipes import CaptionerConfig, RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.tokenizer import PAD
from clips.train import read_metrics, train_step

Sides = dict[str, Callable[[], dict[str, float]]]
HEAD = [
    "recipe",
    "text attention",
    "precision",
    "threads",
    "ours / s",
    "open_clip / s",
    "times as fast",
    "FLOPs, ours to theirs",
]


def main() -> None:
    args = begin(arguments())
    print(f"{args.architecture} at {args.image_size} px, batch {args.batch}, texts: {args.captions or 'full rows'}")
    rows = []
    for recipe in args.recipes:
        for attention in args.text_attention if recipe == "clip" else ["causal"]:
            for precision in args.precisions:
                rows.append(row(args, recipe, attention, precision))
                print(table(HEAD, rows[-1:]).splitlines()[-1], flush=True)
    print(table(HEAD, rows))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--architecture", default="clips-s-16")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--captions", help="JSON or JSONL with captions; without it every text fills its row")
    parser.add_argument("--field", default="web", help="the captions' field")
    parser.add_argument("--recipes", nargs="+", default=["clip", "coca"], choices=["clip", "coca"])
    parser.add_argument("--text-attention", nargs="+", default=["all", "causal"], choices=["all", "causal"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    return parser.parse_args()


def row(args: argparse.Namespace, recipe: str, attention: Any, precision: str) -> list[str]:
    sides, counts = make_sides(args, recipe, attention, precision)
    work = {name: flops(run) for name, run in sides.items()}
    seconds = take_turns(sides, args.rounds, args.clock)
    print(f"parameters: {counts}; TFLOPs a step: { {name: round(value / 1e12, 3) for name, value in work.items()} }")
    taken, faster = {name: spread(seconds[name]) for name in sides}, speed_up(seconds, "ours", "theirs")
    names = {"recipe": recipe, "text_attention": attention, "precision": precision}
    record(args, **names, seconds=taken, times_as_fast=faster, flops=work, parameters=counts)
    times = [f"{taken[name]:.3g}" for name in ("ours", "theirs")]
    ratio = f"{work['ours'] / work['theirs']:.2f}"
    return [recipe, attention, precision, str(args.threads), *times, f"{faster:.2f}", ratio]


def make_sides(args: argparse.Namespace, recipe: str, attention: Any, precision: str) -> tuple[Sides, dict[str, str]]:
    model_config = ModelConfig(architecture=args.architecture, image_size=args.image_size, text_attention=attention)
    recipe_config = RecipeConfig(name=recipe, web_caption_prob=1.0, captioner=CaptionerConfig(max_length=80))
    texts = [measure.captions(args.captions, args.field, args.batch), [""] * args.batch]
    run, batch = measure.start(model_config, recipe_config, precision, texts, args.device)
    theirs = copy.deepcopy(run.encoder.clip) if recipe == "clip" else open_clips_coca(run.encoder).to(args.device)
    counts = {name: f"{parameters(model) / 1e6:.1f} M" for name, model in (("ours", run.encoder), ("theirs", theirs))}
    sides: Sides = {
        "ours": lambda: read_metrics([train_step(run, batch)])[0],
        "theirs": open_clips_step(theirs, precision, batch, args.device),
    }
    return sides, counts


# ---------------------------------------------------------------- theirs


def open_clips_step(
    model: Any, precision: str, batch: dict[str, Tensor], device: str
) -> Callable[[], dict[str, float]]:
    """A call of ``train_one_epoch`` on one batch, with open_clip's defaults."""
    from open_clip.factory import create_loss
    from open_clip_train.train import train_one_epoch

    args = open_clips_arguments(model, precision, device)
    text = batch["web"] if "web" in batch else coca_rows(batch)
    loader = OneBatch((batch["image"], text))
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
    loss, optimizer, scheduler, log = create_loss(args), open_clips_optimizer(model), lambda step: None, Log()
    model.output_dict = True

    def step() -> dict[str, float]:
        train_one_epoch(model, data, loss, 0, optimizer, None, scheduler, None, args, log)
        return dict(log)

    return step


class Log(dict):
    """A TensorBoard writer for ``train_one_epoch`` that stores the step's losses under this suite's names."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self[name.removeprefix("train/")] = value


class OneBatch(list):
    """A loader of one batch for ``train_one_epoch``."""

    num_batches = 1

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__([batch])
        self.num_samples = len(batch[0])


def open_clips_arguments(model: Any, precision: str, device: str) -> argparse.Namespace:
    """The defaults of open_clip's own command line, for one process."""
    from open_clip_train.params import parse_args

    name = "coca_ViT" if hasattr(model, "text_decoder") else "ViT"
    args = parse_args(["--model", name, "--precision", "fp32" if precision == "fp32" else "amp_bf16"])
    for field, value in {"device": device, "rank": 0, "world_size": 1, "distill": False, "wandb": False}.items():
        setattr(args, field, value)
    args.batch_size = 1
    return args


def open_clips_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW as in open_clip's ``main``: no decay on vectors, its defaults for ViTs."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, value in model.named_parameters():
        if value.requires_grad:
            vector = value.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
            groups[vector].append(value)
    settings = [{"params": groups[True], "weight_decay": 0.0}, {"params": groups[False], "weight_decay": 0.2}]
    return torch.optim.AdamW(settings, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


def open_clips_coca(ours: ClipsModel) -> torch.nn.Module:
    """open_clip's CoCa with the shapes of ``ours``; its text rows are one token shorter for its own class token."""
    from open_clip.coca_model import CoCa

    assert ours.captioner is not None
    cfg, shape = ours.model_cfg, ours.captioner.config
    text = {
        key: cfg["text_cfg"][key] for key in ("vocab_size", "width", "heads", "layers", "act_kwargs", "norm_kwargs")
    }
    text["context_length"] = ours.context_length - 1
    decoder = {"width": shape.width, "heads": shape.heads, "layers": shape.layers}
    return CoCa(
        embed_dim=cfg["embed_dim"],
        vision_cfg={**cfg["vision_cfg"], "output_tokens": True},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        multimodal_cfg={"context_length": text["context_length"], "vocab_size": shape.vocabulary, **decoder},
        pad_id=PAD,
    )


def coca_rows(batch: dict[str, Tensor]) -> Tensor:
    """Text rows for CoCa: those of the contrastive loss without the class token, which CoCa appends itself."""
    return batch["mixed"][:, :-1]


if __name__ == "__main__":
    main()
