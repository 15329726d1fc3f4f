"""What a number depends on besides the model, in words, and its fingerprint.

A protocol is a flat dict from a name to a plain value, ``{"data_hash": "…", "prompt": "…", …}``. Who decides a
thing says where it belongs:

- the model, by what its directory records: resolution, resize, interpolation, chat template. These entries begin
  with ``input_``. Rows that differ in them are ranked together, as in papers, and the report remarks on it.
- the harness: data, prompt, decoding, precision, the scorer and the versions of what computes it. Rows that differ in
  any of these are never ranked together. Versions count whole, a patch release included: it can change numbers, and
  making results again costs less than a wrong comparison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clips.core.identity import digest, version_of

INPUT_PREFIX = "input_"
FULL_SIZE = "full_size"
"""Items of the data where only a part of them was used; how many were used is another entry."""
CODE_VERSION = version_of("clips-bench run")
"""Version of the numbers that evaluations compute; with another, results and what models gave are made again."""

Entries = dict[str, str | int | float | bool | None]
Protocol = Mapping[str, str | int | float | bool | None]


def full_size_entry(used: int, available: int) -> Entries:
    """The entry on data of which a part is used (``limit``, ``partial``); none where all of it is."""
    return {FULL_SIZE: available} if available > used else {}


def fingerprint(protocol: Protocol, *, across: Sequence[str] = ()) -> str:
    """SHA-256 of a protocol.

    Args:
        protocol: name → value.
        across: names omitted, or prefixes ending in ``_`` (``"input_"``: compare models whatever resolution each of
            them takes).
    """
    kept = {name: value for name, value in protocol.items() if not _left_out(name, across)}
    return digest(kept)


def ranking_key(protocol: Protocol) -> str:
    """What is equal where results are ranked together: the fingerprint without what the model decides, and without
    the split's name and the size of the rest of the data where the hash of the data is stated, which says what the
    data are whatever they are called."""
    return fingerprint(
        protocol, across=(INPUT_PREFIX, "split", FULL_SIZE) if protocol.get("data_hash") else (INPUT_PREFIX,)
    )


def _left_out(name: str, across: Sequence[str]) -> bool:
    return any(name == other or (other.endswith("_") and name.startswith(other)) for other in across)


def describe_differences(first: Protocol, second: Protocol) -> list[str]:
    """In words, what keeps two results from being ranked together; empty where nothing does."""
    lines = []
    for name in dict.fromkeys([*first, *second]):
        mine, other = first.get(name, _MISSING), second.get(name, _MISSING)
        title = name.replace("_", " ")
        if mine == other:
            continue
        parts = _parts(mine), _parts(other)
        if parts[0] and parts[1]:
            lines += [f"{title}, {line}" for line in describe_differences(*parts)]
        else:
            lines.append(f"{title}: {_word(mine)} against {_word(other)}")
    return lines


def _parts(value: Any) -> dict[str, Any]:
    """The settings that an entry lists as JSON (a prompt's, a decoding's); empty where it is something else."""
    try:
        found = json.loads(value) if isinstance(value, str) and value.startswith("{") else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


_MISSING: Any = object()
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _word(value: Any) -> str:
    if isinstance(value, str) and _SHA256.fullmatch(value):
        value = f"{value[:12]}…"
    if parts := _parts(value):
        return ", ".join(f"{name.replace('_', ' ')} {_word(part)}" for name, part in parts.items())
    return "not stated" if value is _MISSING else json.dumps(value, ensure_ascii=False)
