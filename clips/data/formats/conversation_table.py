"""Conversations of a JSON file as an Arrow file in the user's cache, converted once and memory-mapped by all processes.

Parsed JSON of LLaVA's size takes gigabytes in each process; the pages of a mapped file are shared.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clips.core.identity import cache_directory, content_hashes, digest
from clips.data.formats.dataset_format import Conversation, Turn
from clips.data.lazy_images import FileImage
from clips.data.remote_files import ShardCache, UnreachableError
from clips.errors import UserError, error_reason
from clips.safe_text import log_info

_VERSION = 3  # raise it with a change of what the readers make of a row, or of the file's columns
_CACHE_BYTES = 100e9  # far more than the tables of one run, which must not displace each other
_ROWS = 1024  # of each record batch but the last
_UNTRAINED = "n"
_ROLES: dict[str, Literal["user", "assistant", "system"]] = {"u": "user", "a": "assistant", "s": "system"}
_ROLES[_UNTRAINED] = "assistant"


class ConversationTable:
    """Conversations about image files in Arrow's format, each read on access.

    ``arrow`` is the file, by which other processes get the table, too; or its content. The conversations' names begin
    with ``source``; ``root`` is the base directory of the images.
    """

    def __init__(self, arrow: Path | bytes, source: str, root: Path) -> None:
        self.arrow, self.source, self.root = arrow, source, root

    def __reduce__(self) -> Any:
        return ConversationTable, (self.arrow, self.source, self.root)

    @functools.cached_property
    def _batches(self) -> list[Any]:
        import pyarrow as pa

        try:
            file = pa.ipc.open_file(pa.memory_map(str(self.arrow)) if isinstance(self.arrow, Path) else self.arrow)
        except FileNotFoundError:  # in a process that got the table later
            raise UserError(f"{self.arrow!s}: was deleted during the run; the same command makes it again") from None
        return [file.get_batch(number) for number in range(file.num_record_batches)]

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def __getitem__(self, index: int) -> Conversation:
        batch, row = self._batches[index // _ROWS], index % _ROWS
        return self._conversation(*(column[row].as_py() for column in batch.columns[:-1]))

    def __iter__(self) -> Iterator[Conversation]:
        for batch in self._batches:
            for row in zip(*(column.to_pylist() for column in batch.columns[:-1]), strict=True):
                yield self._conversation(*row)

    def _conversation(
        self, name: str, images: list[str], roles: str, contents: list[str], fault: str, unread: str
    ) -> Conversation:
        turns = [Turn(_ROLES[role], content, role != _UNTRAINED) for role, content in zip(roles, contents, strict=True)]
        files = [FileImage(self.root, each) for each in images]
        return Conversation(f"{self.source} {name}", files, turns, fault, tuple(filter(None, unread.split("\0"))))

    def unread(self) -> Counter[str]:
        """The number of conversations with each key that no reader reads."""
        import pyarrow.compute as pc

        counts = Counter[str]()
        for batch in self._batches:
            for entry in pc.value_counts(batch["unread"]).to_pylist():
                counts.update({key: entry["counts"] for key in entry["values"].split("\0") if key})
        return counts

    def sizes(self) -> np.ndarray:
        """The number of images and of characters of each conversation, (N, 2)."""
        import pyarrow.compute as pc

        columns = [(pc.list_value_length(batch["images"]), batch["characters"]) for batch in self._batches]
        return np.concatenate([np.zeros((0, 2), int), *(np.stack([*map(np.asarray, pair)], 1) for pair in columns)])


def convert_or_read(
    file: Path, layout: str, root: Path, read: Callable[[str, Path], Iterator[Conversation]]
) -> ConversationTable | Iterator[Conversation]:
    """The table of a file's conversations, which one process of a machine converts while the others wait.

    ``read`` yields the conversations, from a prefix of their names and the base directory of the images; ``layout``
    names what it makes of a file, for the cache. Raises UserError by ``read``, or if another program writes the file.
    """
    if not file.is_file():  # as a shell's ``<(…)``, which can be read only once
        return read(f"{file.name} ", root)
    content = content_hashes([file])[file]
    cache = ShardCache(cache_directory("conversations"), _CACHE_BYTES)

    def convert(partial: Path) -> None:
        _write(str(partial), read("", Path()))
        if content_hashes([file])[file] != content:
            raise UserError(f"{file}: another program has written it while it was read")

    try:
        path = cache.made(digest([_VERSION, layout, content]), "conversations.arrow", convert, retry=False)
    except (OSError, UnreachableError) as error:
        import pyarrow as pa

        log_info(
            f"{cache.directory}: cannot write here ({error_reason(error)}); each process keeps the text of {file} in "
            "its memory; XDG_CACHE_HOME names another cache directory"
        )
        sink = pa.BufferOutputStream()
        _write(sink, read("", Path()))
        return ConversationTable(sink.getvalue().to_pybytes(), file.name, root)
    return ConversationTable(path, file.name, root)


def _write(sink: Any, conversations: Iterable[Conversation]) -> None:
    import pyarrow as pa

    remaining = iter(conversations)
    batch = _record_batch(itertools.islice(remaining, _ROWS))
    with pa.ipc.new_file(sink, batch.schema) as writer:
        while len(batch):
            writer.write_batch(batch)
            batch = _record_batch(itertools.islice(remaining, _ROWS))


def _record_batch(conversations: Iterable[Conversation]) -> Any:
    import pyarrow as pa

    names, roles, faults, unread, characters = list[str](), list[str](), list[str](), list[str](), list[int]()
    images, image_ends = list[str](), [0]
    contents, content_ends = list[str](), [0]
    for one in conversations:  # of which only the texts are kept, so that the garbage collector has nothing to do
        texts = [turn.content for turn in one.turns]
        names.append(one.name)
        roles.append(
            "".join([turn.role[0] if turn.trained or turn.role != "assistant" else _UNTRAINED for turn in one.turns])
        )
        unread.append("\0".join(one.unread))
        faults.append(one.fault)
        characters.append(sum(map(len, texts)))
        images += [image.name for image in one.images]
        image_ends.append(len(images))
        contents += texts
        content_ends.append(len(contents))
    return pa.record_batch(
        {
            "name": pa.array(names, pa.string()),
            "images": pa.ListArray.from_arrays(pa.array(image_ends, pa.int32()), pa.array(images, pa.string())),
            "roles": pa.array(roles, pa.string()),  # a letter of each
            "contents": pa.ListArray.from_arrays(
                pa.array(content_ends, pa.int32()), pa.array(contents, pa.large_string())
            ),
            "fault": pa.array(faults, pa.string()),
            "unread": pa.array(unread, pa.string()),
            "characters": pa.array(characters, pa.int64()),
        }
    )
