"""Small things that stand for large ones: images, texts, JSON and YAML that would take a machine's memory or days."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageFile

from benchmarks.study.schema import read_study
from clips import cli, encoder
from clips.data import tar_index
from clips.data.images import InvalidImageError, InvalidSampleError, decode_image
from clips.data.sources import SourceConfig, open_source
from clips.errors import UserError
from clips.model import tokenizer
from clips.text_files import safe_json_loads


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header states any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_that_states_a_giant_size_or_is_extremely_long_is_not_decoded() -> None:
    for size in ((30_000, 30_000), (12_000, 12_000), (2**31 - 1, 1)):
        with pytest.raises(InvalidImageError, match="image too large"):
            decode_image(claiming(*size))
    for size in ((1, 100_000), (100_000, 1), (3, 601)):
        with pytest.raises(InvalidImageError, match="too long and narrow"):
            decode_image(encoded(Image.new("RGB", size), "PNG"))
    assert decode_image(encoded(Image.new("RGB", (3, 600)), "PNG")).size == (3, 600)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "SGI", "TGA", "DDS"])
def test_no_other_decoder_is_reached(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (32, 32)), kind)
    Image.open(io.BytesIO(content)).close()  # Pillow knows it
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", started.append)
    with pytest.raises(InvalidImageError, match="undecodable"):
        decode_image(content)
    assert not started


def test_an_image_with_text_chunks_that_decompress_to_gigabytes_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # lmms-eval sets it where it is imported
    whole = encoded(Image.new("RGB", (4, 4)), "PNG")
    text = b"bomb\0\0" + zlib.compress(bytes(80 * 2**20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    with pytest.raises(InvalidImageError):
        decode_image(whole[:33] + chunk + whole[33:])


def test_a_tar_member_larger_than_any_image_is_an_invalid_sample(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (
            ("a.json", b'{"web_caption": "a"}'),
            ("a.png", encoded(Image.new("RGB", (4, 4)), "PNG") + bytes(9000)),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = open_source(SourceConfig(path=str(tmp_path), synthetic_caption=None))
    assert len(source.read(0, np.random.default_rng()).image) > 9000
    monkeypatch.setattr(tar_index, "MAX_MEMBER_BYTES", 9000)
    with pytest.raises(InvalidSampleError, match="unreadable"):
        source.read(0, np.random.default_rng())


def test_a_compressed_tar_is_rejected(tmp_path: Path) -> None:
    for kind in ("gz", "xz"):
        with tarfile.open(tmp_path / f"{kind}.tar", f"w:{kind}") as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("a.json")
            member.size = 2**20
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        with pytest.raises(UserError, match="uncompressed tar"):
            tar_index.index_tar(tmp_path / f"{kind}.tar")


@pytest.mark.parametrize("size", [-512, -1])
def test_a_tar_member_of_negative_size_is_rejected(tmp_path: Path, size: int) -> None:
    """With -512, the next header is this one: it would be read in an endless loop."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")  # as GNU writes what octal digits cannot
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "0.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(UserError, match="negative size"):
        tar_index.index_tar(tmp_path / "0.tar")


def test_a_text_of_a_megabyte_is_cut_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr(tokenizer, "clean_text", lambda text: looked_at.append(len(text)) or text)
    rows = tokenizer.ClipsTokenizer()(["a red car. " * 100_000, "ä" * 2**20, " " * 2**20 + "car", "a car"])
    assert max(looked_at) <= 80 * tokenizer.MAX_CHARS_PER_TOKEN
    assert (rows[2, 1], rows[2, 2]) == (tokenizer.ClipsTokenizer()(["car"])[0, 1], tokenizer.EOS)


def test_cutting_changes_no_tokens() -> None:
    long = "a red car near 3 trees, " * 2000
    assert len(tokenizer.truncate_text(long, 77)) == 77 * tokenizer.MAX_CHARS_PER_TOKEN
    stock = SimpleTokenizer()
    assert (encoder.TruncatingTokenizer(stock)([long, "a car"]) == stock([long, "a car"])).all()
    ours = tokenizer.ClipsTokenizer()
    assert (ours([long]) == ours([long[:3000]])).all()


def test_words_without_end_are_not_remembered() -> None:
    tokenizer.word_ids.cache_clear()
    tokenizer.ClipsTokenizer()(["a" * 3000 + " car"])
    assert tokenizer.word_ids.cache_info().currsize == 1


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, b"\xff", "{", ""])
def test_what_is_no_json_is_one_kind_of_error(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        safe_json_loads(content)


def test_half_characters_become_question_marks() -> None:
    assert safe_json_loads(r'{"a \ud83d b": ["\ude00", "\ud83d\ude00", "ü"]}') == {"a ? b": ["?", "😀", "ü"]}
    assert safe_json_loads(json.dumps("😀")) == "😀"
    assert safe_json_loads("\ufeff[1]".encode()) == [1]


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"), [(BOMB, "aliases expand to more than"), ("a: " + "[" * 1500, "too deeply")]
)
def test_yaml_that_would_fill_the_memory_is_rejected(text, message, tmp_path, capsys, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["clips", "train", "--config", str(path)])
    assert cli.main() == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert message in told
    with pytest.raises(UserError, match=message):
        read_study(path)
