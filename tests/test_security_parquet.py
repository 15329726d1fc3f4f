"""Parquet files of a kilobyte that decompress to gigabytes: rejected in a line and little memory by every reader."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clips.data.formats import DatasetSpec, read_dataset
from clips.data.parquet_limits import check_decompressed_size, iter_record_batches
from clips.data.sources import InvalidSampleError, SourceConfig, open_source
from clips.errors import UserError
from llava_bridge.data import ConversationSourceConfig, read_samples

MB = 1 << 20
REFUSED = r"bomb\.parquet: decompresses to more than \d+ MB, that is 256 MB and 100 times its size"


@pytest.fixture
def allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Arrow's memory, counted from here on; caches are the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(before)


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")
    return path


def repeated(value: Any, kind: Any, rows: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))


def bomb(folder: Path) -> Path:
    """Of each kind of column that is read one which stands for gigabytes."""
    rows = 1200
    text = repeated("x" * 4 * MB, pa.string(), rows)
    picture = pa.StructArray.from_arrays([repeated(b"y" * 4 * MB, pa.binary(), rows), pa.nulls(rows, pa.string())],
                                         ["bytes", "path"])  # fmt: skip
    turn = pa.StructArray.from_arrays([repeated("human", pa.string(), rows), text], ["from", "value"])
    talk = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), turn)
    columns = {"image": picture, "caption": text, "conversations": talk}
    path = write(folder / "bomb.parquet", **columns)
    assert path.stat().st_size < 30_000
    return path


def of_clips(file: Path, **options: Any) -> None:
    names = {"web_caption": "caption", "synthetic_caption": "caption"}
    source = open_source(SourceConfig(path=str(file), cache_dir=str(file.parent), **names, **options))
    source.read(0, np.random.default_rng(0))


READERS = {
    "clips": lambda file: of_clips(file, format="table"),
    "clips, a folder of the hub": lambda file: of_clips(file.parent, format="datasets", split="train"),
    "clips, a part of a split": lambda file: of_clips(file.parent, format="datasets", split="train[:3]"),
    "the bridge": lambda file: list(read_samples(ConversationSourceConfig(path=str(file), format="conversations"), 0)),
    "a benchmark": lambda file: read_dataset(DatasetSpec(path=str(file.parent), split="train"), "classes"),
    "a benchmark's table": lambda file: list(read_dataset(DatasetSpec(path=str(file)), "captions").records),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_kilobyte_that_decompresses_to_gigabytes_is_rejected_in_little_memory(reader, tmp_path, allocated):
    file = bomb(tmp_path / "data")
    before = allocated.max_memory()
    with pytest.raises(UserError, match=REFUSED) as raised:
        READERS[reader](file)
    assert "\n" not in str(raised.value)
    assert allocated.max_memory() - before < 200 * MB
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 300 * MB


def test_a_streamed_row_group_is_a_bad_sample(tmp_path: Path, allocated: Any) -> None:
    file = bomb(tmp_path / "data")
    with pytest.raises(InvalidSampleError, match=REFUSED):
        of_clips(file, format="table", streaming=True)
    assert allocated.max_memory() < 200 * MB + 24 * MB  # what the table itself takes is in it
    assert not list(file.parent.glob("*.arrow"))


def test_one_row_may_not_be_larger_than_a_member_of_a_tar(tmp_path: Path) -> None:
    share = 2 * MB
    row = pa.ListArray.from_arrays(pa.array([0, 1, 151], pa.int32()), repeated("x" * share, pa.string(), 151))
    file = write(tmp_path / "wide.parquet", texts=row)
    padding = pa.array(np.random.default_rng(0).bytes(MB) for _ in range(2))
    padded = write(tmp_path / "padded.parquet", texts=row, noise=padding)
    with pytest.raises(UserError, match=r"wide\.parquet: decompresses to more than"):
        list(iter_record_batches(file.name, str(file), columns=["texts"]))
    with pytest.raises(UserError, match=r"padded\.parquet: a row decompresses to 30. MB, expected at most 256"):
        list(iter_record_batches(padded.name, str(padded), columns=["texts", "noise"]))
    with pytest.raises(UserError, match=r"padded\.parquet: a row decompresses to 30. MB"):
        check_decompressed_size([str(padded)])


@pytest.mark.parametrize("options", [
    {},
    {"data_page_version": "2.0", "row_group_size": 7},
    {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "picture.path": "DELTA_BYTE_ARRAY"}},
    {"store_schema": False},
])  # fmt: skip
def test_rows_are_what_pyarrow_reads(options: dict[str, Any], tmp_path: Path) -> None:
    table = pa.table({
        "text": ["a", None, "bb"] * 7,
        "large": pa.array(["a", None, ""] * 7, pa.large_string()),
        "view": pa.array(["a", None, ""] * 7, pa.string_view()),
        "known": pa.array(["a", None, "b"] * 7).dictionary_encode(),
        "picture": [{"bytes": b"y", "path": "p"}, None, {"bytes": None, "path": None}] * 7,
        "missing_metrics": [[{"path": None}, {"path": None}], None, []] * 7,
        "talk": [[{"from": "human", "value": "v"}], [], None] * 7,
        "pair": pa.array([["a", "b"], ["c", None], None] * 7, pa.list_(pa.string(), 2)),
        "map": pa.array([[("k", "v")], None, []] * 7, pa.map_(pa.string(), pa.string())),
        "many": pa.array([["a"], None, []] * 7, pa.large_list(pa.string())),
        "number": [1, 2.5, None] * 7,
        "time": [datetime.datetime(2024, 1, 1)] * 21,
    })  # fmt: skip
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, **options)
    found = pa.Table.from_batches(list(iter_record_batches("rows", str(path), columns=table.column_names)))
    assert found.to_pylist() == table.to_pylist()
    last = pq.ParquetFile(path).num_row_groups - 1
    found = pa.Table.from_batches(
        list(iter_record_batches("rows", str(path), columns=["talk.list.element.value"], group=last))
    )
    expected = pq.ParquetFile(path).read_row_group(last, columns=["talk.list.element.value"])
    assert found.to_pylist() == expected.to_pylist()


def test_a_file_that_has_passed_is_not_read_again_until_it_changes(tmp_path: Path, allocated: Any, monkeypatch) -> None:
    from clips.data import parquet_limits

    file, read = write(tmp_path / "rows.parquet", text=["a"]), []
    once = parquet_limits.iter_record_batches
    monkeypatch.setattr(
        parquet_limits, "iter_record_batches", lambda *args, **named: read.append(args[0]) or once(*args, **named)
    )
    for _ in range(2):
        check_decompressed_size([str(file)])
        assert read == [str(file)]
    write(file, text=["ab"])
    check_decompressed_size([str(file)])
    assert len(read) == 2
