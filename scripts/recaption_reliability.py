"""Kill the server and the client of a recaptioning at random, and check that every image has its one caption.

    python scripts/recaption_reliability.py --kills 50

`llava-bridge serve` runs a small LLaVA of random weights; `clips recaption --endpoint` has it caption 1,000 images.
kill -9 hits the client or the server at random moments; the server starts again at the same address, the client by the
same command. In the end the dataset must equal that of an uninterrupted run, byte for byte.

It prints a line; exit status 1 if it fails. About ten minutes on two cores.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bridge_reliability import make_world
from reliability import directory, kill_options, noise_image, print_result

from clips.data.tar_index import add_member

SHARDS, SAMPLES = 100, 10
OUTPUT_SHARDS, OUTPUT_SAMPLES = 200, 5


def main() -> int:
    arguments = kill_options(__doc__, 50).parse_args()
    with directory(arguments.work) as work:
        rng = random.Random(arguments.seed)
        write_world(work, rng)
        return 0 if survives_kills(work, arguments.kills, rng) else 1


def write_world(work: Path, rng: random.Random) -> None:
    """Write shards of images with short captions, and a LLaVA."""
    from llava_bridge.model.build import LlavaParts, build_llava

    make_world(work, rng)
    model, processor = build_llava(
        LlavaParts(encoder="timm:vit_tiny_patch16_224@random", llm=str(work / "llm"), image_size=32)
    )
    model.save_pretrained(work / "llava")
    processor.save_pretrained(work / "llava")
    (work / "shards").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(work / "shards" / f"{shard:05d}.tar", "w") as tar:
            for index in range(shard * SAMPLES, (shard + 1) * SAMPLES):
                fields = json.dumps({"web_caption": f"thing {index}"}).encode()
                for name, content in ((f"{index:06d}.png", noise_image(index)), (f"{index:06d}.json", fields)):
                    add_member(tar, name, content)


def start(log: Path, *command: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen([sys.executable, "-m", *command], stdout=stream, stderr=stream)


def start_server(work: Path, port: int) -> subprocess.Popen[bytes]:
    return start(work / "server.log", "llava_bridge", "serve", str(work / "llava"), "--port", str(port))


def start_client(work: Path, port: int, output: str) -> subprocess.Popen[bytes]:
    fields = {"model": "llava", "endpoint": f"[http://127.0.0.1:{port}/v1]", "output": work / output}
    fields |= {
        "prompt": "{web}: which?",
        "max_new_tokens": 8,
        "batch_size": 1,
        "shard_size": OUTPUT_SAMPLES,
        "retry_minutes": 10,
    }
    settings = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    return start(work / f"{output}.log", "clips.cli", "recaption", str(work / "shards"), *settings)


def survives_kills(work: Path, kills: int, rng: random.Random) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    server = start_server(work, port)
    try:
        wait_until_served(port)
        whole = start_client(work, port, "whole")
        while not content(work / "whole") and whole.poll() is None:
            time.sleep(0.05)
        startup = time.monotonic() - began
        if whole.wait():
            return print_result(False, f"the uninterrupted run failed, see {work / 'whole.log'}")
        client, killed, places = start_client(work, port, "killed"), {"client": 0, "server": 0}, set[int]()
        while sum(killed.values()) < kills:
            done = len(content(work / "killed"))  # wait for some more, or not even for the first
            enough = done + rng.uniform(0, 3 * OUTPUT_SHARDS / kills)
            until = time.monotonic() + rng.uniform(0, 3) * startup
            while client.poll() is None and len(content(work / "killed")) < enough and time.monotonic() < until:
                time.sleep(0.05)
            if client.poll() is not None:
                return print_result(
                    False, f"the run ended with {client.returncode} before the last kill, see {work / 'killed.log'}"
                )
            victim = rng.choice(["client", "server"])
            killed[victim] += 1
            if victim == "client":
                client.kill()
                client.wait()
                client = start_client(work, port, "killed")
            else:
                server.kill()
                server.wait()
                server = start_server(work, port)
            places.add(len(content(work / "killed")))
            print(f"\rkill {sum(killed.values())} of {kills}, {max(places)} shards   ", end="", file=sys.stderr)
        print(file=sys.stderr)
        status = client.wait()
    finally:
        server.kill()
        server.wait()
    same = content(work / "whole") == content(work / "killed")
    captions = dict(read_captions(work / "killed"))
    different = len(set(captions.values()))
    return print_result(
        status == 0 and same and len(captions) == SHARDS * SAMPLES and different > SAMPLES and 4 * len(places) >= kills,
        f"{killed['client']} kills of the client and {killed['server']} of the server at {len(places)} numbers of "
        f"shards: {len(captions)} of {SHARDS * SAMPLES} images have one caption, {different} different; "
        f"shards {'equal' if same else 'differ'}",
    )


def wait_until_served(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
            return
        time.sleep(0.2)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("0*.tar"))}


def read_captions(directory: Path) -> Iterator[tuple[str, str]]:
    """Key and caption of each sample; ValueError if a key is there twice."""
    seen = set[str]()
    for path in sorted(directory.glob("0*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    if member.name in seen:
                        raise ValueError(f"{member.name} is there twice")
                    seen.add(member.name)
                    yield member.name, json.load(tar.extractfile(member))["re_caption"]  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
