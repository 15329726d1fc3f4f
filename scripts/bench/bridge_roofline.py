"""Predict a LLaVA's training step on GPUs by the roofline of its kernels (`clips.planning.roofline`). Nothing is run.

    python scripts/bench/bridge_roofline.py --gpu h200 --gpus 8

The shapes are those of CLIP ViT-L/14 at 336 px and of Qwen2.5 with 0.5 and 7 B parameters; bfloat16, without padding.
Stage 1 trains the projector, stage 2 also the LLM; the encoder is frozen. The table has the time of the kernels of one
micro-batch, with the optimizer's, and what one GPU sends in a step under ZeRO-2, ZeRO-3 and FSDP2, by ring algorithms
at the data sheet's bandwidth within a node, without the encoder's weights.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from measure import table
from packed_step import LLMS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPVisionConfig, LlavaConfig, Qwen2Config

from clips.planning.dry_run import frozen_garbage, kernels_of, replace_by_empty
from clips.planning.hardware import GPUS, Gpu
from clips.planning.roofline import Kernels, KernelTrace, rates_of, roofline
from llava_bridge.model.modeling_llava import empty_llava
from llava_bridge.training.loss import chunked_cross_entropy

VISION: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096} | {"num_hidden_layers": 24}  # CLIP L/14
SIZE, PATCH, IMAGE_TOKENS = 336, 14, 576
BF16_BYTES, FP32_BYTES = 2, 4


def main() -> None:
    args = arguments()
    gpu = GPUS[args.gpu]
    print(f"Predicted, not measured: {args.gpus} × {args.gpu}, bfloat16, {args.samples} samples in a GPU's micro-batch")
    columns = ["LLM", "stage", "recomputed", "kernels", "TFLOP", "ms", "MFU", "images/s of a GPU"]
    rows = [
        predict(args, gpu, llm, stage, checkpointing=checkpointing)
        for llm in args.llms
        for stage, checkpointing in ((1, False), (2, False), (2, True))
    ]
    print(table([*columns, "ZeRO-2 GB (ms)", "ZeRO-3 GB (ms)", "FSDP2 GB (ms)"], rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h200", choices=list(GPUS))
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--llms", nargs="+", default=list(LLMS), choices=list(LLMS))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=60, help="text tokens that are not trained on")
    parser.add_argument("--answer", type=int, default=140, help="text tokens that are trained on")
    return parser.parse_args()


def predict(args: argparse.Namespace, gpu: Gpu, llm: str, stage: int, *, checkpointing: bool) -> list[object]:
    """A row of the table."""
    llava, mode = fake_llava(llm, stage, checkpointing=checkpointing)
    trained = sum(value.numel() for value in llava.parameters() if value.requires_grad)
    trace = trace_step(llava, mode, args)
    parts = roofline(trace, trained // args.gpus, rates_of(gpu, "bf16"))
    once = parts if not checkpointing else model_parts(args, gpu, llm, stage)
    seconds = sum(part.seconds for part in parts.values())
    flops = sum(part.flops for part in once.values())  # without recomputation
    cells = [f"{size / 1e9:.1f} ({1e3 * size / gpu.link:.0f})" for size in sent_bytes(llava, trained, args.gpus)]
    count, mfu = sum(part.count for part in parts.values()), flops / seconds / gpu.peak("bf16")
    rate = args.samples / seconds
    name = "all layers" if checkpointing else "—"
    return [
        llm.upper(),
        stage,
        name,
        count,
        f"{flops / 1e12:.0f}",
        f"{1e3 * seconds:.0f}",
        f"{mfu:.0%}",
        f"{rate:.0f}",
        *cells,
    ]


def sent_bytes(llava: Any, trained: int, gpus: int) -> list[float]:
    """Bytes that a GPU sends in a step under ZeRO-2, ZeRO-3 and FSDP2.

    ZeRO-2 reduces gradients and gathers the trained weights. ZeRO-3 and FSDP2 gather all weights of projector and LLM
    in the forward and in the backward pass, whether they train or not; FSDP2 reduces gradients in float32.
    """
    ring, encoder = (gpus - 1) / gpus, llava.model.vision_tower
    weights = sum(value.numel() for value in llava.parameters()) - sum(value.numel() for value in encoder.parameters())
    gathered = 2 * BF16_BYTES * weights
    zero2, zero3 = 2 * BF16_BYTES * trained, BF16_BYTES * trained + gathered
    return [ring * size for size in (zero2, zero3, FP32_BYTES * trained + gathered)]


def model_parts(args: argparse.Namespace, gpu: Gpu, llm: str, stage: int) -> dict[tuple[str, str], Kernels]:
    """The kernels of the same step without recomputation."""
    return roofline(trace_step(*fake_llava(llm, stage, checkpointing=False), args), 0, rates_of(gpu, "bf16"))


def fake_llava(llm: str, stage: int, *, checkpointing: bool) -> tuple[Any, FakeTensorMode]:
    """A LLaVA of fake weights in bfloat16, as the bridge trains it in a stage."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, num_attention_heads=16, image_size=SIZE, patch_size=PATCH),
        text_config=Qwen2Config(**LLMS[llm]),
        image_seq_length=IMAGE_TOKENS,
    )
    model = empty_llava(config).to(torch.bfloat16).train()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        replace_by_empty(model)
    model.requires_grad_(stage == 2)
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if LLMS[llm]["tie_word_embeddings"]:
        model.lm_head.weight = model.get_input_embeddings().weight
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, mode


def trace_step(model: Any, mode: FakeTensorMode, args: argparse.Namespace) -> KernelTrace:
    """The kernels of forward and backward pass; images are followed by prompt and answer."""
    words = torch.zeros(args.samples, args.prompt + args.answer, dtype=torch.long)
    with mode:
        pixels = torch.empty(args.samples, 3, SIZE, SIZE, dtype=torch.bfloat16)
    trace = KernelTrace()
    with frozen_garbage(), kernels_of("cuda"), trace:
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        images = features if isinstance(features, Tensor) else torch.stack(tuple(features))
        sequence = torch.cat([images, model.get_input_embeddings()(words)], dim=1)
        hidden = model.model.language_model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        answers = hidden[:, -args.answer - 1 : -1].flatten(0, 1)
        loss = chunked_cross_entropy(answers, model.lm_head, words[:, args.prompt :].flatten())
        trace.end_forward()
        with mode:
            loss.backward()
    return trace


if __name__ == "__main__":
    main()
