"""The speedup of a step of stage 1 by caching the frozen encoder's features on disk (``cache_vision_features``).

    python scripts/bench/cached_features.py --shared ../shared --threads 2

The encoder is by default a ViT-B/16 with random weights, the LLM is that of ``--llm``; the projector trains on real
questions about photos and long captions. Both sides run whole steps: image decoding and resizing, forward, backward,
AdamW. The time of the first pass, which writes the features, is printed separately.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bridge_step import moved, write_mix
from measure import begin, common_parser, record, seconds_of, speed_up, spread, take_turns
from torch.utils.data import DataLoader, Subset

from llava_bridge.data import ConversationSourceConfig, read_samples
from llava_bridge.data.collator import ConversationCollator, ConversationDataset
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.model.cached_features import FeatureReader
from llava_bridge.training.loss import LlavaLoss


def main() -> None:
    args = begin(arguments())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        mix = write_mix(Path(args.shared), Path(folder) / "mix.json", args.samples)
        print(comparison(args, mix))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--shared", default="../shared", help="a folder with data/cocoqa, data/coco_long, models/")
    parser.add_argument("--encoder", default="timm:vit_base_patch16_224@random")
    parser.add_argument("--llm", help="a directory; shared/models/stories15M if not given")
    parser.add_argument("--samples", type=int, default=48, help="in the mix; a sixth of them has no image")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="of the loader; 0 reads between the steps")
    return parser.parse_args()


def comparison(args: argparse.Namespace, mix: Path) -> str:
    llm = args.llm or str(Path(args.shared) / "models/stories15M")
    model, processor = build_llava(LlavaParts(encoder=args.encoder, llm=llm))
    model.to(args.device).train().requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    samples = read_samples(ConversationSourceConfig(path=str(mix), image_root=args.shared))
    data = ConversationDataset(samples, make_conversation_encoder(model, processor), 1024)
    indices = [index for index, sample in enumerate(samples) if sample.images]
    indices = indices[: len(indices) // args.micro_batch * args.micro_batch]
    tower = model.model.vision_tower
    shards = tower.cache_features(model.config.vision_feature_layer, torch.float32)
    reader = FeatureReader(shards, torch.float32, model.config)

    def run(read: FeatureReader | None) -> None:
        steps(args, model, processor, data, indices, read)

    def fill() -> None:
        run(reader)
        shards.flush()

    first = seconds_of(fill, args.clock)
    seconds = take_turns({"computed": lambda: run(None), "cached": lambda: run(reader)}, args.rounds, args.clock)
    per_step = args.micro_batch / len(indices)
    each = {name: spread([value * per_step for value in values]) for name, values in seconds.items()}
    faster = speed_up(seconds, "cached", "computed")
    record(args, seconds=each, times_as_fast=faster, filling=first * per_step)
    return (
        f"a step of {args.micro_batch} samples: features computed {each['computed']:.3f} s, cached "
        f"{each['cached']:.3f} s, {faster:.2f} times as fast; in the pass that fills "
        f"the cache {first * per_step:.3f} s"
    )


def steps(
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    data: ConversationDataset,
    indices: Sequence[int],
    read: FeatureReader | None,
) -> None:
    """Train one pass over some samples."""
    objective = LlavaLoss(model)
    optimizer = torch.optim.AdamW(model.model.multi_modal_projector.parameters(), lr=1e-6)
    collate = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id)
    collate.read_features = read
    loader = DataLoader(Subset(data, indices), args.micro_batch, collate_fn=collate, num_workers=args.workers)
    for batch in loader:
        objective(**moved(batch, args.device))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
