"""The speed of an evaluation's image and caption embedding, relative to the bare towers.

    python scripts/bench/embedding.py --shared ../shared --threads 2 --architecture ViT-B-16
    python scripts/bench/embedding.py --shared ../shared --device cuda --batch 256 --precision bfloat16

The images are photos on disk, decoded and resized while the tower computes; the captions are human ones. The bare side
runs the towers only, on batches of pixels and tokens in memory; its text tower computes every row up to its full
length, as open_clip's does. Vectors of both sides must be equal. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import begin, common_parser, record, speed_up, spread, table, take_turns


def main() -> None:
    args = begin(arguments())
    head = ["architecture", "what", "bare, a second", "ours, a second", "share of the bare tower's speed"]
    with tempfile.TemporaryDirectory() as folder:
        print(table(head, [row for name in args.architecture for row in rows_of(name, args, Path(folder))]))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--shared", default="../shared", help="a folder with data/flickr8k")
    parser.add_argument("--architecture", nargs="+", default=["ViT-B-16"], help="open_clip's names")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args()


def rows_of(name: str, args: argparse.Namespace, folder: Path) -> list[list[str]]:
    from benchmarks.tasks.data.caption_sets import load_caption_set
    from benchmarks.tasks.encoders.embedding import embed_images, embed_texts
    from clips.data.formats import DatasetSpec

    encoder = random_encoder(name, folder / name, args)
    data = Path(args.shared) / "data/flickr8k/dataset_flickr8k.json"
    photos = load_caption_set(DatasetSpec(path=str(data), split="val"), limit=args.images)
    texts = [text for captions in photos.captions for text in captions]
    pixels = torch.stack([encoder.preprocess(photos.open(index)) for index in range(len(photos.images))])
    tokens = encoder.tokenizer(texts)
    dtype = getattr(torch, args.precision)

    @torch.inference_mode()
    def bare(function: Any, rows: torch.Tensor, kind: Any) -> torch.Tensor:
        batches = [rows[start : start + args.batch].to(args.device, kind) for start in range(0, len(rows), args.batch)]
        return torch.cat([torch.nn.functional.normalize(function(batch).float(), dim=1) for batch in batches]).cpu()

    sides = {
        "images": (
            lambda: bare(encoder.model.encode_image, pixels, dtype),
            lambda: embed_images(encoder, photos.open, photos.images, args.batch),
            len(pixels),
        ),
        "captions": (
            lambda: bare(encoder.model.encode_text, tokens, torch.int64),
            lambda: embed_texts(encoder, texts, args.batch),
            len(texts),
        ),
    }
    rows = []
    for what, (theirs, ours, count) in sides.items():
        torch.testing.assert_close(ours(), theirs(), atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
        seconds = take_turns({"bare": theirs, "ours": ours}, args.rounds, args.clock)
        speeds = {side: spread([count / value for value in seconds[side]]) for side in ("bare", "ours")}
        ratio = speed_up(seconds, "ours", "bare")
        record(args, architecture=name, input=what, per_second=speeds, of_bare=ratio)
        rows.append([name, what, *(f"{speed:.1f}" for speed in speeds.values()), f"{ratio:.2f}"])
    return rows


def random_encoder(name: str, folder: Path, args: argparse.Namespace) -> Any:
    """An architecture of open_clip with random weights, loaded as for an evaluation."""
    import open_clip
    from safetensors.torch import save_file

    from benchmarks.tasks.encoders.embedding import load_dual_encoder

    torch.manual_seed(0)
    folder.mkdir()
    model = open_clip.create_model(name)
    size = model.visual.image_size
    described = {"size": list(size) if isinstance(size, tuple) else [size, size]}
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": described}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return load_dual_encoder(str(folder), args.device, args.precision)


if __name__ == "__main__":
    main()
