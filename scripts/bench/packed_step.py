"""The model FLOPs utilization (MFU) of a bare instruct step of a LLaVA, by the attention of its packed rows.

    python scripts/bench/packed_step.py --device cuda --precision bf16               (L/14 at 336 px, an LLM of 0.5 B)
    python scripts/bench/packed_step.py --threads 1 --clock cpu --rounds 3 --encoder timm:test_vit@random --hidden 256

Encoder and LLM have random weights, on which the speed does not depend. The encoder is frozen; projector and LLM train
with the bridge's loss and AdamW on full packed rows with ``--images`` images each. The peak is that of a large matrix
product in the step's precision, measured alternately with the step; the step's operations are those of its matrix
products and attentions, masked products included, counted on one row with ``eager`` attention. With ``--samples`` every
row consists of that many samples, which do not attend to each other. The status is 1 if the losses of ``sdpa`` and
``varlen``, or on a GPU those of Liger and of this suite or their gradients, differ by more than 1 %.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from measure import begin, common_parser, flops, record, spread, table
from mfu import measure_mfu
from torch import Tensor

from clips.model.losses import linear_cross_entropy
from llava_bridge.encoders import load_encoder
from llava_bridge.model.modeling_llava import AnyLlava, empty_llava, new_projector
from llava_bridge.model.modeling_vision import build_vision_model, resolve_feature_layer
from llava_bridge.model.varlen_attention import NAME as VARLEN
from llava_bridge.training.loss import LlavaLoss, liger_cross_entropy

IMAGE_TOKEN = 5  # any token of the vocabulary
TOLERANCE = 0.01  # of losses and gradients, relative
LLMS: dict[str, dict[str, Any]] = {  # Qwen 2.5's
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "vocab_size": 151_936}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18_944, "vocab_size": 152_064}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
}


def main() -> None:
    args = begin(arguments())
    model = llava(args)
    sizes = [
        sum(w.numel() for w in part.parameters()) for part in (model.model.vision_tower, model.model.language_model)
    ]
    print(f"encoder {sizes[0] / 1e6:,.0f} M, LLM {sizes[1] / 1e6:,.0f} M weights, {args.batch} rows of {args.length}")
    head = ["attention", "precision", "peak TFLOP/s", "step TFLOP/s", "MFU", "tokens/s"]
    losses: dict[str, float] = {}
    rows, batch, objective = [], random_batch(model, args), LlavaLoss(model)
    for attention in args.attention:  # before the weights change: the losses must be equal
        model.model.language_model.set_attn_implementation(attention)
        with torch.no_grad():
            losses[attention] = objective(**batch)["loss"].item()
        record(args, attention=attention, loss=losses[attention])
    wrong = disagreements(losses) + ligers_disagreements(model.lm_head.weight, args)
    work = operations(model, args)
    for attention in args.attention:
        model.model.language_model.set_attn_implementation(attention)
        step = one_step(objective, batch, args)
        seconds, cells = measure_mfu(step, work, args, args.precision, attention=attention)
        rate = spread([args.batch * args.length / value for value in seconds])
        rows.append([attention, args.precision, *cells, f"{rate:.4g}"])
    print(table(head, rows))
    if wrong:
        raise SystemExit("\n".join(wrong))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--encoder", default="timm:vit_large_patch14_clip_336@random")
    add_llm_arguments(parser)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row, images included")
    parser.add_argument("--images", type=int, default=2, help="in each row")
    parser.add_argument("--samples", type=int, default=1, help="in each row; several of them are packed")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], choices=["sdpa", "eager", VARLEN])
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--matrix", type=int, default=4096, help="rows and columns of the product that is the peak")
    return parser.parse_args()


def add_llm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llm", default="0.5b", choices=list(LLMS), help="the shape of one of Qwen 2.5")
    parser.add_argument("--hidden", type=int, help="another width, with heads of 64")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int)


def text_config(args: argparse.Namespace, **more: Any) -> Any:
    """The config of the LLM."""
    from transformers import Qwen2Config

    given = {"num_hidden_layers": args.layers, "vocab_size": args.vocabulary, "hidden_size": args.hidden}
    if args.hidden:
        given |= {"intermediate_size": args.hidden * 38 // 7, "num_attention_heads": args.hidden // 64}
        given |= {"num_key_value_heads": max(1, args.hidden // 448)}
    return Qwen2Config(**{**LLMS[args.llm], **{name: value for name, value in given.items() if value}, **more})


def llava(args: argparse.Namespace) -> AnyLlava:
    """An untrained LLaVA on the device, in the precision of the step."""
    from transformers import LlavaConfig, Qwen2ForCausalLM

    torch.manual_seed(0)
    encoder = load_encoder(args.encoder, None)
    vision = build_vision_model(encoder, None)
    text = text_config(args)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        vision_feature_select_strategy="default" if vision.config.class_token else "full",
        vision_feature_layer=resolve_feature_layer(vision.tower, None),
    )
    with torch.device(args.device):  # billions of random numbers take minutes on a CPU
        model, llm = empty_llava(config), Qwen2ForCausalLM(text)
    model.model.vision_tower = vision
    model.model.multi_modal_projector = new_projector(config)
    model.model.language_model, model.lm_head = llm.model, llm.lm_head
    model.to(args.device, torch.bfloat16 if args.precision == "bf16" else torch.float32).train()
    model.requires_grad_(True)
    vision.requires_grad_(False)
    return model


def random_batch(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of images and random words, all of which are supervised."""
    config, kind = model.config, next(model.lm_head.parameters()).dtype
    size, tokens = config.vision_config.image_size, config.image_seq_length * args.images
    if tokens >= args.length:
        raise SystemExit(f"--length: expected more than the {tokens} tokens of {args.images} images")
    words = torch.randint(10, config.text_config.vocab_size, (args.batch, args.length - tokens), device=args.device)
    ids = torch.cat([torch.full((args.batch, tokens), IMAGE_TOKEN, device=args.device), words], dim=1)
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids.masked_fill(ids == IMAGE_TOKEN, -100)}
    batch |= {"attention_mask": torch.ones_like(ids)} if args.samples == 1 else packed_rows(args)
    batch["pixel_values"] = torch.randn(args.batch * args.images, 3, size, size, device=args.device, dtype=kind)
    return batch


def disagreements(losses: dict[str, float]) -> list[str]:
    """Differences between the losses of ``sdpa`` and ``varlen``, as messages."""
    if not {"sdpa", VARLEN} <= set(losses):
        return []
    ours, theirs = losses["sdpa"], losses[VARLEN]
    close = abs(ours - theirs) <= TOLERANCE * abs(ours)
    return [] if close else [f"losses: expected those of sdpa and varlen within 1 %, got {ours} and {theirs}"]


def ligers_disagreements(weight: Tensor, args: argparse.Namespace) -> list[str]:
    """Differences of Liger's loss and gradients from torch's, as messages, on a GPU where it is installed."""
    if args.device != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return []
    hidden = torch.randn(256, weight.shape[1], device=weight.device, dtype=weight.dtype)
    labels = torch.randint(len(weight), (len(hidden),), device=weight.device)
    inputs = (hidden, weight.detach(), labels)
    found = loss_and_gradients(liger_cross_entropy, *inputs)
    expected = loss_and_gradients(linear_cross_entropy, *inputs)
    distances = [((one - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True)]
    record(args, liger=dict(zip(("loss", "hidden_gradient", "weight_gradient"), distances, strict=True)))
    close = all(distance <= TOLERANCE for distance in distances)  # not of NaN
    return [] if close else [f"Liger: expected loss and gradients within 1 % of this suite's, got {distances}"]


def loss_and_gradients(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, labels: Tensor
) -> list[Tensor]:
    """A loss () with its gradients at ``hidden`` (N, D) and ``weight`` (V, D), all in float32."""
    hidden, weight = hidden.clone().requires_grad_(True), weight.clone().requires_grad_(True)
    value = loss(hidden, weight, labels)
    return [each.detach().float() for each in (value, *torch.autograd.grad(value, (hidden, weight)))]


def one_step(objective: LlavaLoss, batch: dict[str, Any], args: argparse.Namespace) -> Callable[[], object]:
    """Forward, backward and AdamW of one batch."""
    trainable = [weight for weight in objective.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=args.device == "cuda")

    def step() -> None:
        objective(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def operations(model: Any, args: argparse.Namespace) -> float:
    """Floating point operations of a step; torch's counter rejects the grouped queries of the fused attentions."""
    batch = random_batch(model, argparse.Namespace(**{**vars(args), "batch": 1}))
    model.model.language_model.set_attn_implementation("eager")
    objective = LlavaLoss(model)
    found = flops(lambda: objective(**batch)["loss"].backward())
    model.zero_grad()
    return found * args.batch


def packed_rows(args: argparse.Namespace) -> dict[str, Any]:
    """Positions of rows of samples of random lengths, and the bounds of the samples for `varlen`."""
    cuts = [torch.randperm(args.length - 1)[: args.samples - 1].sort().values + 1 for _ in range(args.batch)]
    starts = torch.cat([torch.cat([torch.zeros(1).long(), cut]) + row * args.length for row, cut in enumerate(cuts)])
    ends = torch.cat([starts[1:], torch.tensor([args.batch * args.length])])
    positions = torch.arange(args.batch * args.length) - starts.repeat_interleave(ends - starts)
    return {
        "position_ids": positions.view(args.batch, args.length).to(args.device),
        "cu_seq_lens_q": torch.cat([starts, ends[-1:]]).int().to(args.device),
        "max_length_q": int((ends - starts).max()),
    }


if __name__ == "__main__":
    main()
