"""The protocol of a result: the settings that its numbers depend on besides the model, and their fingerprint.

A protocol is a flat dict of plain values, ``{"data_hash": "…", "prompt": "…", …}``, from two origins:

- the model: resolution, resize, interpolation, cleaning of texts, chat template, and its own library if that is not
  open_clip. These names begin with ``input_``. Models that differ in them are ranked together, as in papers, and the
  report adds a note.
- the harness: data, prompt, decoding, precision, scorer and library versions. Models that differ in any of these are
  never ranked together. Patch releases count: they can change numbers, and a re-evaluation costs less than a wrong
  comparison. So does the code of the scorer: ``scorer_hash`` stands next to its version.

Entries that begin with ``blind_`` describe additional runs without the image, which do not change the score itself:
models that differ in them are ranked together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clips.core.identity import digest, version_of

INPUT_PREFIX = "input_"
BLIND_PREFIX = "blind_"
FULL_SIZE = "full_size"
"""Number of items in the data if only some were used; another entry states the number of used items."""
SCORER_HASH = "scorer_hash"
"""SHA-256 of the code that scores; earlier results state the version of the scorer alone."""
CODE_VERSION = version_of("clips-bench run")
"""Version of the evaluation code; another version recomputes results and cached model outputs."""

Entries = dict[str, str | int | float | bool | None]
Protocol = Mapping[str, str | int | float | bool | None]

PIXELS: Entries = {"input_transparency": "on white"}
"""How `clips.data.images.to_rgb` reads images otherwise than open_clip's and lmms-eval's own code."""


def full_size_entry(used: int, available: int) -> Entries:
    """The entry for data that is used in part (``limit``, ``partial``); empty otherwise."""
    return {FULL_SIZE: available} if available > used else {}


def fingerprint(protocol: Protocol, *, exclude: Sequence[str] = ()) -> str:
    """SHA-256 of a protocol.

    Args:
        protocol: name → value.
        exclude: names to omit, or prefixes that end in ``_`` (``"input_"`` ignores each model's resolution).
    """
    prefixes = tuple(name for name in exclude if name.endswith("_"))
    return digest(
        {name: value for name, value in protocol.items() if name not in exclude and not name.startswith(prefixes)}
    )


def ranking_keys(protocols: Collection[Protocol]) -> list[str]:
    """For each protocol its fingerprint without the model's own entries; results with equal keys are ranked together.

    A data hash identifies the data, so it supersedes the split's name and the full size. A protocol without the hash of
    its scorer is taken for one of the same scorer as the others, unless these have several.
    """
    settings = []
    scorers: dict[str, set[Any]] = {}
    for protocol in protocols:
        redundant = ("split", FULL_SIZE) if protocol.get("data_hash") else ()
        settings.append(fingerprint(protocol, exclude=(INPUT_PREFIX, BLIND_PREFIX, SCORER_HASH, *redundant)))
        scorers.setdefault(settings[-1], set()).update(filter(None, [protocol.get(SCORER_HASH)]))
    return [
        f"{key} {protocol.get(SCORER_HASH) or (next(iter(scorers[key])) if len(scorers[key]) == 1 else '')}"
        for key, protocol in zip(settings, protocols, strict=True)
    ]


def ranked_together(first: Protocol, second: Protocol) -> bool:
    """Whether two results are ranked together (`ranking_keys`)."""
    one, other = ranking_keys((first, second))
    return one == other


def has_known_scorer(protocol: Protocol) -> bool:
    """Whether the code of the scorer is known, not just a library's version."""
    return SCORER_HASH in protocol or not str(protocol.get("scorer", "")).startswith(("lmms-eval ", "pycocoevalcap "))


def describe_differences(first: Protocol, second: Protocol) -> list[str]:
    """One line for each entry that differs; empty if the protocols are equal.

    The hash of a scorer that only one of them states is no difference: it is unknown of the other.
    """
    lines = []
    for name in dict.fromkeys([*first, *second]):
        mine, other = first.get(name, _MISSING), second.get(name, _MISSING)
        title = name.replace("_", " ")
        if mine == other or (name == SCORER_HASH and _MISSING in (mine, other)):
            continue
        settings = _nested_settings(mine), _nested_settings(other)
        if all(settings):
            lines += [f"{title}, {line}" for line in describe_differences(*settings)]
        else:
            lines.append(f"{title}: {_value_text(mine)} against {_value_text(other)}")
    return lines


def ranking_differences(first: Protocol, second: Protocol) -> list[str]:
    """The lines of `describe_differences` on what may keep results apart: not on inputs or runs without the image."""
    one, other = (
        {name: value for name, value in protocol.items() if not name.startswith((INPUT_PREFIX, BLIND_PREFIX))}
        for protocol in (first, second)
    )
    return describe_differences(one, other)


def blind_differences(first: Protocol, second: Protocol) -> list[str]:
    """The lines of `describe_differences` on the runs without the image."""
    one, other = (
        {name.removeprefix(BLIND_PREFIX): value for name, value in protocol.items() if name.startswith(BLIND_PREFIX)}
        for protocol in (first, second)
    )
    return describe_differences(one, other)


def input_number(protocol: Protocol, name: str) -> int | None:
    """A number that the model determines: its ``resolution``, or the ``tokens`` of an image."""
    value = protocol.get(INPUT_PREFIX + name)
    return value if isinstance(value, int) else None


def name_one_sided(lines: Sequence[str]) -> list[str]:
    """Lines of `describe_differences`, with the settings that only one side states by name, in one last line."""
    alone = [line for line in lines if re.search(r': "?not stated"? against | against "?not stated"?$', line)]
    names = ", ".join(line.partition(": ")[0] for line in alone)
    return [*(line for line in lines if line not in alone), *([f"only one of them states {names}"] if names else [])]


def _nested_settings(value: Any) -> dict[str, Any]:
    """The settings of an entry that is a JSON object (prompt, decoding); empty for any other."""
    try:
        settings = json.loads(value) if isinstance(value, str) and value.startswith("{") else None
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


_MISSING: Any = object()
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _value_text(value: Any) -> str:
    if isinstance(value, str) and _SHA256.fullmatch(value):
        value = f"{value[:12]}…"
    if settings := _nested_settings(value):
        return ", ".join(f"{name.replace('_', ' ')} {_value_text(part)}" for name, part in settings.items())
    return "not stated" if value is _MISSING else json.dumps(value, ensure_ascii=False)
