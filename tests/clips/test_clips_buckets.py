"""Shards in a bucket: a simulated S3 (`pip install moto[server]`) behind the real s3fs (the extra `remote`)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import clips_world
import pytest
from clips_world import is_equal, trained

from clips.data.sources import SourceConfig, open_source
from clips.errors import UserError
from clips.loader.inspect_command import IndexShardsConfig, run_index

s3fs = pytest.importorskip("s3fs")
MOTO = shutil.which("moto_server")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of shards of 9, 7 and 5 samples; their count is not there yet."""
    if MOTO is None:
        pytest.skip("no moto_server, which simulates S3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([MOTO, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address)
        account = {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}
        for name, value in {**account, "ENDPOINT_URL": address}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("recap")
        for shard in clips_world.write_shards(tmp_path / "here").iterdir():
            system.put_file(str(shard), f"recap/train/{shard.name}")
        yield "s3://recap/train/shard-{00000..00002}.tar"
    finally:
        server.terminate()
        server.wait()
        s3fs.S3FileSystem.clear_instance_cache()


def wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "moto_server did not begin"
            time.sleep(0.2)


def test_training_from_a_bucket_is_training_from_a_disk(bucket: str, tmp_path: Path) -> None:
    cache = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"s3://recap/train/sizes\.json: no such file; .* `clips data index"):
        open_source(SourceConfig(path=bucket, **cache))
    run_index(IndexShardsConfig(path=bucket, output=str(tmp_path / "sizes.json"), **cache))
    assert list(json.loads((tmp_path / "sizes.json").read_text()).values()) == [9, 7, 5]
    sources = {
        "bucket": {"path": bucket, "shard_sizes": str(tmp_path / "sizes.json"), **cache},
        "disk": {"path": str(tmp_path / "here")},
    }
    for name, source in sources.items():
        data = {"sources": [source], "shuffle_buffer_shards": 2, "num_workers": 1}
        trained(tmp_path, tmp_path / name, data=data, max_steps=4)
    assert is_equal(tmp_path / "bucket", tmp_path / "disk")
