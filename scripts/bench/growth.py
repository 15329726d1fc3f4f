"""What grows with a training's shards and processes: the start's seconds, memory and file operations; sockets.

    python scripts/bench/growth.py --shards 100 1000 --samples 10000
    python scripts/bench/growth.py --shards 140000 --samples 10000 --sizes
    python scripts/bench/growth.py --shards --processes 2 8 32
    python scripts/bench/growth.py --shards 1000 --open-clip                  # needs webdataset

A few real tars, hard-linked under many names, stand for a large dataset: their bytes are in the page cache, so that
this is the cost of the code, and a lower bound of that of a disk. `cold` is the first start on a machine, `warm` the
next one. A start opens the data and reads the bytes and captions of the first batch; it decodes no image. Memory is
what the process has grown by; `stat` and `open` count its calls. `another process` opens the same data by the facts
that the first one has sent, and reads its half of the batch.

`sockets` are those of the first and of the last process after a collective call in each of the two groups of a
training, `all-reduce` the time of one of a number, which on few cores is that of switching between processes.

`open_clip` is the pipeline of its trainer on the same shards. Both have one worker, decode, crop to 224 pixels and
tokenize; `memory` is that of the process and its worker together, in which shared pages count once (PSS), `samples/s`
that of the batches after the first one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import io
import json
import multiprocessing
import os
import resource
import socket
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from measure import common_parser, record, table
from PIL import Image

from clips.data.sources import SourceConfig, open_source
from clips.data.tar_index import add_member
from clips.loader.data_config import DataConfig
from clips.loader.loader import TrainDataset, iterate_batches
from clips.loader.sampler import step_positions
from clips.method.recipes import Recipe, RecipeConfig
from clips.model.tokenizer import ClipsTokenizer
from clips.parallel.distributed import start_processes

LINKS = 60_000  # of a file; ext4 allows 65,000


def write_shards(folder: Path, shards: int, samples: int, *, sizes: bool) -> None:
    """``shards`` names of tars with ``samples`` samples of an image, a JSON and a text."""
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(image, "JPEG")
    fields = json.dumps({"web_caption": "a picture", "synthetic_caption": "A picture of noise. It is small."}).encode()
    folder.mkdir(parents=True)
    for first in range(0, shards, LINKS):
        original = folder / f"{first:06d}.tar"
        with tarfile.open(original, "w") as tar:
            for number in range(samples):
                for extension, content in (("jpg", image.getvalue()), ("json", fields), ("txt", b"a picture")):
                    add_member(tar, f"{number:09d}.{extension}", content)
        for number in range(first + 1, min(first + LINKS, shards)):
            os.link(original, folder / f"{number:06d}.tar")
    if sizes:
        (folder / "sizes.json").write_text(json.dumps({f"{number:06d}.tar": samples for number in range(shards)}))


def start(folder: Path, cache: Path, buffer: Any, batch_size: int, facts: Any) -> tuple[dict[str, float], Any]:
    """Open the data and read the first batch, in this process; with ``facts`` its second half, as another process."""
    calls = Counter[str]()
    for module, name in ((os, "stat"), (os, "open"), (io, "open")):
        setattr(module, name, _counting(getattr(module, name), name, calls))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    source = SourceConfig(path=str(folder), cache_dir=str(cache))
    config = DataConfig(sources=(source,), **({} if buffer is None else {"shuffle_buffer_shards": buffer}))
    opened = open_source(source, facts)
    data = TrainDataset(
        config, size=224, seed=0, batch_size=batch_size, prepare=lambda web, synthetic, rng: {}, parts=[opened]
    )
    seconds = {"opened": time.perf_counter() - began}
    share = {} if facts is None else {"rank": 1, "world_size": 2}
    for position in step_positions(0, batch_size=batch_size, **share):
        opened.read(data.order.at(position).index, np.random.default_rng(0))
    seconds["first batch"] = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted = {"MB": (peak - before) / 1024, "stat": calls["stat"], "open": calls["open"]}
    return {**seconds, **counted}, opened.facts if facts is None else None


def _counting(function: Any, name: str, calls: Counter[str]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    return counted


def clips_batches(folder: Path, cache: Path, shards: int, samples: int, batch_size: int) -> Iterator[Any]:
    """The batches of this suite's loader."""
    config = DataConfig(sources=(SourceConfig(path=str(folder), cache_dir=str(cache)),), num_workers=1)
    prepare = functools.partial(Recipe(RecipeConfig(name="clip")).prepare, tokenizer=ClipsTokenizer())
    data = TrainDataset(config, size=224, seed=0, batch_size=batch_size, prepare=prepare)
    return iterate_batches(data, first_step=0, last_step=100)


def open_clip_batches(folder: Path, cache: Path, shards: int, samples: int, batch_size: int) -> Iterator[Any]:
    """The batches of open_clip's trainer."""
    import open_clip
    from open_clip_train.data import get_wds_dataset

    args = argparse.Namespace(
        train_data=f"{folder}/{{000000..{shards - 1:06d}}}.tar",
        train_num_samples=shards * samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        workers=1,
        world_size=1,
        batch_size=batch_size,
    )
    transform = open_clip.image_transform(224, is_train=True)
    return iter(get_wds_dataset(args, transform, True, tokenizer=open_clip.SimpleTokenizer()).dataloader)


def batches(side: str, count: int, *arguments: Any) -> dict[str, float]:
    """Seconds to the first batch, bytes of all processes then, and samples per second of ``count`` more batches."""
    multiprocessing.set_start_method("fork", force=True)  # as in a training, which is not spawned
    began = time.perf_counter()
    stream = {"clips": clips_batches, "open_clip": open_clip_batches}[side](*arguments)
    next(stream)
    first = time.perf_counter() - began
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    memory = sum(process.memory_full_info().pss for process in processes)
    began = time.perf_counter()
    for _ in range(count):
        next(stream)
    return {"first": first, "memory": memory, "rate": count * arguments[-1] / (time.perf_counter() - began)}


def connect(rank: int, port: int, count: int, folder: str) -> None:
    """Join the processes of a training, and write the number of sockets and the time of an all-reduce."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    start_processes()
    group: Any = torch.distributed.new_group(backend="gloo")  # that of the checkpoints
    value = torch.zeros(1)
    torch.distributed.all_reduce(value, group=group)
    torch.distributed.all_reduce(value)
    began = time.perf_counter()
    for _ in range(20):
        torch.distributed.all_reduce(value)
    seconds = (time.perf_counter() - began) / 20
    sockets = sum(path.is_socket() for path in Path("/proc/self/fd").iterdir())
    Path(folder, str(rank)).write_text(f"{sockets} {seconds}")
    torch.distributed.barrier()


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--shards", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--samples", type=int, default=10_000, help="of each shard")
    parser.add_argument("--sizes", action="store_true", help="with a sizes.json next to the shards")
    parser.add_argument("--buffer", type=int, help="data.shuffle_buffer_shards; without it the default")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="for the shards; a temporary one without it")
    parser.add_argument("--open-clip", action="store_true", help="beside the pipeline of its trainer")
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="whose sockets are counted")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    rows, sides = [], []
    context = multiprocessing.get_context("spawn")
    for shards in args.shards:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
            write_shards(root / "data", shards, args.samples, sizes=args.sizes)
            facts: Any = None
            for name in ["cold", "warm", "another process"]:
                given = facts if name == "another process" else None
                with context.Pool(1) as pool:
                    of, told = pool.apply(start, (root / "data", root / "cache", args.buffer, args.batch_size, given))
                facts = told or facts
                record(args, shards=shards, start=name, **of)
                numbers = (f"{of['opened']:.1f} s", f"{of['first batch']:.1f} s", f"{of['MB']:,.0f}")
                rows.append([f"{shards:,}", name, *numbers, f"{of['stat']:,}", f"{of['open']:,}"])
            for name in ["clips", "open_clip"] * args.rounds if args.open_clip else []:
                with concurrent.futures.ProcessPoolExecutor(1, context) as pool:  # whose processes may have children
                    task = (root / "data", root / "cache", shards, args.samples, args.batch_size)
                    measured = pool.submit(batches, name, 8, *task).result()
                record(args, shards=shards, loader=name, **measured)
                numbers = (f"{measured['first']:.1f} s", f"{measured['memory'] / 1e6:,.0f}", f"{measured['rate']:,.0f}")
                sides.append([f"{shards:,}", name, *numbers])
    if sides:
        print(table(["shards", "loader", "first batch", "memory, MB", "samples/s"], sides))
    if rows:
        print(table(["shards", "start", "opened", "first batch", "MB", "stat calls", "open calls"], rows))
    rows = []
    for count in args.processes:
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            multiprocessing.set_forkserver_preload(["clips.parallel.distributed"])
            torch.multiprocessing.start_processes(
                connect, (port, count, folder), nprocs=count, start_method="forkserver"
            )
            of_first, of_last = (Path(folder, str(rank)).read_text().split() for rank in (0, count - 1))
            record(args, processes=count, sockets=[int(of_first[0]), int(of_last[0])], all_reduce=float(of_first[1]))
            rows.append([f"{count}", of_first[0], of_last[0], f"{1000 * float(of_first[1]):.1f} ms"])
    if rows:
        print(table(["processes", "sockets of the first", "of the last", "all-reduce"], rows))


if __name__ == "__main__":
    main()
