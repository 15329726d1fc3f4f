"""Known samples in random layouts of tables, shards and lists of captions: the same come back, or their loss is stated.

The writers are those of csv, json, pyarrow and tarfile. What a reader may reject (an encoding without a mark, a damaged
file) it must reject with a UserError; everything else it must read.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips_world import opened
from generators import explore, sizes
from hypothesis import strategies as st

from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage
from clips.errors import UserError

NAMES = [f"{number}.jpg" for number in range(8)]  # each file has its own name as content: sources do not decode
ODD = ["NA", "null", "1.5", "2021-03-04", "true", "nan", "0123", "#1 dog", "-", 'A "big" dog', "it's, a 'dog'"]
MARKS = "abc XYZ,;'\"\\äß日#/:.&{}()€\u2028\x85\u00a0"
CAPTIONS = st.sampled_from(ODD) | st.text(MARKS, max_size=12).map(lambda text: f"A{text}".strip())
ROWS = st.lists(CAPTIONS, min_size=2, max_size=len(NAMES)).map(lambda texts: list(zip(NAMES, texts, strict=False)))
Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A new directory for each layout."""
    numbers = itertools.count()

    def made() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    return iter(made, None)  # type: ignore[arg-type]


def read(path: Path, /, **fields: Any) -> tuple[Pairs, list[str]] | UserError:
    """(image, caption) of the valid samples, and the reasons of the others; the error of a source that is rejected."""
    pairs, reasons = Pairs(), list[str]()
    try:
        source = opened(path, **{"web_caption": "caption", "synthetic_caption": None, **fields})
        for index in range(len(source)):
            try:
                sample = source.read(index, np.random.default_rng(0))
                pairs.append((sample.image.decode(), sample.web))
            except InvalidSampleError as error:
                reasons.append(str(error))
    except UserError as error:
        return error
    return pairs, reasons


def parts_of(data: st.DataObject, rows: list[Any]) -> list[list[Any]]:
    """The rows in one to three parts, of which some may be empty."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=2)))
    return [rows[first:last] for first, last in itertools.pairwise([0, *cuts, len(rows)])]


def read_separated_values(data: st.DataObject, folder: Path, images: Path) -> None:
    rows = data.draw(ROWS)
    delimiter = data.draw(st.sampled_from([",", "\t", ";", "|"]))
    suffix = ".tsv" if delimiter == "\t" else ".csv"
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"]))
    has_header, is_plain = data.draw(st.booleans()), delimiter in "\t|" and data.draw(st.booleans())
    blank = " " if is_plain and delimiter == "|" and data.draw(st.booleans()) else ""  # as Flickr30k's results.csv
    columns = data.draw(st.permutations(["image", "caption", *(["", "n"] if has_header else [])]))
    lines_end = data.draw(st.sampled_from(["\n", "\r\n"]))
    if is_plain:  # without quoting, these would be other cells
        rows = [(name, text.replace(delimiter, "/")) for name, text in rows]
    else:
        broken = data.draw(st.sampled_from([".", "\n", f"\n{delimiter}"]), "line breaks")  # as many cells in each line
        rows = [(name, text.replace(".", broken, 1)) for name, text in rows]
    if not has_header and data.draw(st.booleans(), "a first caption like an image"):
        ending = data.draw(st.sampled_from([" at https://x.org/a", " of 0.jpg"]))
        rows = [(name, text + ending * (not place)) for place, (name, text) in enumerate(rows)]
    rows = [(name, text.strip()) for name, text in rows]
    parts = parts_of(data, rows) if has_header else [rows]
    for number, part in enumerate(parts):
        stream = io.StringIO(newline="")
        lines = [columns] if has_header else []
        for line, (name, text) in enumerate(part):
            cells = {"image": name, "caption": text, "": str(line), "n": "1,5"}
            lines.append([cells[column] for column in columns])
        if is_plain:
            stream.write("".join(f"{delimiter}{blank}".join(cells) + lines_end for cells in lines))
        else:
            quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
            csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=lines_end).writerows(lines)
        content = stream.getvalue().encode(encoding, "replace")
        (folder / f"{number}{suffix}").write_bytes(content)
    path = folder if len(parts) > 1 else folder / f"0{suffix}"
    found = read(path, format="table", image_root=str(images))
    if encoding == "cp1252":
        rows = [(name, text.encode(encoding, "replace").decode(encoding)) for name, text in rows]
    if isinstance(found, UserError):
        is_ascii = all(text.isascii() for _, text in rows)
        assert encoding == "utf-16-le" or (encoding == "cp1252" and not is_ascii), found
        return
    pairs, reasons = found
    assert pairs == rows
    assert not reasons


def read_json_lines(data: st.DataObject, folder: Path, images: Path) -> None:
    rows = data.draw(ROWS)[: data.draw(st.sampled_from([None, None, 1]), "lines")]  # pandas reads one alone
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    lines_end, is_ascii = data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])), data.draw(st.booleans())
    form = data.draw(st.sampled_from(["table", "jsonl"]))
    lines, expected, empty = list[dict[str, Any]](), Pairs(), 0
    for name, text in rows:
        caption = data.draw(st.sampled_from([text, [text], [text, text], {"raw": text}, None]))
        others = [{}, {"n": 1}, {"n": 2.5}, {"n": "x"}, {"n": None}, {"n": {"a": [1]}}]
        others += [{"n": "\ud83d"}] if is_ascii else []  # half an emoji
        row = {"image": name, "caption": caption} | data.draw(st.sampled_from(others))
        if caption is None:
            empty += 1
            if data.draw(st.booleans()) and form == "table":
                del row["caption"]
        else:
            expected.append((name, text))
        lines.append({key: row[key] for key in data.draw(st.permutations(list(row)))})
    text = "".join(json.dumps(line, ensure_ascii=is_ascii) + lines_end for line in lines)
    (folder / "rows.jsonl").write_bytes(text.encode(encoding))
    web = "caption" if form == "table" else "first_sentence"
    found = read(folder / "rows.jsonl", format=form, image_root=str(images), web_caption=web)
    if isinstance(found, UserError):
        assert not expected, found
        return
    pairs, reasons = found
    assert pairs == expected
    assert len(reasons) in ({empty} if form == "table" else {0, empty})  # COCO has images without captions


def read_parquet(data: st.DataObject, folder: Path, images: Path) -> None:
    others: dict[str, Any] = {  # of columns that nobody reads
        "ints": lambda count: pa.array(range(count), pa.int64()),
        "floats": lambda count: pa.array([0.5] * count, pa.float64()),
        "texts": lambda count: pa.array(["x"] * count, pa.string()),
        "nulls": lambda count: pa.nulls(count),
        "lists": lambda count: pa.array([[1]] * count, pa.list_(pa.int64())),
        "structs": lambda count: pa.array([{"a": 1}] * count, pa.struct({"a": pa.int64()})),
    }

    rows = data.draw(ROWS)
    expected, missing = Pairs(), 0
    parts = parts_of(data, rows)
    for number, part in enumerate(parts):
        is_null = data.draw(st.integers(0, 3)) == 0
        texts = None if is_null else [text for _, text in part]
        missing += len(part) if is_null else 0
        expected += [] if is_null else part
        kind = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
        caption = pa.nulls(len(part)) if texts is None else pa.array(texts, kind)
        if texts is not None and data.draw(st.integers(0, 4)) == 0:
            caption = caption.cast(pa.string()).dictionary_encode()
        columns = {"image": pa.array([name for name, _ in part], pa.string()), "caption": caption}
        for name in data.draw(st.lists(st.sampled_from(["n", "m"]), unique=True)):
            columns[name] = others[data.draw(st.sampled_from(sorted(others)))](len(part))
        table = pa.table({name: columns[name] for name in data.draw(st.permutations(list(columns)))})
        size = data.draw(st.integers(1, 4))
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=size)
    (folder / "_SUCCESS").write_bytes(b"")
    fields = {"streaming": True, "cache_dir": str(folder / "cache")} if data.draw(st.booleans()) else {}
    found = read(folder, format="table", image_root=str(images), **fields)
    if isinstance(found, UserError):
        assert not expected, found
        return
    pairs, reasons = found
    assert pairs == expected
    assert len(reasons) == missing


@sizes
def test_tables(folders: Iterator[Path], images: Path, examples: int) -> None:
    readers = st.sampled_from([read_separated_values, read_json_lines, read_parquet])
    explore(lambda data: data.draw(readers)(data, next(folders), images), examples)


KEY = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")


def samples_of(path: Path) -> dict[str, dict[str, bytes]]:
    """The samples of a shard by webdataset's rules (``base_plus_ext``), as tarfile reads its members."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, ignore_zeros=True) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            base = name.rpartition("/")[2]
            if (member.isreg() or member.islnk()) and base[:1] != "." and "__MACOSX" not in name:
                match = KEY.fullmatch(name)
                stream = tar.extractfile(member)
                if match and stream and base.lower() != "readme.md":
                    samples.setdefault(match[1], {})[match[2].lower()] = stream.read()
    return samples


def write_random_shard(data: st.DataObject, path: Path, rows: Pairs, first: int) -> None:
    folder = data.draw(st.sampled_from(["", "./", "train/", "v1.5/", "/data/", "../", "häuser/日本/"]))
    files = list[tuple[str, bytes | str]]()
    for number, (name, text) in enumerate(rows, first):
        kind = data.draw(st.sampled_from(["txt", "TXT", "missing", "txt"]))
        image = (f"{folder}{number:04d}.{data.draw(st.sampled_from(['jpg', 'JPG', 'png']))}", name.encode())
        caption = (f"{folder}{number:04d}.{kind}", text.encode())
        files += [image] if kind == "missing" else list(data.draw(st.permutations([image, caption])))
    if data.draw(st.booleans()):  # the images first
        files.sort(key=lambda file: file[0].endswith(("txt", "TXT")))
    odd = [("README.md", b"x"), (f"{folder}._0000.jpg", b"x"), ("nosuffix", b"x"), (f"{folder}dir.jpg/", "dir")]
    odd += [(f"{folder}link.jpg", "symlink"), ("__MACOSX/0000.jpg", b"x"), (f"{folder}only.json", b"{}")]
    for extra in data.draw(st.lists(st.sampled_from(odd), max_size=3, unique=True)):
        files.insert(data.draw(st.integers(0, len(files))), extra)
    form = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            if form == tarfile.PAX_FORMAT and data.draw(st.booleans()):
                member.mtime = 0.5  # in a header of its own
            if isinstance(content, str):
                member.type = tarfile.DIRTYPE if content == "dir" else tarfile.SYMTYPE
                member.linkname = "0000.jpg"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@sizes
def test_shards(folders: Iterator[Path], examples: int, capsys: pytest.CaptureFixture[str]) -> None:
    def check(data: st.DataObject) -> None:
        folder, rows = next(folders), data.draw(ROWS)
        counts, first = dict[str, Any](), 0
        for number, part in enumerate(parts_of(data, rows)):
            path = folder / f"{number:05d}.tar"
            write_random_shard(data, path, part, first)
            counts[path.name], first = len(samples_of(path)), first + len(part)
        true = dict(counts)
        stale = data.draw(st.sampled_from([None, None, "more", "fewer", "lacks", "float", "text", "negative"]))
        changed = data.draw(st.sampled_from(sorted(counts)))
        new = {"more": true[changed] + 2, "fewer": max(0, true[changed] - 2), "float": float(true[changed])}
        counts[changed] = {**new, "text": "x", "negative": -1}.get(str(stale), true[changed])
        if stale == "lacks":
            del counts[changed]
        if data.draw(st.booleans()):
            (folder / "sizes.json").write_text(json.dumps(counts))
        else:
            stale = None
        capsys.readouterr()
        found = read(folder, web_caption=".txt", cache_dir=str(folder / "cache"))
        expected, invalid = Pairs(), 0
        for path in sorted(folder.glob("*.tar")):
            for files in samples_of(path).values():
                image = next((files[kind] for kind in ("jpg", "png") if kind in files), None)
                text = files.get("txt", b"").decode()
                invalid += image is None or not text
                expected += [(image.decode(), text)] if image is not None and text else []
        if isinstance(found, UserError):
            assert stale in {"text", "negative"} or not expected, found
            return
        pairs, reasons = found
        assert Counter(pairs) == Counter(expected)
        assert len(reasons) == invalid
        said = capsys.readouterr().err
        if counts != true and stale in {"more", "fewer"}:
            assert changed in said
            assert {str(counts[changed]), str(true[changed])} <= set(re.findall(r"\d+", said))

    explore(check, examples)


@sizes
def test_listed_captions(
    folders: Iterator[Path], images: Path, examples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = st.text("abc XYZ,'\"äß日#/:.&", max_size=9).map(lambda text: f"A{text}".strip())

    def check(data: st.DataObject) -> None:
        folder = next(folders)
        several = st.lists(texts, min_size=1, max_size=3)
        truth = dict(zip(NAMES, data.draw(st.lists(several, min_size=2, max_size=6)), strict=False))
        pairs = [(name, text) for name, captions in truth.items() for text in captions]
        form = data.draw(
            st.sampled_from(
                ["coco", "karpathy", "list", "jsonl", "token", "csv", "bar", "numbered", "headless", "wide"]
            )
        )
        content: Any = None
        odd = 0
        if form == "coco":
            ids = data.draw(st.permutations(range(100, 100 + len(truth))))
            pictures = [{"id": number, "file_name": name} for number, name in zip(ids, truth, strict=True)]
            number_of = dict(zip(truth, ids, strict=True))
            notes = [{"image_id": number_of[name], "caption": text} for name, text in pairs]
            content = {"info": {}, "images": pictures, "annotations": notes}
        elif form == "karpathy":
            rows = [
                {"filename": name, "split": "train", "sentences": [{"raw": text, "tokens": []} for text in captions]}
                for name, captions in truth.items()
            ]
            content = {"dataset": "x", "images": rows}
        elif form in {"list", "jsonl"}:
            content = [{"image": name, "caption": texts} for name, texts in truth.items()]
            if data.draw(st.booleans()):
                content = [{"image": name, "caption": text} for name, text in pairs]
        if form == "jsonl":
            written = "".join(json.dumps(row) + "\n" for row in content)
        elif content is not None:
            written = json.dumps(content, ensure_ascii=data.draw(st.booleans()))
        else:
            header = data.draw(st.booleans())
            if form == "token":
                lines = [f"{name}#{number}\t{text}" for number, (name, text) in enumerate(pairs)]
            elif form == "csv":
                stream = io.StringIO()
                csv.writer(stream, lineterminator="\n").writerows(pairs)
                lines = [
                    data.draw(st.sampled_from(["image,caption", "image, caption"])),
                    *stream.getvalue().splitlines(),
                ]
            elif form in {"numbered", "headless", "wide"}:
                # of a csv writer, with a column more or without a header
                pairs = [(name, f"{text}, and") for name, text in pairs]  # each is quoted
                truth = {name: [f"{text}, and" for text in captions] for name, captions in truth.items()}
                extra = {"numbered": lambda place: [place], "headless": lambda place: [], "wide": lambda place: []}[
                    form
                ]
                end = ["x"] if form == "wide" else []
                stream = io.StringIO()
                writer = csv.writer(stream, lineterminator="\n", delimiter=data.draw(st.sampled_from([",", "\t"])))
                heads = {"numbered": ["image_name", "comment_number", "comment"], "wide": ["image", "caption", "n"]}
                writer.writerows([heads[form]] if form in heads else [])
                writer.writerows([name, *extra(place), text, *end] for place, (name, text) in enumerate(pairs))
                lines = stream.getvalue().splitlines()
            else:
                bars = [(name, text.replace("|", "/")) for name, text in pairs]
                lines = ["image_name| comment_number| comment"] if header else []
                lines += [f"{name}| {number}| {text}" for number, (name, text) in enumerate(bars)]
            if form in {"token", "bar"} and data.draw(st.booleans()):
                odd = 1
                line = {"token": "99_x.jpg.1#0\tA dog .", "bar": "99.jpg| 4   A dog ."}[form]
                lines.insert(
                    data.draw(st.integers(int(form == "bar" and header), len(lines))), line
                )  # a header is first
            lines += [""] * data.draw(st.integers(0, 1))
            written = data.draw(st.sampled_from(["\n", "\r\n"])).join(lines)
        encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
        path = folder / {
            **dict.fromkeys(["csv", "numbered", "headless", "wide"], "captions.txt"),
            **{"token": "x.token.txt", "bar": "results.csv", "jsonl": "x.jsonl"},
        }.get(form, "x.json")
        path.write_bytes(written.encode(encoding))
        kind = form if content is not None else "flickr"
        capsys.readouterr()
        source = opened(path, format=kind, image_root=str(images), synthetic_caption=None)
        found = {image.name: sorted(captions) for image, captions in source.samples}
        assert all(isinstance(image, FileImage) for image, _ in source.samples)
        assert found == {name: sorted(captions) for name, captions in truth.items()}
        if odd:
            assert "1 of " in capsys.readouterr().err

    explore(check, examples)
