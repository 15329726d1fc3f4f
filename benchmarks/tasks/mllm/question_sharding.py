"""Sharding of questions over processes, and their order: questions about one image are adjacent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance

from clips.parallel.distributed import DistributedContext

_NAMES = ("imageId", "image_id", "img_id", "image_name", "image_path", "image_source")


def local_questions(
    indices: Sequence[int], requests: Sequence[Instance], task_dict: Mapping[str, Any], processes: DistributedContext
) -> list[int]:
    """This process's shard of the request indices.

    Questions about one image are recognized by the undecoded data, which is cheaper than decoding every image twice. A
    wrong guess costs time and changes no answer.

    Args:
        indices: indices of the requests to shard.
        requests: lmms-eval's, with (prompt, settings, visuals, number, task, split) as arguments.
        task_dict: task → split → dataset.
        processes: the processes that share them.
    """
    key_functions: dict[tuple[str, str], Callable[[int], str]] = {}
    groups: dict[tuple[str, str], list[int]] = {}
    for index in indices:
        number, task, split = requests[index].args[-3:]
        if (task, split) not in key_functions:
            key_functions[task, split] = _image_key(task_dict[task][split])
        groups.setdefault((task, key_functions[task, split](number)), []).append(index)
    loads = [0] * processes.count
    mine: list[int] = []
    for group in groups.values():
        least = loads.index(min(loads))
        loads[least] += len(group)
        if least == processes.rank:
            mine += group
    return mine


def _image_key(documents: Any) -> Callable[[int], str]:
    """Question index → a key that is equal for questions about one image."""
    import datasets

    features = getattr(documents, "features", None) or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    names = [name for name in _NAMES if name in features]
    if images:
        raw = documents.select_columns(images)
        for name in images:
            raw = raw.cast_column(name, datasets.Image(decode=False))

        def content_hash(number: int) -> str:
            found = [raw[number][name] or {} for name in images]
            return hashlib.sha256(b"".join(each.get("bytes") or str(each).encode() for each in found)).hexdigest()

        return content_hash
    if names:
        named = documents.select_columns(names[:1])
        return lambda number: str(named[number][names[0]])
    return str
