"""What `clips-bench download` recorded of the files that it brought, and whether they still are these files.

``<data>/download_record.json``:
``{"datasets": {"lmms-lab-encoder/POPE": {"revision": COMMIT, "files": {PATH: SHA-256}}}}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.core.artifact import atomic_write, file_hash
from clips.errors import UserError
from clips.jsontext import safe_json_loads

DOWNLOAD_RECORD = "download_record.json"


def read_record(root: Path) -> dict[str, Any]:
    """Hub name → what was fetched of it; empty where nothing was fetched.

    Raises:
        UserError: the record cannot be read.
    """
    try:
        found = safe_json_loads((root / DOWNLOAD_RECORD).read_text(encoding="utf-8"))["datasets"]
        return {str(name): {"revision": str(each["revision"]), "files": dict(each["files"])}
                for name, each in found.items()}  # fmt: skip
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root / DOWNLOAD_RECORD}: not a record of `clips-bench download` ({error})") from None


def write_record(root: Path, datasets: dict[str, Any]) -> None:
    """Write the record whole or not at all."""
    atomic_write(root / DOWNLOAD_RECORD, json.dumps({"datasets": datasets}, indent=1, sort_keys=True) + "\n")


def changed_files(root: Path, name: str, files: dict[str, str]) -> Iterator[Path]:
    """The files of a data set that are missing or are not what was fetched."""
    for file, wanted in sorted(files.items()):
        path = root / name / file
        if not path.is_file() or file_hash(path) != wanted:
            yield path


def check_downloaded(root: Path, dataset: Path) -> None:
    """Refuse a fetched data set of which a file was lost or changed; anything that was not fetched passes.

    Raises:
        UserError: naming the first such file.
    """
    for name, fetched in read_record(root).items():
        if root / name == dataset:
            for path in changed_files(root, name, fetched["files"]):
                what = "is not what was fetched: its hash differs" if path.is_file() else "was fetched and is missing"
                raise UserError(f"{path}: {what} (run `clips-bench download` again)")
