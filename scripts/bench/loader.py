"""The speed of this suite's loader compared with bare decoding and webdataset's, by equal numbers of processes.

    python scripts/bench/loader.py --photos shard.tar --captions captions.jsonl --workers 2

Each side reads the same photos at 224 pixels with the same crop, flip and filter. `bare` is a loop over bytes in memory
(`read_crop`) without captions. `clips` is the loader as in training: order, tar, JSON, sampled and
tokenized captions, batches sent to the trainer; `clips to device` continues until the images are normalized on
`--device`, as a training step takes them. `webdataset` (if installed) is open_clip's pipeline, with torchvision's crop
and the same tokenizer.

The sides alternate in short bursts. The table has the medians of the ratios of neighboring bursts, in photos per second
and in photos per CPU second of all processes of a side, which depend less on the load of the machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import alternate, common_parser, record, synchronize, table
from PIL import Image

from clips.data.images import normalize
from clips.data.sources import SourceConfig
from clips.data.tar_index import add_member, index_tar
from clips.loader.augment import read_crop
from clips.loader.data_config import AugmentConfig, DataConfig
from clips.loader.loader import TrainDataset, copy_ahead, iterate_batches
from clips.method.recipes import Recipe, RecipeConfig
from clips.model.tokenizer import ClipsTokenizer
from clips.train import prepare_batch

SIZE = 224
TICKS = os.sysconf("SC_CLK_TCK")


class Burst(NamedTuple):
    """Photos per second and per CPU second."""

    wall: float
    cpu: float


def cpu_seconds(pids: list[int]) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(found[11]) + int(found[12]) for found in fields) / TICKS


def wait_until_idle(pids: list[int]) -> None:
    """Wait until the loaders have finished prefetching."""
    before = -1.0
    while (now := cpu_seconds(pids)) > before + 2 / TICKS:
        before = now
        time.sleep(0.2)


def timed(pids: list[int], count: int, work: Any) -> Burst:
    cpu, began = cpu_seconds(pids), time.perf_counter()
    work()
    synchronize()
    return Burst(count / (time.perf_counter() - began), count / max(cpu_seconds(pids) - cpu, 1 / TICKS))


# ---------------------------------------------------------------- the data


def read_photos(path: Path, side: int | None) -> list[bytes]:
    """JPEGs of a tar or a folder; with ``side`` scaled to that length of the longer side, at quality 90."""
    if path.is_dir():
        found = [file.read_bytes() for file in sorted(path.glob("*.jpg"))[:1000]]
    else:
        index = index_tar(path)
        found = [index.read(name) for name in index.members if name.endswith(".jpg")]
    return [_scaled(photo, side) for photo in found] if side else found


def _scaled(photo: bytes, side: int) -> bytes:
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    factor, stream = side / max(image.size), io.BytesIO()
    image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=90
    )
    return stream.getvalue()


def read_captions(path: Path) -> list[str]:
    """The longest string of each line of a JSONL file, at any depth."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)

    return [max(texts(json.loads(line)), key=len) for line in path.read_text(encoding="utf-8").splitlines()]


def write_shards(folder: Path, photos: list[bytes], captions: list[str], samples: int, shards: int = 8) -> None:
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(shard, samples, shards):
                caption = captions[index % len(captions)]
                web = " ".join(caption.split()[:8])
                sidecar = json.dumps({"web_caption": web, "synthetic_caption": caption}).encode()
                for extension, content in (("jpg", photos[index % len(photos)]), ("json", sidecar)):
                    add_member(tar, f"{index:09d}.{extension}", content)


# ---------------------------------------------------------------- the sides


class Bare:
    """Processes that decode, crop and flip photos in memory."""

    def __init__(self, photos: list[bytes], config: AugmentConfig, workers: int) -> None:
        self.pipes, self.processes = [], []
        for number in range(workers):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_bare, args=(theirs, photos, config, number), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        self.pids: list[Any] = [process.pid for process in self.processes]

    def burst(self, count: int) -> Burst:
        share = count // len(self.pipes)

        def work() -> None:
            for pipe in self.pipes:
                pipe.send(share)
            for pipe in self.pipes:
                pipe.recv()

        return timed(self.pids, share * len(self.pipes), work)


def _bare(pipe: Connection, photos: list[bytes], config: AugmentConfig, seed: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    order = itertools.cycle(rng.permutation(len(photos)))
    while True:
        for _ in range(pipe.recv()):
            read_crop(photos[next(order)], SIZE, config, rng)
        pipe.send(None)


class Loader:
    """Batches from worker processes, consumed immediately."""

    def __init__(self, stream: Iterator[Any], batch_size: int, workers: int) -> None:
        self.stream, self.batch_size, self.workers = stream, batch_size, workers
        next(self.stream)
        self.pids = list[int]()

    def burst(self, count: int) -> Burst:
        for _ in range(4 * self.workers):  # batches that were prefetched while the other side ran
            next(self.stream)
        steps = max(1, count // self.batch_size)
        return timed(self.pids, steps * self.batch_size, lambda: [next(self.stream) for _ in range(steps)])


def clips_loader(folder: Path, config: AugmentConfig, arguments: argparse.Namespace) -> Generator[Any]:
    recipe, tokenizer = Recipe(RecipeConfig(name="clips")), ClipsTokenizer()
    data = TrainDataset(
        DataConfig(sources=(SourceConfig(path=str(folder)),), augment=config, num_workers=arguments.workers),
        size=SIZE,
        seed=0,
        batch_size=arguments.batch_size,
        prepare=functools.partial(recipe.prepare, tokenizer=tokenizer),
    )
    return iterate_batches(data, first_step=0, last_step=100_000)


def device_loader(folder: Path, config: AugmentConfig, arguments: argparse.Namespace) -> Iterator[Any]:
    """The same batches as a training step takes them: images on the device, normalized."""
    device = torch.device(arguments.device)
    mean, std = (torch.full((3, 1, 1), value, device=device) for value in (0.45, 0.27))
    normalized = functools.partial(normalize, mean=mean, std=std)
    run: Any = SimpleNamespace(processes=SimpleNamespace(device=device), normalize=normalized)
    return (prepare_batch(batch, run) for batch in copy_ahead(clips_loader(folder, config, arguments), device))


def webdataset_loader(folder: Path, config: AugmentConfig, arguments: argparse.Namespace) -> Iterator[Any]:
    """open_clip's pipeline: shards resampled, decoded by PIL, torchvision's crop, web caption and target tokenized."""
    import webdataset
    from torchvision import transforms

    tokenizer = ClipsTokenizer()
    flip = [transforms.RandomHorizontalFlip()] if config.horizontal_flip else []
    crop = transforms.RandomResizedCrop(SIZE, scale=(config.crop_scale_min, 1.0), antialias=True)
    preprocess = transforms.Compose([crop, *flip, transforms.PILToTensor()])

    def sample(found: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        captions = found["json"]
        texts = tokenizer([captions["web_caption"], captions["synthetic_caption"]])
        return preprocess(found["jpg"]), texts, tokenizer.encode_target(captions["synthetic_caption"])[0]

    pipeline = webdataset.DataPipeline(
        webdataset.ResampledShards(sorted(map(str, folder.glob("*.tar")))),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(500),
        webdataset.decode("pilrgb"),
        webdataset.map(sample),
        webdataset.batched(arguments.batch_size),
    )
    return iter(webdataset.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=arguments.workers))


# ---------------------------------------------------------------- the comparison


def compare(sides: dict[str, Any], rounds: int, count: int) -> dict[str, list[Burst]]:
    def burst(side: Any) -> Burst:
        wait_until_idle([pid for each in sides.values() for pid in each.pids])
        return side.burst(count)

    return alternate({name: functools.partial(burst, side) for name, side in sides.items()}, rounds)


def report(found: dict[str, list[Burst]], args: argparse.Namespace) -> str:
    rows = []
    for name, bursts in found.items():
        cells = [name]
        for clock in Burst._fields:
            rates = [getattr(burst, clock) for burst in bursts]
            ratios = [rate / getattr(bare, clock) for rate, bare in zip(rates, found["bare"], strict=True)]
            record(args, side=name, clock_of_rates=clock, photos_per_second=rates, of_bare=ratios)
            cells += [f"{statistics.median(rates):.0f}", f"{statistics.median(ratios):.2f}"]
            cells += [f"{min(ratios):.2f}–{max(ratios):.2f}"]
        rows.append(cells)
    return table(["loader", "photos/s", "of bare", "spread", "photos/CPU s", "of bare", "spread"], rows)


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.set_defaults(rounds=9)
    parser.add_argument("--photos", type=Path, required=True, help="a tar with, or a folder of, .jpg files")
    parser.add_argument("--captions", type=Path, required=True, help="JSON lines; the longest text of each is taken")
    parser.add_argument("--side", type=int, help="scale photos to this longer side first, JPEG quality 90")
    parser.add_argument("--samples", type=int, default=2000, help="in the shards; photos are repeated")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--burst", type=int, default=512, help="photos in a burst")
    parser.add_argument("--min-area", type=float, default=0.4)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    config = AugmentConfig(crop_scale_min=args.min_area, horizontal_flip=True)
    photos, captions = read_photos(args.photos, args.side), read_captions(args.captions)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), photos, captions, args.samples)
        sides: dict[str, Any] = {"bare": Bare(photos, config, args.workers)}
        makers = {"clips": clips_loader, "clips to device": device_loader}
        if importlib.util.find_spec("webdataset"):
            makers["webdataset"] = webdataset_loader
        for name, make in makers.items():
            before = set(multiprocessing.active_children())
            sides[name] = Loader(make(Path(folder), config, args), args.batch_size, args.workers)
            workers = set(multiprocessing.active_children()) - before
            sides[name].pids = [*(worker.pid for worker in workers), os.getpid()]
        found = compare(sides, args.rounds, args.burst)
    pixels = statistics.mean(max(Image.open(io.BytesIO(photo)).size) for photo in photos)
    print(
        f"{len(photos)} photos, on average {statistics.mean(map(len, photos)) / 1024:.0f} KiB and {pixels:.0f} pixels "
        f"on the longer side; captions of {statistics.mean(len(text.split()) for text in captions):.0f} words; "
        f"{args.workers} processes per side, {args.rounds} rounds of {args.burst} photos; "
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "pillow"))
        + "\n"
    )
    print(report(found, args))


if __name__ == "__main__":
    main()
