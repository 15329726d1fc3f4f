"""The training speed of the bridge compared with a bare loop around transformers' LLaVA, and of packing vs. padding.

    python scripts/bench/bridge_step.py --shared ../shared --threads 2

The data resemble an instruction mix, from real questions and captions: short questions about photos (COCO-QA, half of
the samples), long captions of MLLMs (coco_long, a third), conversations without an image (requests to shorten captions,
a sixth); shuffled. Their lengths are printed. The parts are tiny_vit (49 tokens an image) and the LLM of ``--llm``.

1. *packing*: forward and backward of the same samples in micro-batches: padded in random order, padded in LLaVA's order
   (steps of 8 micro-batches, as in the bridge's stage 2), packed into rows of ``--packed-length`` tokens.
2. *overhead*: whole steps of the bridge's trainer under DeepSpeed vs. a loop of transformers' model and AdamW over the
   same batches, including data loading; with transformers' loss and with the bridge's, to separate the cost of the
   trainer from the savings of its loss.
3. *memory*: the peak allocation of forward and backward of a batch with the bridge's loss, and with that of
   transformers, which materializes all logits, for an LLM with ``--vocabulary`` tokens.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from loss_memory import MIB, peak_bytes
from measure import alternate, begin, common_parser, record, speed_up, spread, synchronize, table, take_turns
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback

from llava_bridge.data import ConversationSourceConfig, read_samples
from llava_bridge.data.collator import ConversationCollator, ConversationDataset
from llava_bridge.data.sampler import LengthGroupedSampler
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.stage_config import InstructConfig
from llava_bridge.training.train_config import LlavaTrainConfig


def main() -> None:
    args = begin(arguments())
    with tempfile.TemporaryDirectory() as folder:
        mix = write_mix(Path(args.shared), Path(folder) / "mix.json", args.samples)
        model, processor, data = parts(args, mix)
        lengths = sorted(len(data[index]["input_ids"]) for index in range(len(data)))
        print(f"tokens of a sample, images included: {quantiles(lengths)}")
        if "packing" in args.rows:
            print(packing_table(args, model, processor, data))
        if "overhead" in args.rows:
            print(overhead_table(args, model, processor, data, mix, Path(folder)))
    if "memory" in args.rows:
        print(memory_table(args))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--shared", default="../shared", help="a folder with data/cocoqa, data/coco_long, models/")
    parser.add_argument("--llm", help="a directory; shared/models/stories15M if not given")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--packed-length", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--steps", type=int, default=8, help="of a round of the overhead measurement")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--rows", nargs="+", default=["packing", "overhead", "memory"])
    return parser.parse_args()


def write_mix(shared: Path, path: Path, count: int) -> Path:
    """Write LLaVA JSON: half short questions, a third long answers, a sixth without an image."""
    photos: dict[str, list[str]] = {}
    for line in (shared / "data/cocoqa/questions.jsonl").read_text().splitlines():
        row = json.loads(line)
        photos.setdefault(row["image"], []).extend([row["question"], row["answer"]])
    questions = [
        sample(f"data/cocoqa/images/{photo}", [text.capitalize() for text in turns])
        for photo, turns in photos.items()
        if (shared / "data/cocoqa/images" / photo).is_file()
    ]
    descriptions, texts = [], []
    for line in (shared / "data/coco_long/captions.jsonl").read_text().splitlines():
        row = json.loads(line)
        captions = [caption["caption"] for caption in row["long_captions"]]
        descriptions.append(sample(f"data/coco_long/{row['image']}", ["Describe the image.", captions[0]]))
        pairs = ((f"Shorten this: {caption}", f"{caption.partition('. ')[0]}.") for caption in captions)
        texts.append(sample(None, [text for pair in pairs for text in pair]))
    mix = questions[: count // 2] + descriptions[: count // 3] + texts[: count - count // 2 - count // 3]
    random.Random(0).shuffle(mix)
    path.write_text(json.dumps(mix))
    return path


def sample(image: str | None, turns: Sequence[str]) -> dict[str, Any]:
    texts = [f"<image>\n{turns[0]}" if image else turns[0], *turns[1:]]
    messages = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {"conversations": messages} | ({"image": image} if image else {})


def parts(args: argparse.Namespace, mix: Path) -> tuple[Any, Any, ConversationDataset]:
    encoder = Path(args.shared) / "models/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors"
    llm = args.llm or str(Path(args.shared) / "models/stories15M")
    model, processor = build_llava(LlavaParts(encoder=f"timm:tiny_vit_5m_224@{encoder}", llm=llm))
    model.requires_grad_(True).model.vision_tower.requires_grad_(False)
    data = ConversationDataset(
        read_samples(ConversationSourceConfig(path=str(mix), image_root=args.shared)),
        make_conversation_encoder(model, processor),
        args.packed_length,
    )
    return model.to(args.device).train(), processor, data


def quantiles(lengths: list[int]) -> str:
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    values = [f"{share:.0%} {lengths[min(len(lengths) - 1, int(share * len(lengths)))]}" for share in shares]
    return f"{', '.join(values)}, longest {lengths[-1]}, mean {statistics.mean(lengths):.0f}"


# ---------------------------------------------------------------- packing


def packing_table(args: argparse.Namespace, model: Any, processor: Any, data: ConversationDataset) -> str:
    items, objective = [data[index] for index in range(len(data))], LlavaLoss(model)
    sizes = data.sizes()
    grouped = list(LengthGroupedSampler(sizes, 8 * args.micro_batch, len(items), seed=0, micro_batches=8))
    shuffled = random.Random(1).sample(range(len(items)), len(items))
    sides: dict[str, Callable[[], object]] = {}
    positions: dict[str, int] = {}
    for name, order, room in (
        ("padded, random order", shuffled, None),
        ("padded, LLaVA's order", grouped, None),
        ("packed", grouped, args.packed_length),
    ):
        collate = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id, room)
        chosen = [order[first : first + args.micro_batch] for first in range(0, len(order), args.micro_batch)]
        batches = [moved(collate([items[index] for index in batch]), args.device) for batch in chosen]
        positions[name] = sum(batch["input_ids"].numel() for batch in batches)
        sides[name] = functools.partial(steps, objective, batches)
    seconds = take_turns(sides, args.rounds, args.clock)
    tokens = sum(len(item["input_ids"]) for item in items)
    for name, taken in seconds.items():
        record(args, row="packing", side=name, seconds=spread(taken), positions=positions[name], tokens=tokens)
    head = ["", "positions with a token", "samples/s", "times as fast as random order"]
    rows = [
        [
            name,
            f"{tokens / positions[name]:.0%}",
            f"{spread([len(items) / value for value in seconds[name]]):.3g}",
            f"{speed_up(seconds, name, 'padded, random order'):.2f}",
        ]
        for name in sides
    ]
    return table(head, rows)


def moved(batch: dict[str, Any], device: str) -> dict[str, Any]:
    batch.pop("invalid_samples")
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def steps(objective: LlavaLoss, batches: list[dict[str, Any]]) -> None:
    for batch in batches:
        step(objective, batch)


def step(objective: LlavaLoss, batch: dict[str, Any]) -> None:
    objective.zero_grad()
    objective(**batch)["loss"].backward()


# ---------------------------------------------------------------- overhead


class Clock(TrainerCallback):
    """Records the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.ends.append(time.perf_counter())


def overhead_table(
    args: argparse.Namespace, model: Any, processor: Any, data: ConversationDataset, mix: Path, folder: Path
) -> str:
    from llava_bridge.training import sharded_weights

    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
    os.environ.update(launched)
    sharded_weights.init_process_group()
    sides = {
        "the bridge": functools.partial(bridge_steps, mix=mix, folder=folder),
        "bare loop, transformers' loss": functools.partial(bare_steps, own_loss=False),
        "bare loop, the bridge's loss": functools.partial(bare_steps, own_loss=True),
    }

    def mean(side: Callable[..., list[float]]) -> float:  # since batch lengths vary
        return statistics.fmean(side(args, model, processor, data))

    seconds = alternate({name: functools.partial(mean, side) for name, side in sides.items()}, args.rounds)
    for name, found in seconds.items():
        record(args, row="overhead", side=name, seconds=spread(found))
    ours = seconds["the bridge"]
    rows = [
        [name, f"{spread(taken):.3f}", f"{spread([one / other for one, other in zip(ours, taken, strict=True)]):.3f}"]
        for name, taken in seconds.items()
    ]
    return table([f"a step of {args.micro_batch} samples", "seconds", "the bridge ÷ it"], rows)


def bridge_steps(
    args: argparse.Namespace, model: Any, processor: Any, data: ConversationDataset, *, mix: Path, folder: Path
) -> list[float]:
    """Seconds of each step except the first two."""
    from clips.data.invalid_samples import InvalidSamples
    from llava_bridge.training.setup import split_parts
    from llava_bridge.training.stage_trainer import StageTrainer
    from llava_bridge.training.trainer import training_arguments

    stage = InstructConfig(
        data=[ConversationSourceConfig(path=str(mix))],
        max_steps=args.steps,
        global_batch_size=args.micro_batch,
        learning_rate=1e-6,
    )
    config = LlavaTrainConfig(
        output=str(folder / "x"),
        stages=["instruct"],
        encoder="e",
        llm="l",
        instruct=stage,
        precision="fp32",
        num_workers=0,
    )
    clock = Clock()
    trainer = StageTrainer(
        stage=stage,
        stage_name="instruct",
        parts=split_parts(model),
        sampler=LengthGroupedSampler(data.sizes(), args.micro_batch, args.steps * args.micro_batch, 0),
        invalid=InvalidSamples(),
        max_invalid_ratio=1.0,
        model=LlavaLoss(model),
        args=training_arguments(config, "instruct", args.steps, folder / "checkpoints"),
        train_dataset=data,
        data_collator=ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id),
        callbacks=[clock],
    )
    trainer.train()
    trainer.deepspeed.destroy()  # type: ignore[attr-defined]
    return [after - before for before, after in itertools.pairwise(clock.ends[2:])]


def bare_steps(
    args: argparse.Namespace, model: Any, processor: Any, data: ConversationDataset, *, own_loss: bool
) -> list[float]:
    """The same for a bare loop with AdamW, with the bridge's loss or that of transformers."""
    order = list(LengthGroupedSampler(data.sizes(), args.micro_batch, args.steps * args.micro_batch, 0))
    collate = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0)
    objective: Any = LlavaLoss(model) if own_loss else model
    synchronize()
    ends = [time.perf_counter()]
    for batch in DataLoader(Subset(data, order), batch_size=args.micro_batch, collate_fn=collate):
        objective(**moved(batch, args.device))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        ends.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(ends[2:])]


# ---------------------------------------------------------------- memory


def memory_sides(args: argparse.Namespace) -> tuple[dict[str, Callable[[], torch.Tensor]], int]:
    """The loss function of each side for one batch, and the number of its tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    small: Any = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 64}
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**small, image_size=32, patch_size=8)
    text = LlamaConfig(**small, vocab_size=args.vocabulary)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).to(args.device)
    model.model.vision_tower.requires_grad_(False)
    tokens = torch.randint(100, 1000, (4, 256), device=args.device)
    batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    objective = LlavaLoss(model)
    return {"transformers": lambda: model(**batch).loss, "bridge": lambda: objective(**batch)["loss"]}, tokens.numel()


def backward(loss: Callable[[], torch.Tensor]) -> None:
    loss().backward()


def memory_table(args: argparse.Namespace) -> str:
    sides, tokens = memory_sides(args)
    for loss in sides.values():
        loss().backward()  # allocates the gradients
    peaks = {name: peak_bytes(functools.partial(backward, loss), args.device) for name, loss in sides.items()}
    logits = tokens * args.vocabulary * 4
    record(args, row="memory", peak_bytes=peaks, logits_bytes=logits)
    rows = [
        [name, f"{peak / MIB:.0f}", f"{peak / peaks['transformers']:.3f}", f"{peak / logits:.2f}"]
        for name, peak in peaks.items()
    ]
    return table([f"{tokens} tokens, vocabulary {args.vocabulary}", "peak MiB", "share", "of the logits' size"], rows)


if __name__ == "__main__":
    main()
