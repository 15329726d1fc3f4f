"""The record of `clips-bench download`, and the check of its files.

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
    """Hub name → its downloaded files; empty if nothing was downloaded.

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
    """Write the record atomically."""
    atomic_write(root / DOWNLOAD_RECORD, json.dumps({"datasets": datasets}, indent=1, sort_keys=True) + "\n")


def changed_files(root: Path, name: str, files: dict[str, str]) -> Iterator[Path]:
    """The files of a dataset that are missing or changed since the download."""
    for file, expected in sorted(files.items()):
        path = root / name / file
        if not path.is_file() or file_hash(path) != expected:
            yield path


def check_downloaded(root: Path, dataset: Path) -> None:
    """Reject a downloaded dataset with a missing or changed file; datasets without a record pass.

    Raises:
        UserError: the message names the first such file.
    """
    for name, entry in read_record(root).items():
        if root / name == dataset:
            for path in changed_files(root, name, entry["files"]):
                problem = "changed since the download (its hash differs)" if path.is_file() else "missing"
                raise UserError(f"{path}: {problem}; run `clips-bench download` again")
