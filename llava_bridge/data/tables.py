"""Rows of conversations with pictures: directories of ``datasets``, parquet, JSON lines.

What is said is read at once; pictures stay where they are. Those inside a table are read by row: from a directory of
``datasets`` by memory map, from parquet out of copies of row groups, which a cache keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clips.core.cache import cache_directory
from clips.data.files import ShardCache
from clips.data.unpacking import unpacked
from clips.errors import UserError, suggest
from clips.model.loading import refusing
from llava_bridge.data.files import image_root, named_files, read_json, read_json_lines
from llava_bridge.data.pictures import FilePicture, Picture, PictureColumn, RowPicture
from llava_bridge.data.samples import DataConfig
from llava_bridge.data.turns import PICTURES, TALK

_ROWS_AT_ONCE = 256
KINDS = (".parquet", ".jsonl", ".json")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row: where it is, what is said (in the form that the table has), its pictures."""

    name: str
    talk: Any
    pictures: list[Picture]


def read_rows(config: DataConfig) -> Iterator[Row]:
    """All rows of a data source.

    Raises:
        UserError: a file is missing or broken, of no known kind, or lacks the columns.
    """
    path = Path(config.path)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _saved(config)
        return
    for file in _files(config):
        root = image_root(config, path if path.is_dir() else file.parent)
        if file.suffix == ".parquet":
            yield from _parquet(file, root, config.cache_gb)
        elif file.suffix in KINDS:
            yield from _json(file, root)
        else:
            raise UserError(f"{file}: expected a file that ends in {', '.join(KINDS)}, or a directory of datasets")


def _files(config: DataConfig) -> list[Path]:
    """A directory's files are those that ``datasets`` would read of the split, as of a data set on the hub."""
    path = Path(config.path)
    if not path.is_dir():
        return named_files(config.path)
    import datasets

    with refusing(f"{path}: expected a directory of datasets, or of {', '.join(KINDS)} files"):
        splits = datasets.load_dataset_builder(str(path.resolve())).config.data_files or {}
    if config.split not in splits:
        raise suggest(config.split, splits, f"split of {path}")
    return [Path(file) for file in splits[config.split]]


def _json(file: Path, root: Path) -> Iterator[Row]:
    rows = read_json_lines(file) if file.suffix == ".jsonl" else read_json(file)
    if isinstance(rows, dict):
        raise UserError(f"{file}: expected a list of rows, got an object")
    for number, row in enumerate(rows):
        with refusing(f"{file} row {number}: expected an object whose images are paths"):
            talk, column = _columns(dict(row), f"{file} row {number}")
            pictures: list[Picture] = [FilePicture(root, _path(one)) for one in _as_list(row.get(column))]
        yield Row(f"{file.name} row {number}", row[talk], pictures)


def _parquet(file: Path, root: Path, cache_gb: float) -> Iterator[Row]:
    import pyarrow.parquet

    from clips.data.sources.parquet import ParquetRows

    with refusing(f"{file}: cannot be read as parquet"):
        reader = pyarrow.parquet.ParquetFile(file)
        names = reader.schema_arrow.names
    talk, column = _columns(names, str(file))
    wanted, kept = [talk], None
    if column in names:
        cache = ShardCache(cache_directory("rows"), cache_gb * 1e9)
        pictures = ParquetRows([str(file.resolve())], cache).select_columns([column])
        kept = PictureColumn(pictures, column, str(file), root)
        leaves = [leaf.path for leaf in map(reader.schema.column, range(len(reader.schema)))]
        paths = [leaf for leaf in leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")]
        wanted += paths or [column]  # of pictures with paths those tell how many there are: no need to read any
    with refusing(f"{file}: cannot be read as parquet"):
        batches = unpacked(str(file), file, columns=wanted, footer=reader.metadata)
        yield from _of_batches(batches, talk, kept, file.name)


def _saved(config: DataConfig) -> Iterator[Row]:
    import datasets

    path = Path(config.path)
    with refusing(f"{path}: cannot be read as a directory of datasets"):
        rows: Any = datasets.load_from_disk(str(path))
    if isinstance(rows, datasets.DatasetDict):
        if config.split not in rows:
            raise suggest(config.split, rows, f"split of {path}")
        rows = rows[config.split]
    rows = rows.with_format("arrow")  # whose slices are views of the files; pictures stay undecoded
    names = rows.column_names
    talk, column = _columns(names, str(path))
    kept = None
    if column in names:
        kept = PictureColumn(_OneByOne(rows.select_columns([column])), column, str(path), image_root(config, path))
    tables = (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))
    yield from _of_batches((batch for table in tables for batch in table.to_batches()), talk, kept, path.name)


@dataclasses.dataclass(frozen=True)
class _OneByOne:
    """A data set in Arrow's format, by the row as plain objects."""

    rows: Any

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index : index + 1].to_pylist()[0]
        return row


def _of_batches(batches: Iterable[Any], talk: str, kept: PictureColumn | None, name: str) -> Iterator[Row]:
    """The rows in batches of Arrow: paths of pictures as files, all other pictures by their row."""
    number = 0
    for batch in batches:
        said = batch.column(talk).to_pylist()
        paths = [[]] * len(said) if kept is None else _paths_of_rows(batch.column(kept.name))
        for one, found in zip(said, paths, strict=True):
            pictures: list[Picture] = []
            for place, path in enumerate(found):
                assert kept is not None
                pictures.append(RowPicture(kept, number, place) if path is None else FilePicture(kept.root, path))
            yield Row(f"{name} row {number}", one, pictures)
            number += 1


def _paths_of_rows(column: Any) -> list[list[str | None]]:
    """For each picture of each row its path, None if the picture is in the row; pictures themselves are not touched."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return [[] for _ in range(len(column))]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        there = zip(column.is_valid().to_pylist(), _paths(column), strict=True)
        return [[path] if valid else [] for valid, path in there]
    flat = iter(_paths(column.flatten()))
    return [[next(flat) for _ in range(length or 0)] for length in pc.list_value_length(column).to_pylist()]


def _paths(values: Any) -> list[str | None]:
    import pyarrow as pa

    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.to_pylist() if is_text else [None] * len(values)


def _columns(names: Iterable[str], where: str) -> tuple[str, str]:
    """The columns of what is said and of the pictures; the latter may be missing.

    Raises:
        UserError: nothing is said.
    """
    found = list(names)
    talk = next((name for name in TALK if name in found), None)
    if talk is None:
        raise UserError(f"{where}: expected {' or '.join(TALK)}, found {', '.join(map(str, found))}")
    return talk, next((name for name in PICTURES if name in found), PICTURES[0])


def _as_list(found: Any) -> list[Any]:
    return [] if found is None else found if isinstance(found, list) else [found]


def _path(found: Any) -> str:
    path = found.get("path") if isinstance(found, dict) else found
    if not isinstance(path, str):
        raise TypeError(f"expected a path, got {str(found)[:80]}")
    return path
