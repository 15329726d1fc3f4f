"""The model FLOPs utilization (MFU) of a step of a LLaVA's instruct stage.

    python scripts/bench/bridge_mfu.py --device cuda --precision bf16               (L/14 at 336 px, an LLM of 0.5 B)
    python scripts/bench/bridge_mfu.py --threads 2 --encoder timm:test_vit@random --hidden 256 --layers 4 --batch 4

Encoder and LLM have random weights, on which the speed does not depend. The encoder is frozen; projector and LLM train
with the bridge's loss and AdamW on full packed rows with ``--images`` images each. The peak is that of a large matrix
product in the step's precision, measured alternately with the step; the step's operations are those of its matrix
products and attentions, counted as they run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import common_parser, flops, machine, spread, table
from mfu import measure_mfu
from torch import Tensor

from llava_bridge.encoders import load_encoder
from llava_bridge.model.modeling_llava import AnyLlava, empty_llava, new_projector
from llava_bridge.model.modeling_vision import build_vision_model, resolve_feature_layer
from llava_bridge.training.loss import LlavaLoss

IMAGE_TOKEN = 5  # any token of the vocabulary


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    print(machine(args.device))
    model = llava(args)
    step, tokens = one_step(model, args), args.batch * args.length
    seconds, cells = measure_mfu(step, flops(step), args, args.precision)
    sizes = [
        sum(w.numel() for w in part.parameters()) for part in (model.model.vision_tower, model.model.language_model)
    ]
    print(f"encoder {sizes[0] / 1e6:,.0f} M, LLM {sizes[1] / 1e6:,.0f} M weights, {args.batch} rows of {args.length}")
    head = ["precision", "peak TFLOP/s", "step TFLOP/s", "MFU", "tokens/s"]
    rate = spread([tokens / value for value in seconds])
    print(table(head, [[args.precision, *cells, f"{rate:.4g}"]]))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--encoder", default="timm:vit_large_patch14_clip_336@random")
    parser.add_argument(
        "--hidden", type=int, default=896, help="width of the LLM; 896 and 24 layers are Qwen 2.5's 0.5 B"
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row, images included")
    parser.add_argument("--images", type=int, default=2, help="in each row")
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--matrix", type=int, default=4096, help="rows and columns of the product that is the peak")
    return parser.parse_args()


def llava(args: argparse.Namespace) -> AnyLlava:
    """An untrained LLaVA on the device, in the precision of the step."""
    from transformers import LlavaConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    encoder = load_encoder(args.encoder, None)
    vision = build_vision_model(encoder, None)
    text = Qwen2Config(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        intermediate_size=args.hidden * 38 // 7,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=max(1, args.hidden // 448),
        vocab_size=args.vocabulary,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        vision_feature_select_strategy="default" if vision.config.class_token else "full",
        vision_feature_layer=resolve_feature_layer(vision.tower, None),
    )
    model, llm = empty_llava(config), Qwen2ForCausalLM(text)
    model.model.vision_tower = vision
    model.model.multi_modal_projector = new_projector(config)
    model.model.language_model, model.lm_head = llm.model, llm.lm_head
    model.to(args.device, torch.bfloat16 if args.precision == "bf16" else torch.float32).train()
    model.requires_grad_(True)
    vision.requires_grad_(False)
    return model


def one_step(model: Any, args: argparse.Namespace) -> Callable[[], object]:
    """Forward, backward and AdamW of one batch; all tokens except those of images are supervised."""
    config, kind = model.config, next(model.lm_head.parameters()).dtype
    size, tokens = config.vision_config.image_size, config.image_seq_length * args.images
    if tokens >= args.length:
        raise SystemExit(f"--length: expected more than the {tokens} tokens of {args.images} images")
    words = torch.randint(10, args.vocabulary, (args.batch, args.length - tokens), device=args.device)
    ids = torch.cat([torch.full((args.batch, tokens), IMAGE_TOKEN, device=args.device), words], dim=1)
    batch: dict[str, Tensor] = {"input_ids": ids, "labels": ids.masked_fill(ids == IMAGE_TOKEN, -100)}
    batch["attention_mask"] = torch.ones_like(ids)
    batch["pixel_values"] = torch.randn(args.batch * args.images, 3, size, size, device=args.device, dtype=kind)
    objective = LlavaLoss(model)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=args.device == "cuda")

    def step() -> None:
        objective(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
