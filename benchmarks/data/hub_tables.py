"""Data sets on disk as Hugging Face's library writes them: parquet files, or what ``save_to_disk`` leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clips.data.unpacking import check_unpacked
from clips.errors import UserError, reason_of


def holds_table(directory: Path) -> bool:
    """Whether a directory holds such a data set."""
    marks = ("dataset_dict.json", "state.json")
    return any((directory / mark).is_file() for mark in marks) or next(directory.rglob("*.parquet"), None) is not None


def has_splits(directory: Path) -> bool:
    """Whether it has splits: ``save_to_disk`` also writes a single table."""
    return (directory / "dataset_dict.json").is_file() or not (directory / "state.json").is_file()


def open_table(directory: Path, split: str) -> Any:
    """The ``datasets.Dataset`` of one split, its pictures left as they were stored (``{"bytes": …, "path": …}``).

    Args:
        directory: what ``save_to_disk`` wrote; or parquet files, ``SPLIT-….parquet`` (also in ``data/``) or
            ``SPLIT/….parquet``.
        split: a data set saved without splits is its ``test``.

    Raises:
        UserError: there is no such split, or a file cannot be read.
    """
    import datasets

    try:
        if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
            table = datasets.load_from_disk(str(directory))
            splits = dict(table) if isinstance(table, dict) else {"test": table}
            table = splits.get(split)
        else:
            splits = _parquet_files(directory)
            check_unpacked(splits.get(split, ()))
            table = datasets.Dataset.from_parquet(splits[split]) if split in splits else None
    except UserError:
        raise
    except Exception as error:  # pyarrow and datasets raise their own
        raise UserError(f"{directory}: not a data set that can be read ({reason_of(error)})") from None
    if table is None:
        raise UserError(f"{directory}: has no split '{split}' (it has: {', '.join(sorted(splits))})")
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _parquet_files(directory: Path) -> dict[str, list[str]]:
    """Split → its files."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("*.parquet")):
        own_folder = path.parent not in {directory, directory / "data"}
        split = path.parent.name if own_folder else path.stem.partition("-")[0]
        found.setdefault(split, []).append(str(path))
    return found


def picture_columns(table: Any) -> list[str]:
    """The columns that hold pictures."""
    import datasets

    return [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]


def picture_bytes(cell: Any, directory: Path, where: str = "") -> bytes:
    """The file behind a cell of such a column.

    Args:
        cell: what stands there.
        directory: the data set's, which a path that stands there may not leave.
        where: the cell's place, for messages; by default the path that stands there.

    Raises:
        UserError: it holds no picture, or names a file that is not there or lies elsewhere.
    """
    from clips.data.sources.base import BadSampleError
    from clips.data.sources.base import picture_bytes as read

    try:
        return read(cell, directory, settings=False)
    except BadSampleError as error:
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        place = ": ".join(each for each in (where, path) if each) or "a row of the table"
        problem = "no such picture" if "missing" in str(error) else str(error)
        below = f"; paths in the table are looked for below the benchmark's 'data', {directory}" if path else ""
        raise UserError(f"{place}: {problem}{below}") from None
