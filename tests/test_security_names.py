"""What data name, an image above all: a file below their folder or at a URL, never another file."""

from __future__ import annotations

import http.server
import tarfile
from collections.abc import Iterator
from pathlib import Path

import clips_world
import numpy as np
import pandas as pd
import pytest
from serving import Quiet, address, serve

from clips.data import lazy_images, open_image
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import ImageColumn, TableImage, image_bytes
from clips.data.sources import SourceConfig, open_source
from clips.data.tar_index import index_tar
from clips.errors import UserError

PICTURE = clips_world.draw_image(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of images and an image outside of it."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for path in ("in/a.png", "in/deep/b.png", "beside.png"):
        (tmp_path / path).write_bytes(PICTURE)
    return tmp_path / "in"


def test_images_in_the_directory_are_read(folder: Path) -> None:
    inside = ["a.png", "./deep/b.png", "deep/../a.png", str(folder / "a.png"), (folder / "a.png").as_uri()]
    assert [image_bytes(name, folder) for name in inside] == [PICTURE] * len(inside)
    assert image_bytes({"bytes": None, "path": str(folder / "a.png")}, folder) == PICTURE


def test_a_folder_behind_a_link_goes_by_both_of_its_names(folder: Path) -> None:
    link, deep = folder.parent / "link", folder.parent / "elsewhere"
    link.symlink_to(folder)
    deep.symlink_to(folder / "deep")
    for name in (link / "a.png", folder / "a.png"):
        assert image_bytes(str(name), link) == PICTURE
    assert image_bytes("a.png", deep / "..") == PICTURE  # what the system takes it for, as it does elsewhere
    with pytest.raises(InvalidSampleError, match="outside"):
        image_bytes(str(folder.parent / "beside.png"), link)


@pytest.mark.parametrize(
    "name",
    ["../beside.png", "deep/../../beside.png", "{root}/beside.png", "file://{root}/beside.png", "file:///etc/passwd"],
)
def test_none_outside_of_it(folder: Path, name: str) -> None:
    wanted = name.format(root=folder.parent)
    for found in (wanted, {"bytes": None, "path": wanted}):
        with pytest.raises(InvalidSampleError, match=r"outside the directory of images \(data source's 'image_root'\)"):
            image_bytes(found, folder)


def test_a_table_runs_no_command(folder: Path) -> None:
    ran = folder / "ran"
    frame = pd.DataFrame({"image": ["a.png", f"pipe:touch {ran}; cat {folder}/a.png"], "text": ["a", "b"]})
    frame.to_csv(folder / "table.csv", index=False)
    source = open_source(
        SourceConfig(
            format="table",
            path=str(folder / "table.csv"),
            image_column="image",
            web_caption="text",
            synthetic_caption=None,
        )
    )
    assert source.read(0, np.random.default_rng()).image == PICTURE
    with pytest.raises(InvalidSampleError, match="a command where"):
        source.read(1, np.random.default_rng())
    assert not ran.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("simplecache::file:///etc/passwd", "memory://a", "sftp://host/a", "zip://a::b.zip"),
        "s3://a::file:///etc/passwd",
    ],
)
def test_urls_of_other_schemes_are_rejected(folder: Path, name: str) -> None:
    with pytest.raises(InvalidSampleError, match="image rejected"):
        image_bytes(name, folder)


class Pages(Quiet):
    """Answers with an image, with a redirection to it, or without end; counts."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PICTURE * (1 if self.path == "/a.png" else 10_000))


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    yield from serve(Pages, Path())


def test_a_table_names_images_by_url(server, folder, monkeypatch):
    assert image_bytes(address(server, "a.png"), folder) == PICTURE
    assert image_bytes(address(server, "moved"), folder) == PICTURE
    with pytest.raises(InvalidSampleError, match="missing image"):
        image_bytes(address(server, "a.png").replace("127.0.0.1", "nowhere.invalid"), folder)
    monkeypatch.setattr(lazy_images, "MAX_BYTES", 2**20)
    with pytest.raises(InvalidSampleError, match="more than 1 MB"):
        image_bytes(address(server, "endless"), folder)


def in_table(folder: Path, cell: object) -> bytes:
    return TableImage(ImageColumn([{"image": cell}], "image", "rows.parquet", folder), 0).read()


def test_a_benchmarks_table_names_only_its_own_files(folder: Path) -> None:
    assert in_table(folder, {"bytes": PICTURE}) == PICTURE
    assert in_table(folder, {"bytes": None, "path": str(folder / "a.png")}) == PICTURE
    with pytest.raises(
        UserError, match=r"beside\.png\): image rejected: a path outside the directory of images; .* are relative to "
    ):
        in_table(folder, {"bytes": None, "path": str(folder.parent / "beside.png")})
    with pytest.raises(UserError, match=r"gone\.png\): missing image"):
        in_table(folder, {"bytes": None, "path": "gone.png"})


def test_members_of_a_tar_name_nothing_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(PICTURE)
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for name, kind, target in (
            ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.png", tarfile.LNKTYPE, "../beside.png"),
            ("device.png", tarfile.CHRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        tar.add(tmp_path / "beside.png", "../beside.png")
    assert list(index_tar(shard).members) == ["../beside.png"]  # its own bytes, wherever its name would lead
    for reference in ("shard.tar/link.png", "shard.tar/../beside.png", "../beside.png", "/etc/passwd", "a\0b"):
        with pytest.raises(UserError, match=r"no such image|expected a path inside"):
            open_image(tmp_path, reference)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.png", "shard.tar"]
