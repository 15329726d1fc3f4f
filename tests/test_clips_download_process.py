"""Shards are downloaded outside the training's process, which a kill of either process does not upset."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import clips_world
import pytest
import torch

from clips.data.data_config import DataConfig
from clips.data.download_process import DownloadProcess
from clips.data.loader import TrainDataset, iterate_batches
from clips.data.remote_files import ShardCache, UnreachableError
from clips.data.sources import SourceConfig
from clips.errors import UserError


def noted(folder: Path, workers: int) -> TrainDataset:
    """Four shards that a command copies; it notes the process that started it. A buffer holds two of them."""
    clips_world.write_sizes(clips_world.write_shards(folder / "remote", sizes=(8,) * 4), (8,) * 4)
    path = f"pipe:echo $PPID >> {folder}/log; cat {folder}/remote/shard-{{00000..00003}}.tar"
    source = SourceConfig(path=path, shard_sizes=str(folder / "remote" / "sizes.json"), cache_dir=str(folder / "cache"))
    config = DataConfig(sources=(source,), shuffle_buffer_shards=2, num_workers=workers)
    data = TrainDataset(config, size=8, seed=2, batch_size=4, prepare=clips_world.number_of)
    (folder / "log").write_text("")  # opening tried the first shard, before training
    return data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("local_rank", [None, "1"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_training_process_downloads_nothing(tmp_path, monkeypatch, workers, local_rank):
    if local_rank:  # which prefetches nothing; its workers copy what no other has
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    data = noted(tmp_path, workers)
    found = list(iterate_batches(data, first_step=0, last_step=8))
    assert sorted(torch.cat([batch["number"] for batch in found]).tolist()) == list(range(32))
    copied_by = (tmp_path / "log").read_text().split()
    assert len(copied_by) >= 3
    assert str(os.getpid()) not in copied_by
    if not workers:
        assert len(set(copied_by)) == 1
        assert ended(int(copied_by[0]))  # with the reading


def ended(pid: int, seconds: float = 20) -> bool:
    return until(lambda: not alive(pid), seconds)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.is_file() else []


def test_a_kill_of_the_training_ends_its_downloads_and_leaves_no_file(tmp_path: Path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    code = "import sys; from pathlib import Path; from clips.data.remote_files import ShardCache"
    code += "; from clips.data.download_process import DownloadProcess; cache = ShardCache(Path(sys.argv[1]), 1e9)"
    code += "; cache.downloads = DownloadProcess(); cache.path(sys.argv[2])"
    address = f"pipe:echo $PPID >> {log}; head -c 1000000 /dev/zero; exec sleep 600"
    training = subprocess.Popen([sys.executable, "-c", code, str(cache), address])
    try:
        assert until(lambda: bool(pids(log)) and any(cache.glob("*.partial")), 60)
        (downloading,) = pids(log)
        assert downloading != training.pid
        os.kill(downloading, signal.SIGTERM)  # a scheduler sends it to all; it is the training's to answer
        time.sleep(0.3)
        assert alive(downloading)
    finally:
        training.kill()
        training.wait()
    assert ended(downloading)
    assert list(cache.glob("*.partial")) == []
    for child in sleeping(address):
        os.kill(child, signal.SIGKILL)


def sleeping(address: str) -> list[int]:
    """Commands that this test started, of which nothing else is known; a shell of another name is not ours."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if address.removeprefix("pipe:") in (entry / "cmdline").read_text().replace("\0", " "):
                found.append(int(entry.name))
    return found


def test_a_kill_of_the_downloading_process_costs_a_retry(tmp_path: Path):
    (tmp_path / "shard.tar").write_bytes(b"x")
    log = tmp_path / "log"
    cache = ShardCache(tmp_path / "cache", 1e9)
    cache.downloads = DownloadProcess()
    address = f"pipe:echo $PPID >> {log}; [ $(wc -l < {log}) = 1 ] && kill -9 $PPID; cat {tmp_path}/shard.tar"
    try:
        assert cache.path(address).read_bytes() == b"x"
        first, second = pids(log)
        assert first != second
        assert os.getpid() not in (first, second)
    finally:
        cache.downloads.close()
    assert ended(second)
    assert [path.name.partition("-")[2] for path in (tmp_path / "cache").glob("[!.]*")] == ["shard.tar"]


def test_a_download_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clips.data.remote_files.time.sleep", lambda seconds: None)
    cache = ShardCache(tmp_path / "cache", 1e9)
    cache.downloads = DownloadProcess()
    try:
        with pytest.raises(UserError, match=r"^file:///nowhere/a\.tar: no such file$"):
            cache.path("file:///nowhere/a.tar")
        with pytest.raises(UnreachableError, match=r"cannot be read \(the command ended with status 3\)$"):
            cache.path("pipe:exit 3")
        with pytest.raises(UnreachableError, match=r"cannot be read \(Protocol not known: nonsense\)$"):
            cache.path("nonsense://bucket/a.tar")
    finally:
        cache.downloads.close()


def test_a_process_that_has_been_forked_downloads_by_itself(tmp_path: Path):
    """A reader forked while downloads are under way does not share their connection."""
    downloads = DownloadProcess()
    try:
        downloads.run(Path.touch, tmp_path / "first")
        child = os.fork()
        if child == 0:
            downloads.run(Path.touch, tmp_path / "forked")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        downloads.run(Path.touch, tmp_path / "last")
    finally:
        downloads.close()
    downloads.run(Path.touch, tmp_path / "closed")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "forked", "last", "closed"}
