"""Sharding of questions over processes, and their order: questions about one image are adjacent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance

from clips.parallel.distributed import DistributedContext

_NAMES = ("imageId", "image_id", "img_id", "image_name", "image_path", "image_source")


def local_questions(
    places: Sequence[int], requests: Sequence[Instance], task_dict: Mapping[str, Any], processes: DistributedContext
) -> list[int]:
    """This process's shard of the request indices.

    Questions about one image are recognized by the stored data, since opening every image twice would cost more than it
    saves. A wrong guess costs time and changes no answer.

    Args:
        places: indices of the requests to shard.
        requests: lmms-eval's, with (prompt, settings, visuals, number, task, split) as arguments.
        task_dict: task → split → dataset.
        processes: the processes that share them.
    """
    guesses: dict[tuple[str, str], Callable[[int], str]] = {}
    groups: dict[tuple[str, str], list[int]] = {}
    for place in places:
        number, task, split = requests[place].args[-3:]
        guess = guesses.get((task, split)) or guesses.setdefault((task, split), _guess(task_dict[task][split]))
        groups.setdefault((task, guess(number)), []).append(place)
    loads = [0] * processes.count
    mine: list[int] = []
    for group in groups.values():
        least = loads.index(min(loads))
        loads[least] += len(group)
        if least == processes.rank:
            mine += group
    return mine


def _guess(documents: Any) -> Callable[[int], str]:
    """Number of a question → something that is the same for questions about one image."""
    import datasets

    features = getattr(documents, "features", None) or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    names = [name for name in _NAMES if name in features]
    if images:
        raw = documents.select_columns(images)
        for name in images:
            raw = raw.cast_column(name, datasets.Image(decode=False))

        def of_contents(number: int) -> str:
            found = [raw[number][name] or {} for name in images]
            return hashlib.sha256(b"".join(each.get("bytes") or str(each).encode() for each in found)).hexdigest()

        return of_contents
    if names:
        named = documents.select_columns(names[:1])
        return lambda number: str(named[number][names[0]])
    return str
