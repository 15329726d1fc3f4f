"""The index of tar shards: of the same members as by tarfile, read once for all processes, and again after a change."""

from __future__ import annotations

import errno
import importlib
import io
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path

import clips_world
import pytest
from clips_world import opened, rng
from filelock import FileLock

from clips.data import tar_index
from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.webdataset import WebDatasetSource
from clips.data.images import InvalidSampleError
from clips.data.remote_files import ShardCache
from clips.data.sources import SourceConfig, open_source
from clips.data.tar_index import add_member, index_shard, load_index
from clips.errors import UserError

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def by_tarfile(path: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path, "r:", ignore_zeros=True) as tar:
        return {member.name.removeprefix("./"): (member.offset_data, member.size) for member in tar if member.isreg()}


def random_members(draw: random.Random, form: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Regular files of plain names, and now and then one of everything else that a tar of this format can have."""
    found, rarity = [], draw.choice([0, 1])
    for number in range(draw.randrange(1, 12)):
        long = "deep/" * 25 if form == tarfile.USTAR_FORMAT or rarity else ""  # plain in USTAR's header alone
        name = f"{draw.choice(['', './', 'a/', long])}{number:05d}.{draw.choice(['jpg', 'json', 'seg.png'])}"
        member = tarfile.TarInfo(name)
        member.mtime = draw.choice([0, 1_700_000_000])
        if draw.random() < 0.1 * rarity and form != tarfile.USTAR_FORMAT:
            member.name = draw.choice(["ü.jpg", "long" * 80 + ".jpg", "x" * 100, f"{'y' * 99}/z.jpg"]) + str(number)
        if form == tarfile.PAX_FORMAT and draw.random() < 0.5:
            member.mtime = 1_700_000_000.123456 + number  # as webdataset's writer
        if draw.random() < 0.05 * rarity:
            member.uid = 2**21 if form != tarfile.USTAR_FORMAT else 7
        content = draw.randbytes(draw.choice([0, 1, 511, 512, 513, 3000]))
        if draw.random() < 0.05 * rarity:
            member.type, content = draw.choice([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE]), b""
        if draw.random() < 0.05 * rarity:
            member.type = draw.choice([tarfile.AREGTYPE, tarfile.CONTTYPE])
        member.size = len(content)
        found.append((member, content))
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_random_tars_have_the_members_that_tarfile_finds(tmp_path: Path, form: int):
    path, draw, num_plain = tmp_path / "a.tar", random.Random(form), 0
    for _ in range(150):
        parts = []
        for part in range(draw.choice([1, 1, 1, 3])):  # concatenated ones, with zero blocks in between
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
                for member, content in random_members(draw, form):
                    prefix = "./" * member.name.startswith("./")
                    member.name = f"{prefix}{part}{member.name.removeprefix(prefix)}"
                    tar.addfile(member, io.BytesIO(content))
            parts.append(stream.getvalue() + bytes(512 * draw.choice([0, 0, 7])))
        path.write_bytes(b"".join(parts))
        assert list(tar_index.index_tar(path).members.items()) == list(by_tarfile(path).items())
        with path.open("rb") as file:
            num_plain += tar_index.plain_members(file) is not None
    assert 50 < num_plain < 130  # both ways were taken


@pytest.mark.parametrize("seed", range(3))
def test_damaged_headers_are_left_to_tarfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int):
    """Whatever byte is wrong, and wherever the file ends: both ways end in the same members or the same error."""
    clips_world.write_shards(tmp_path, sizes=(3,))
    path, draw = tmp_path / "shard-00000.tar", random.Random(seed)
    whole = path.read_bytes()
    starts = [offset - 512 for offset, _ in by_tarfile(path).values()] + [len(whole) - 512]

    def outcome() -> object:
        try:
            found = tar_index.index_tar(path, allow_cut=True)
            return list(found.members.items()), found.cut
        except UserError as error:
            return str(error)

    for _ in range(150):
        content = bytearray(whole)
        place = draw.choice(starts) + draw.choice([draw.randrange(512), draw.randrange(100, 160)])
        content[place] = draw.choice([content[place] ^ 1, 0, 32, 0x80, 55, 57, 0xFF])
        if draw.random() < 0.5:  # a right checksum over something wrong
            first = max(start for start in starts if start <= place)
            header = content[first : first + 512]
            header[148:156] = b" " * 8
            content[first + 148 : first + 156] = b"%06o\0 " % sum(header)
        path.write_bytes(content[: draw.choice([len(content), place, place + 512])])
        fast = outcome()
        with monkeypatch.context() as patch:
            patch.setattr(tar_index, "plain_members", lambda stream: None)
            assert fast == outcome()


def test_an_index_is_the_same_after_it_was_written(tmp_path: Path):
    content = {"ü/1": {"JPG": b"abc", "json": b"{}"}, "2": {"seg.png": b""}, "3": {"": b"z"}}
    shard = clips_world.write_shard(tmp_path / "a.tar", content)
    index = index_shard(shard)
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index")
    assert [again.key(place) for place in range(len(again))] == ["ü/1", "2", "3"]
    assert [list(again.files(place)) for place in range(3)] == [["jpg", "json"], ["seg.png"], [""]]
    assert [again.files(place) for place in range(3)] == [index.files(place) for place in range(3)]
    offset, size = again.files(0)["jpg"]
    assert shard.read_bytes()[offset : offset + size] == b"abc"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards whose headers this process reads, all of which count as large."""
    names: list[str] = []

    def reading(shard: Path) -> tar_index.ShardIndex:
        names.append(shard.name)
        return index_shard(shard)

    webdataset = importlib.import_module("clips.data.formats.webdataset")  # which would keep the replacement otherwise
    monkeypatch.setattr(webdataset, "_QUICK_BYTES", 0)
    monkeypatch.setattr(tar_index, "index_shard", reading)
    monkeypatch.setattr(tar_index, "_SMALL", 0)
    return names


@pytest.mark.parametrize("sizes", [True, False])
def test_headers_are_read_again_only_after_a_change(tmp_path: Path, built: list[str], sizes: bool, capsys):
    folder, cache = clips_world.write_shards(tmp_path / "here", sizes=(4, 3)), str(tmp_path / "cache")
    if sizes:
        clips_world.write_sizes(folder, (4, 3))

    def images() -> list[bytes]:
        source = opened(folder, cache_dir=cache)
        return [source.read(index, rng()).image for index in range(len(source))]

    for _ in range(2):
        assert images() == [clips_world.draw_image(index) for index in range(7)]
        assert built == ["shard-00000.tar", "shard-00001.tar"]
    clips_world.write_shards(tmp_path / "other", sizes=(5, 4, 3))
    status = (folder / "shard-00000.tar").stat()
    (tmp_path / "other" / "shard-00001.tar").replace(folder / "shard-00000.tar")  # of the same size
    os.utime(folder / "shard-00000.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert images() == [clips_world.draw_image(index) for index in (5, 6, 7, 8, 4, 5, 6)]
    assert built[2:] == ["shard-00000.tar"]
    content = (folder / "shard-00001.tar").read_bytes()
    (folder / "shard-00001.tar").write_bytes(content[: len(content) // 2])
    for _ in range(2):  # also from the cache it is said
        capsys.readouterr()
        source = opened(folder, cache_dir=cache)
        source.read(4, rng())
        assert "shard-00001.tar: truncated or damaged; its first 1 samples are used" in capsys.readouterr().err
    assert built[3:] == ["shard-00001.tar"]
    (folder / "shard-00001.tar").write_bytes(b"no tar")
    with pytest.raises((UserError, InvalidSampleError), match=r"shard-00001\.tar: expected a whole"):
        opened(folder, cache_dir=cache).read(4, rng())


OPEN = """
import sys
from clips.data import sources, tar_index
tar_index._SMALL = tar_index._WORTH_WORKERS = 0
print(len(sources.open_source(sources.SourceConfig(path=sys.argv[1], cache_dir=sys.argv[2]))))
"""


def test_processes_of_a_node_index_many_shards_once(tmp_path: Path, built: list[str]):
    """One starts processes that do it, the others wait; an error is the reader's."""
    folder, cache = clips_world.write_shards(tmp_path / "many", sizes=(2,) * 60), str(tmp_path / "cache")
    (folder / "shard-00007.tar").write_bytes(b"no tar")
    command = [sys.executable, "-c", OPEN, str(folder), cache]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [out.strip() for out, _ in told] == ["118", "118"], told
    assert all("shard-00007.tar: expected a whole" in err for _, err in told)
    assert sum("reading the headers of 60 shards in" in err for _, err in told) == 1
    assert len(opened(folder, cache_dir=cache)) == 118
    assert built == ["shard-00007.tar"]


def test_counted_shards_are_neither_read_nor_held_at_the_next_start(tmp_path: Path, built: list[str], monkeypatch):
    folder, cache = clips_world.write_shards(tmp_path / "here", sizes=(2,) * 60), str(tmp_path / "cache")
    whole = (folder / "shard-00007.tar").read_bytes()
    (folder / "shard-00007.tar").write_bytes(b"")  # tried again at each start: a disk may have failed for a moment
    monkeypatch.setattr(WebDatasetSource, "check_keys", lambda self: None)
    loaded: list[Path] = []
    monkeypatch.setattr(tar_index, "load_index", lambda path: loaded.append(path) or load_index(path))
    source = opened(folder, cache_dir=cache)
    assert (sum(source.blocks), list(source.unreadable)) == (118, [7])
    built.clear()
    loaded.clear()
    source = opened(folder, cache_dir=cache)
    assert (sum(source.blocks), source.tars.index.cache_info().currsize) == (118, 0)
    assert (built, loaded) == (["shard-00007.tar"], [])
    (folder / "shard-00007.tar").write_bytes(whole)
    assert sum(opened(folder, cache_dir=cache).blocks) == 120
    assert built == ["shard-00007.tar"] * 2


def test_small_shards_with_sizes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = clips_world.write_sizes(clips_world.write_shards(tmp_path / "here", sizes=(4, 3)), (4, 3))
    read: list[str] = []
    monkeypatch.setattr(tar_index, "index_shard", lambda path: read.append(path.name) or index_shard(path))
    source = opened(folder, cache_dir=str(tmp_path / "cache"))
    for blocks in (1, None):  # a shuffle buffer, and all
        source.hold(blocks)
    assert [source.read(index, rng()).image for index in range(7)] == [*map(clips_world.draw_image, range(7))]
    assert read == ["shard-00000.tar", "shard-00001.tar"]


def test_links_that_lead_nowhere_are_missing_shards(tmp_path: Path):
    folder = clips_world.write_shards(tmp_path / "here", sizes=(2, 2))
    (folder / "shard-00001.tar").unlink()
    (folder / "shard-00001.tar").symlink_to(".git/annex/objects/missing")
    with pytest.raises(UserError, match=r"shard-00001\.tar: no such file or directory"):
        opened(folder / "shard-{00000..00001}.tar")


@pytest.mark.parametrize("sizes", [True, False])
def test_another_process_opens_shards_by_the_facts_of_one_that_read_them(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch, sizes: bool
):
    folder = clips_world.write_shards(tmp_path / "here", sizes=(4, 3))
    if sizes:
        clips_world.write_sizes(folder, (4, 3))
    config = SourceConfig(path=str(folder), cache_dir=str(tmp_path / "cache"))
    first = open_source(config)
    facts = pickle.loads(pickle.dumps(first.facts))
    listings: list[object] = []
    with monkeypatch.context() as patch:
        for name in ("index_shard", "file_stamp"):
            patch.setattr(tar_index, name, lambda path: pytest.fail(f"{path} was read"))
        patch.setattr("clips.data.formats.webdataset.list_shards", listings.append)
        other = open_source(config, facts)
        assert (other.describe(), other.blocks, other.shards) == (first.describe(), first.blocks, first.shards)
    assert not listings
    assert [other.read(index, rng()) for index in range(7)] == [first.read(index, rng()) for index in range(7)]
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"shard-00000\.tar: no such file on .*, but where the run began"):
        open_source(config, facts)


def test_copies_and_indexes_have_rooms_of_their_own(tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", limit=10_000)
    for number in range(30):
        for name, size in ((f"{number}.tar", 1000), (f"{number}.tar.index", 200)):
            cache.made(f"{number} {name}", name, lambda path, size=size: path.write_bytes(bytes(size)) and None)
            os.utime(cache.target(f"{number} {name}", name), (number, number))
    kept = sorted(path.name[17:] for path in cache.directory.glob("[!.]*"))
    copies, indexes = (f"{number}.tar" for number in range(20, 30)), (f"{number}.tar.index" for number in range(25, 30))
    assert kept == sorted([*copies, *indexes])


def test_a_long_wait_for_another_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("clips.data.remote_files._WAITING", 0.05)
    cache = ShardCache(tmp_path, limit=10)
    with cache.lock("a.tar"):
        thread = threading.Thread(target=lambda: cache.made("a", "a.tar", lambda path: path.write_bytes(b"a") and None))
        held = FileLock(tmp_path / f".{cache.target('a', 'a.tar').name}.lock")
        with held:
            thread.start()
            time.sleep(0.5)
            assert thread.is_alive()
    thread.join()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2  # fewer and fewer
    assert all(f"waiting for another process that makes {tmp_path}/" in line for line in lines)
    assert cache.target("a", "a.tar").read_bytes() == b"a"


@pytest.mark.parametrize("host", ["another-node", socket.gethostname()])
def test_without_flock_the_lock_of_a_dead_process_ends_or_is_named(tmp_path: Path, monkeypatch, capsys, host: str):
    """On a disk of two hosts without ``flock``: what a killed process of either has left."""

    def no_flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_flock)
    monkeypatch.setattr("clips.data.remote_files._WAITING", 0.05)
    cache = ShardCache(tmp_path, limit=10)
    marker = tmp_path / f".{cache.target('a', 'a.tar').name}.lock"
    dead = subprocess.Popen(["true"])
    dead.wait()
    marker.write_text(f"{dead.pid}\n{host}\n")
    os.utime(marker, (0, 0))
    thread = threading.Thread(target=lambda: cache.made("a", "a.tar", lambda path: path.write_bytes(b"a") and None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        if host == "another-node":
            lines, end = "", time.monotonic() + 20
            while f"if its host is dead, remove {marker}" not in lines and time.monotonic() < end:
                time.sleep(0.05)
                lines += capsys.readouterr().err
            assert f"if its host is dead, remove {marker}" in lines
            assert thread.is_alive()
            marker.unlink()
        thread.join(timeout=20)
    assert cache.target("a", "a.tar").read_bytes() == b"a"


def test_a_broken_or_unwritable_cache_is_not_needed(tmp_path: Path, built: list[str]):
    folder, cache = clips_world.write_shards(tmp_path / "here", sizes=(2, 2)), tmp_path / "cache"
    opened(folder, cache_dir=str(cache))
    kept = list(cache.glob("[!.]*.index"))
    assert len(kept) == 2
    for path, content in zip(kept, (b"", b"PK half a file"), strict=True):
        path.write_bytes(content)
    for place in (cache, "/proc/nothing"):
        source = opened(folder, cache_dir=str(place))
        assert [source.read(index, rng()).image for index in (0, 3)] == [clips_world.draw_image(i) for i in (0, 3)]


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOSPC])
@pytest.mark.parametrize("place", ["clips.data.tar_index.ShardIndex.save", "clips.core.durable.replace"])
def test_an_index_that_cannot_be_written_is_used(
    tmp_path: Path, built: list[str], monkeypatch, place: str, number: int
):
    """Before: a readable shard was one that cannot be reached, after up to seven minutes of retries."""
    folder, cache = clips_world.write_shards(tmp_path / "here", sizes=(2, 2)), tmp_path / "cache"
    clips_world.write_sizes(folder, (2, 2))
    source = opened(folder, cache_dir=str(cache))
    source.read(0, rng())

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, failing)
    monkeypatch.setattr("clips.data.remote_files.time.sleep", lambda pause: pytest.fail(f"waited {pause} s"))
    assert source.read(3, rng()).image == clips_world.draw_image(3)
    assert len(source.tars.index(1)) == 2
    assert built == ["shard-00000.tar", "shard-00001.tar"]
    assert [path.name[17:] for path in cache.glob("[!.]*")] == ["shard-00000.tar.index"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def test_one_unreadable_shard_of_many_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(2,) * 60)
    (folder / "shard-00007.tar").write_bytes(b"")
    assert len(opened(folder)) == 118
    assert "shard-00007.tar: expected a" in capsys.readouterr().err
    (folder / "shard-00008.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00008\.tar"):
        opened(folder)


def test_of_a_cut_or_damaged_tar_the_samples_before_are_used(tmp_path: Path, shards: Path, capsys):
    """Before: tarfile ended at a damaged header, and the samples behind were lost without a word."""
    whole, cut, expected = (shards / "shard-00000.tar").read_bytes(), tmp_path / "cut.tar", opened(shards)
    offset, size = tar_index.index_tar(shards / "shard-00000.tar").members["000000004.png"]
    damaged = bytearray(whole)
    damaged[offset - 512 + 148] ^= 1  # of the header's checksum
    after = offset + -(-size // 512) * 512
    for content in (whole[: offset + size // 2], whole[:after], whole[: offset - 200], damaged):
        cut.write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.tar: expected a whole, uncompressed tar; it is broken or truncated"):
            tar_index.index_tar(cut)
        source = opened(cut)
        assert f"{cut}: truncated or damaged; its first {len(source)} samples are used" in capsys.readouterr().err
        assert len(source) in (3, 4)  # the one before the cut may be whole, but who can tell
        assert [source.read(place, rng()) for place in range(3)] == [expected.read(place, rng()) for place in range(3)]


def test_a_wrong_tar_is_named(tmp_path: Path, shards: Path):
    """Before: of two members of one name the last was used; webdataset ends with an error."""
    shard, jpg = (shards / "shard-00000.tar").read_bytes(), clips_world.draw_image(0, kind="jpg")
    twice = clips_world.write_members(tmp_path / "twice.tar", {"0.jpg": jpg, "0.JPG": jpg}).read_bytes()
    for content, message in (
        (b"PK\3\4" + b"\0" * 2000, "expected a whole, uncompressed tar"),
        (shard[:1100], "expected a whole"),
        (b"", "expected a whole"),
        (shard + shard, r"expected different names, got 000000000\.png twice$"),
        (twice, r"expected different names, got 0\.jpg twice$"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.tar: {message}"):
            opened(tmp_path / "a.tar")
    (tmp_path / "folder" / "x.tar").mkdir(parents=True)
    with pytest.raises(UserError, match=r"x.tar: expected an uncompressed tar \(Is a directory\)"):
        opened(tmp_path / "folder")


@pytest.mark.parametrize("place", ["", "d/"])
def test_members_that_are_no_samples_are_not_counted(tmp_path: Path, place: str):
    """The library webdataset 1.0.2 gives 4 samples with an image here, and up to 12 others."""
    clutter = [".DS_Store", "Thumbs.db", "README.md", "sha256sums", "__MACOSX/d/._0.jpg"]
    members = dict.fromkeys(clutter, b"\0\5\26\7")
    for index in range(4):
        for extension, content in clips_world.sample(index).items():
            members[f"{place}._{index}.{extension}"] = b"\0\5\26\7"
            members[f"{place}{index}.{extension.upper()}"] = content
    clips_world.write_members(tmp_path / "0.TAR", members)
    (tmp_path / "._0.tar").write_bytes(b"\0\5\26\7")
    source = opened(tmp_path)
    webs = [source.read(index, rng()).web for index in range(len(source))]
    assert webs == [clips_world.captions(index)["web_caption"] for index in range(4)]


def test_concatenated_tars_have_all_their_samples(tmp_path: Path, shards: Path):
    """Before: the samples of the first one, without a word."""
    tars = [path.read_bytes() for path in sorted(shards.glob("*.tar"))]
    (tmp_path / "all.tar").write_bytes(b"".join(tars))
    one, several = opened(tmp_path / "all.tar"), opened(shards)
    assert [one.read(index, rng()) for index in range(21)] == [several.read(index, rng()) for index in range(21)]
    (tmp_path / "all.tar").write_bytes(tars[0] + b"no tar" * 100)
    with pytest.raises(UserError, match=r"all\.tar: expected a whole, uncompressed tar; .*\(invalid header\)"):
        tar_index.index_tar(tmp_path / "all.tar")


def test_hard_links_are_images(tmp_path: Path):
    """Before: invalid samples without an image, as for webdataset; GNU tar and tarfile extract them."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_member(tar, "./0.png", clips_world.draw_image(0))
        for index in range(3):
            add_member(tar, f"./{index}.json", clips_world.sample(index)["json"])
            member = tarfile.TarInfo(f"./{index}.png")
            member.type, member.linkname = tarfile.LNKTYPE, "./0.png"
            if index:
                tar.addfile(member)
    source = opened(tmp_path)
    assert [source.read(index, rng()).image for index in range(3)] == [clips_world.draw_image(0)] * 3


def test_dots_in_the_name_of_a_sample_are_named(tmp_path: Path):
    files = clips_world.sample(0)
    clips_world.write_members(tmp_path / "a.tar", {"photo.1.png": files["png"], "photo.json": files["json"]})
    reason = r"no \.png, but \.1\.png: a sample's name ends at the first dot$"
    with pytest.raises(InvalidSampleError, match=f"^{reason}"):
        opened(tmp_path).read(0, rng())
    with pytest.raises(UserError, match=rf"a\.tar/photo: {reason}"):
        list(read_dataset(DatasetSpec(path=str(tmp_path)), "captions").records)


def test_benchmarks_read_shards_in_the_order_of_their_numbers(tmp_path: Path):
    """A superscript is a digit for Python's `isdigit`, and no number."""
    for name, text in (("a-9.tar", b"nine"), ("a-10.tar", b"ten"), ("a-\u00b21.tar", b"square")):
        picture = clips_world.draw_image(1)
        clips_world.write_shard(tmp_path / name, {"000000000": {"png": picture, "txt": text}})
    read = read_dataset(DatasetSpec(path=str(tmp_path), format="webdataset"), "captions")
    assert [caption for record in read.records for caption in record.captions] == ["nine", "ten", "square"]


def test_benchmarks_read_whole_shards_and_name_images_as_stored_results_do(tmp_path: Path):
    files = {"png": clips_world.draw_image(1), "txt": b"a dog", "cls": b"3"}
    shard = clips_world.write_shard(tmp_path / "test" / "0.tar", {"a": files, "b": files})
    spec = DatasetSpec(path=str(tmp_path), format="webdataset")
    captioned = read_dataset(spec, "captions").records
    assert [record.images[0].name for record in captioned] == ["test/0.tar/a.png", "test/0.tar/b.png"]
    assert [record.name for record in read_dataset(spec, "classes").records] == ["0.tar/a.png", "0.tar/b.png"]
    shard.write_bytes(shard.read_bytes()[:-10_000])  # the end mark and a part of the last file
    for kind in ("captions", "classes"):
        with pytest.raises(UserError, match=r"test/0\.tar: expected a whole, uncompressed tar"):
            list(read_dataset(spec, kind).records)
