"""Remote shards: copied once, ahead of need, also with network failures."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips_world
import pytest
import torch
from clips_world import opened, rng
from serving import Quiet, address, serve

from clips.core.parent_death import default_workers
from clips.data import remote_files
from clips.data.images import InvalidSampleError
from clips.data.remote_files import ShardCache, UnreachableError
from clips.data.sources import SourceConfig, open_source
from clips.errors import UserError
from clips.loader.data_config import DataConfig
from clips.loader.loader import TrainDataset, iterate_batches
from clips.loader.prefetch import start_prefetching
from clips.loader.sampler import SampleOrder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Three shards and their sizes.json."""
    folder = clips_world.write_shards(tmp_path / "remote", sizes=(9, 7, 5))
    yield from serve(Quiet, clips_world.write_sizes(folder, (9, 7, 5)))


def test_remote_shards_are_read_once_and_only_when_needed(server, tmp_path: Path):
    cache = tmp_path / "cache"
    source = opened(address(server), cache_dir=str(cache))
    assert len(source) == 21
    fetched = [path for path in server.seen if path.endswith(".tar")]
    assert set(fetched) == {"/shard-00000.tar"}  # opened to try its first samples
    assert source.read(20, rng()).web == clips_world.captions(20)["web_caption"]
    assert source.name(20) == "shard-00002.tar/000000020"
    before = len(server.seen)
    assert pickle.loads(pickle.dumps(source)).read(20, rng()).image == clips_world.draw_image(20)
    assert len(server.seen) == before
    assert copies(cache) == {0, 2}
    assert len([*cache.glob("[!.]*.index")]) == 2  # which other readers use


def test_a_remote_error_is_one_line(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clips.data.remote_files.time.sleep", lambda seconds: None)
    cache = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"shard-00003\.tar"):
        opened(address(server, "shard-{00000..00003}.tar"), **cache)
    (tmp_path / "sizes.json").write_text('{"gone.tar": 3}', encoding="utf-8")
    with pytest.raises(UserError, match=r"gone\.tar: no such file"):
        opened(address(server, "gone.tar"), shard_sizes=str(tmp_path / "sizes.json"), **cache)
    (tmp_path / "remote" / "sizes.json").unlink()
    missing = r"sizes\.json: no such file; remote shards need this count .* `clips data index"
    with pytest.raises(UserError, match=missing):
        opened(address(server), **cache)


def test_a_shard_that_has_less_than_counted_gives_bad_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clips.data.formats.webdataset._QUICK_BYTES", 0)
    folder = clips_world.write_sizes(clips_world.write_shards(tmp_path / "here", sizes=(2, 2)), (2, 3))
    source = opened(folder)
    assert len(source) == 5
    with pytest.raises(InvalidSampleError, match=r"missing, but counted in sizes\.json"):
        source.read(4, rng())


def test_the_index_of_a_shard_decides_how_many_samples_it_has(tmp_path: Path, monkeypatch, capsys):
    folder = clips_world.write_shards(tmp_path / "here", sizes=(2, 5, 3))
    clips_world.write_sizes(folder, (2, 3, 4))
    said = "states 3 samples of shard-00001.tar, which has 5, 4 samples of shard-00002.tar, which has 3;"
    config = DataConfig(sources=(SourceConfig(path=str(folder), cache_dir=str(tmp_path / "cache")),))
    for limit in (1e9, 0):  # counted when opened; by a training that needs all indexes for its first batch
        monkeypatch.setattr("clips.data.formats.webdataset._QUICK_BYTES", limit)
        data = TrainDataset(config, size=8, seed=0, batch_size=1, prepare=clips_world.number_of)
        assert sorted(sample["number"].item() for sample in data.__getitems__(range(10))) == list(range(10))
        assert capsys.readouterr().err.count(said) == 1
    for path in (str(folder), f"file://{folder}/shard-{{00000..00002}}.tar"):  # opened when they are needed
        source = opened(path, cache_dir=str(tmp_path / "cache"))
        assert source.read(0, rng()).image == clips_world.draw_image(0)
        with pytest.raises(UserError, match=r"json: states 3 samples of shard-00001\.tar, which has 5; `clips"):
            source.read(2, rng())
    clips_world.write_sizes(folder, (1, 5, 3))
    with pytest.raises(UserError, match=r"states 1 samples of shard-00000\.tar, which has 2"):
        opened(folder)


@pytest.mark.parametrize("count", ["7", -1, 2.5, True, None, "many", 1e400])
def test_a_count_that_is_no_number_of_samples_is_rejected(tmp_path: Path, count: object):
    folder = clips_world.write_shards(tmp_path / "here", sizes=(2, 2))
    (folder / "sizes.json").write_text(json.dumps({"shard-00000.tar": 2.0, "shard-00001.tar": count}))
    with pytest.raises(UserError, match="expected a JSON object of shard name → number of samples"):
        opened(folder)


class Gate(Quiet):
    """A server behind a login: without ``?key=a/b`` a page is the answer, and 503 to the first request for a file."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if self.path not in self.server.seen:  # type: ignore[attr-defined]
            self.send_error(503)
        elif query == "key=a/b":
            self.path = path
            super().do_GET()
        else:
            content = Path(self.directory, path[1:]).read_bytes()
            half = content[: len(content) // 1024 * 512]
            sent = {"": b"<html>please log in</html>", "key=none": b"", "key=half": half}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content if path.endswith(".json") else sent[query])


def test_a_bad_download_does_not_enter_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clips.data.remote_files.time.sleep", lambda seconds: None)
    folder = clips_world.write_sizes(clips_world.write_shards(tmp_path / "remote", sizes=(9, 7, 5)), (9, 7, 5))
    for server in serve(Gate, folder):
        url, cache = f"{address(server)}?key=", str(tmp_path / "cache")
        for key, reason in (
            ("none", r"expected an uncompressed tar, got 0 bytes$"),
            ("half", r"expected a whole tar, got [\d,]+ bytes without its end$"),
        ):
            with pytest.raises(UserError, match=rf"^http://.*/shard-00000\.tar\?key={key}: {reason}"):
                opened(f"{url}{key}", cache_dir=cache)
        with pytest.raises(UserError, match=r"/shard-00000\.tar: expected an uncompressed tar, .* begin with b'<html>"):
            opened(address(server), cache_dir=cache)
        assert copies(tmp_path / "cache") == set()
        source = opened(f"{url}a/b", cache_dir=cache)
        assert source.read(20, rng()).image == clips_world.draw_image(20)
        assert copies(tmp_path / "cache") == {0, 2}


def test_processes_copy_a_shard_once(tmp_path: Path):
    (tmp_path / "shard.tar").write_bytes(b"x")
    address = f"pipe:echo copied >> {tmp_path}/log; sleep 0.5; cat {tmp_path}/shard.tar"
    code = "import sys; from pathlib import Path; from clips.data.remote_files import ShardCache"
    code += "; print(ShardCache(Path(sys.argv[1]), 100).path(sys.argv[2], lambda path: None).read_text())"
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), address]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["x", "x"]
    assert (tmp_path / "log").read_text().split() == ["copied"]


def remote(folder: Path, sizes: tuple[int, ...], before: str = "file://", **fields: Any) -> SourceConfig:
    """Shards behind addresses, or behind ``before``, a command that copies them into ``folder``/cache."""
    if not (folder / "remote").exists():
        clips_world.write_sizes(clips_world.write_shards(folder / "remote", sizes=sizes), sizes)
    path = f"{before}{folder}/remote/shard-{{00000..{len(sizes) - 1:05d}}}.tar"
    places = {"shard_sizes": str(folder / "remote" / "sizes.json"), "cache_dir": str(folder / "cache")}
    return SourceConfig(path=path, **{**places, **fields})


def numbered(source: SourceConfig, shards: int, seed: int = 2, batch_size: int = 2, workers: int = 0) -> TrainDataset:
    config = DataConfig(sources=(source,), shuffle_buffer_shards=shards, num_workers=workers)
    return TrainDataset(config, size=8, seed=seed, batch_size=batch_size, prepare=clips_world.number_of)


def numbers(batches: list[dict[str, Any]]) -> list[int]:
    return torch.cat([batch["number"] for batch in batches]).tolist()  # type: ignore[no-any-return]


def remote_dataset(folder: Path, cache: str = "cache", workers: int = 0, **fields: object) -> TrainDataset:
    """Four shards of 20 samples, of which a buffer holds one; shard 0 comes late in the order."""
    found = numbered(remote(folder, (20,) * 4, cache_dir=str(folder / cache), **fields), 1, workers=workers)
    assert 0 not in found.order.shards_near(0, 40)[0] + found.order.shards_near(0, 40)[1]
    return found


def copies(cache: Path) -> set[int]:
    return {int(path.stem[-5:]) for path in cache.glob("[!.]*.tar")}


def copied(cache: Path, blocks: set[int], seconds: float) -> bool:
    return until(lambda: blocks <= copies(cache), seconds)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_next_buffers_shards_are_copied_while_this_one_is_read(tmp_path: Path, monkeypatch, workers: int):
    data = remote_dataset(tmp_path, workers=workers)
    now, later = data.order.shards_near(0, 40)
    steps = iterate_batches(data, first_step=0, last_step=40)
    next(steps)
    assert copied(tmp_path / "cache", {0, *now, *later}, seconds=20)
    assert len(list(steps)) == 39
    monkeypatch.setenv("LOCAL_RANK", "1")  # another process of the machine copies for this one
    steps = iterate_batches(remote_dataset(tmp_path, "other"), first_step=0, last_step=40)
    next(steps)
    assert not copied(tmp_path / "other", {*later}, seconds=1)


def test_no_buffer_is_copied_that_will_not_be_read(tmp_path: Path):
    data = remote_dataset(tmp_path)
    now, _ = data.order.shards_near(0, 5)
    assert data.order.shards_near(0, 10) == (now, [])
    assert data.order.shards_near(0, 11) == (now, [data.order.at(20).index // 20])
    assert len(list(iterate_batches(data, first_step=0, last_step=10))) == 10
    assert copies(tmp_path / "cache") == {0, *now}


def test_a_folder_with_room_for_one_buffer_does_not_lose_it(tmp_path: Path, capfd):
    data = remote_dataset(tmp_path)
    size = (tmp_path / "remote" / "shard-00000.tar").stat().st_size
    data = remote_dataset(tmp_path, "small", max_cache_gb=1.5 * size / 1e9)
    now, later = data.order.shards_near(0, 40)
    steps = iterate_batches(data, first_step=0, last_step=40)
    next(steps)
    assert copied(tmp_path / "small", {*now}, seconds=20)
    assert not copied(tmp_path / "small", {*later}, seconds=1)
    said: list[str] = []
    assert until(lambda: said.append(capfd.readouterr().err) or "no room for two shuffle buffers" in "".join(said))
    assert len(list(steps)) == 39


def test_a_machine_copies_only_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    for rank in range(2):  # two machines of one process
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        cache = tmp_path / f"cache-{rank}"
        data = numbered(remote(tmp_path, (4,) * 16, cache_dir=str(cache)), 8, seed=0, batch_size=8)
        seen += numbers(list(iterate_batches(data, first_step=0, last_step=8, rank=rank, world_size=2)))
        assert len(copies(cache) - {0}) <= 8  # the first is opened by all
    assert sorted(seen) == list(range(64))


def test_reading_that_is_quicker_than_copying_does_not_stop_it(tmp_path: Path):
    source = open_source(remote(tmp_path, (8,) * 36, "pipe:sleep 0.05; cat "))
    order = SampleOrder([source.blocks], seed=0, buffer_shards=12, batch_size=96)
    with start_prefetching(order, [source], last=3) as reach:
        for buffer in range(3):  # the next one's copies have hardly begun
            reach(buffer)
            assert until(lambda end=12 * (buffer + 1): len([*(tmp_path / "cache").glob("*-shard.tar")]) >= end)  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_training_with_workers_downloads_nothing(tmp_path: Path):
    log = tmp_path / "log"
    source = remote(tmp_path, (8,) * 4, f"pipe:echo $PPID >> {log}; cat ")
    data = numbered(source, 2, batch_size=4, workers=2)
    log.write_text("")  # opening tried the first shard, before training
    assert sorted(numbers(list(iterate_batches(data, first_step=0, last_step=8)))) == list(range(32))
    assert len(pids(log)) >= 3
    assert os.getpid() not in pids(log)
    assert until(lambda: not any(map(alive, pids(log))))


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


STALLED = """
import sys, time
from clips.loader.prefetch import start_prefetching
from clips.loader.sampler import SampleOrder
from clips.data.sources import SourceConfig, open_source

if __name__ == "__main__":
    path, sizes, cache, go = sys.argv[1:]
    source = open_source(SourceConfig(path=path, shard_sizes=sizes, cache_dir=cache))
    order = SampleOrder([source.blocks], seed=2, buffer_shards=2, batch_size=4)
    open(go, "w").close()
    with start_prefetching(order, [source], last=8) as reach:
        reach(0)
        time.sleep(600)
"""


def test_a_kill_of_the_training_ends_its_downloads_and_leaves_no_file(tmp_path: Path):
    log, cache, go = tmp_path / "log", tmp_path / "cache", tmp_path / "go"
    stall = f"[ -e {go} ] && echo $PPID >> {log} && head -c 1000000 /dev/zero && exec sleep 600"
    config = remote(tmp_path, (8,) * 4, f"pipe:{stall}; cat ")
    arguments = [config.path, str(config.shard_sizes), str(cache), str(go)]
    training = subprocess.Popen([sys.executable, "-c", STALLED, *arguments])
    try:
        assert until(lambda: bool(pids(log)) and any(cache.glob("*.partial")), 60)
        downloading = pids(log)[0]
        assert downloading != training.pid
        os.kill(downloading, signal.SIGTERM)  # a scheduler sends it to all; it is the training's to answer
        time.sleep(0.3)
        assert alive(downloading)
    finally:
        training.kill()
        training.wait()
    assert until(lambda: not alive(downloading))
    assert list(cache.glob("*.partial")) == []
    for child in running(stall):
        os.kill(child, signal.SIGKILL)


def running(command: str) -> list[int]:
    """Commands that this test started, of which nothing else is known; a shell of another name is not ours."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if command in (entry / "cmdline").read_text().replace("\0", " "):
                found.append(int(entry.name))
    return found


def test_a_kill_of_the_downloading_process_costs_no_sample(tmp_path: Path):
    log = tmp_path / "log"
    data = numbered(remote(tmp_path, (8,) * 6, f"pipe:echo $PPID >> {log}; sleep 0.1; cat "), 2, batch_size=4)
    log.write_text("")
    steps = iterate_batches(data, first_step=0, last_step=12)
    found = [next(steps)]
    assert until(lambda: any(pid != os.getpid() for pid in pids(log)))
    os.kill(next(pid for pid in pids(log) if pid != os.getpid()), signal.SIGKILL)
    assert sorted(numbers([*found, *steps])) == list(range(48))


class Outage:
    """A URL that fails N times, or always; time passes at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures, self.pauses, self.fetch = 0.0, [], remote_files.download_file
        monkeypatch.setattr(remote_files, "download_file", self)
        monkeypatch.setattr(remote_files.time, "sleep", self.pauses.append)

    def __call__(self, address: str, partial: Path) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("503 Slow Down")
        self.fetch(address, partial)


def test_an_outage_of_minutes_costs_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    outage = Outage(monkeypatch)
    source = open_source(remote(tmp_path, (2,) * 18))
    outage.failures = 8
    assert source.read(20, rng()).image == clips_world.draw_image(20)
    assert 120 < sum(outage.pauses) < 600
    assert capsys.readouterr().err.count("503 Slow Down); retrying") == 1
    outage.failures = float("inf")
    for _ in range(2):  # it is not remembered as a broken shard
        with pytest.raises(UnreachableError, match="503 Slow Down"):
            source.read(30, rng())
    outage.failures = 0
    assert source.read(30, rng()).image == clips_world.draw_image(30)


def test_a_permanent_error_is_reported_without_retries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A shard that is not there, a full disk; and an address that never worked, which is tried a few times."""
    outage = Outage(monkeypatch)
    source = open_source(remote(tmp_path, (2,) * 18))
    (tmp_path / "remote" / "shard-00010.tar").unlink()
    with pytest.raises(InvalidSampleError, match="no such file"):
        source.read(20, rng())
    monkeypatch.setattr(outage, "fetch", failing(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        source.read(24, rng())
    assert outage.pauses == []
    outage.failures = float("inf")
    with pytest.raises(UnreachableError, match="503 Slow Down"):
        open_source(remote(tmp_path, (2,) * 18, cache_dir=str(tmp_path / "other")))
    assert sum(outage.pauses) < 5


def failing(number: int, words: str) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, words)

    return fail


def test_the_cache_leaves_other_files_alone_and_removes_what_kill_left(tmp_path: Path):
    (tmp_path / "mine.tar").write_bytes(b"x" * 1000)
    (tmp_path / "folder").mkdir()
    old, young = (tmp_path / f"{digit * 16}-x.1.partial" for digit in "ab")
    for path in (old, young):
        path.write_bytes(b"x" * 1000)
    os.utime(old, (0, 0))
    cache = ShardCache(tmp_path, limit=5)
    for key in ("one", "two"):
        cache.made(key, key, lambda path: path.write_bytes(b"1234"))
    left = {path.name for path in tmp_path.glob("[!.]*")}
    assert {name for name in left if not name.endswith("-two")} == {"mine.tar", "folder", young.name}


def test_the_cache_deletes_what_was_used_least_recently(tmp_path: Path):
    cache, made = ShardCache(tmp_path, limit=40), list[str]()

    def use(key: str) -> Path:
        return cache.made(key, key, lambda path: [path.write_bytes(b"1234"), made.append(key)])

    for age, key in enumerate("abcdefghij", 1):  # the limit; the oldest last
        made_at = time.time() - 60 * age
        os.utime(use(key), (made_at, made_at))
    for key in ("j", "h", "f", "d", "b"):
        use(key)
    for key in "uvwxy":
        use(key)
    assert {path.name.partition("-")[2] for path in tmp_path.glob("[!.]*")} == set("bdfhjuvwxy")
    for key in "bdfhj":
        use(key)
    assert made == list("abcdefghijuvwxy")


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = ShardCache(tmp_path, limit=12)
    path = cache.made("key", "name", lambda path: path.write_bytes(b"1234"))
    monkeypatch.setattr("clips.data.remote_files.os.utime", failing(30, "Read-only file system"))
    monkeypatch.setattr(ShardCache, "lock", failing(30, "Read-only file system"))
    assert cache.made("key", "name", lambda path: pytest.fail("made again")) == path


def test_bytes_that_the_disk_does_not_give_are_a_bad_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = opened(clips_world.write_shards(tmp_path / "data", sizes=(2,)))
    monkeypatch.setattr("clips.data.tar_index.os.pread", failing(5, "Input/output error"))
    with pytest.raises(InvalidSampleError, match="Input/output error"):
        source.read(0, rng())


def test_a_copy_that_another_process_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, path = open_source(remote(tmp_path, (2,) * 18)), ShardCache.path

    def path_then_gone(cache: ShardCache, address: str, check: Callable[[Path], None]) -> Path:
        found = path(cache, address, check)
        monkeypatch.setattr(ShardCache, "path", path)
        found.unlink()
        return found

    source.read(7, rng())
    monkeypatch.setattr(ShardCache, "path", path_then_gone)
    assert source.read(7, rng()).image == clips_world.draw_image(7)


def test_each_worker_has_a_core_besides_the_trainings_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for cores, processes, workers in ((1, "", 0), (2, "", 1), (2, "2", 0), (16, "2", 4), (64, "8", 4), (24, "8", 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: range(cores))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert default_workers() == workers


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0.5, 0.625)),  # each process downloads its own part of the batches
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, (0.5, 0.75)),
        ({"LOCAL_RANK": "0", "LOCAL_SIZE": "3"}, (0.5, 0.875)),
        ({"LOCAL_RANK": "0"}, (0.5, 1)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, None),
    ],
)
def test_the_first_process_of_a_node_downloads_for_all_of_them(monkeypatch, environment, share):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told: list[bytes] = []
    stdin = SimpleNamespace(write=told.append, flush=lambda: None, close=lambda: None)
    process = SimpleNamespace(wait=lambda seconds: None)
    monkeypatch.setattr("clips.loader.prefetch.start_python", lambda code: (process, stdin))
    source: Any = SimpleNamespace(is_remote=True, blocks=[4] * 4)
    order = SampleOrder([source.blocks], seed=0, buffer_shards=2, batch_size=8)
    with start_prefetching(order, [source], last=2, rank=4, world_size=8) as reach:
        reach(1)
    assert (pickle.loads(told[0])[-1] if told else None) == share
    assert told[1:] == ([b"1\n", b"end\n"] if share else [])
