"""What the words of statistics on the page mean: linked where they stand, explained at its end.

A further word is one entry in ``glossary.yaml``. The page explains those that it has used and no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clips.sanitize import jinja_finalize


@dataclass(frozen=True)
class GlossaryEntry:
    """A word and what it means.

    Args:
        id: its anchor is ``word-<id>``.
        name: as the glossary heads it.
        pattern: how it is written on the page.
        meaning: a sentence or two for one who has had no course in statistics.
        linked: whether it is a link where it stands; measures, which stand everywhere, are not.
    """

    id: str
    name: str
    pattern: str
    meaning: str
    linked: bool = True


GLOSSARY: tuple[GlossaryEntry, ...] = tuple(
    GlossaryEntry(**entry) for entry in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
)
_ANY = re.compile("|".join(f"(?P<w{place}>{word.pattern})" for place, word in enumerate(GLOSSARY)))


class Glossary:
    """Links words, and remembers which."""

    def __init__(self) -> None:
        self._used: set[GlossaryEntry] = set()

    def link(self, text: str) -> Any:
        """A text as markup, the first of each word in it being a link to its meaning."""
        from markupsafe import Markup, escape

        clean, parts, linked, end = str(jinja_finalize(text)), [], set(), 0
        for word, found in _words(clean):
            if word not in linked and word.linked:
                parts += [escape(clean[end : found.start()]), _LINK.format(id=word.id, text=escape(found[0]))]
                end = found.end()
            linked.add(word)
        self._used |= linked
        return Markup("".join([*parts, escape(clean[end:])]))

    def look_up(self, text: str) -> str:
        """Have the words of a text explained that cannot be links, such as the heads of columns; gives nothing."""
        self._used |= {word for word, _ in _words(text)}
        return ""

    @property
    def used(self) -> list[GlossaryEntry]:
        """What is to be explained: the words that were used, and those that explain them."""
        known = 0
        while known < len(self._used):
            known = len(self._used)
            self.look_up(" ".join(word.meaning for word in GLOSSARY if word in self._used))
        return [word for word in GLOSSARY if word in self._used]


_LINK = '<a class="word" href="#word-{id}">{text}</a>'


def _words(text: str) -> Iterator[tuple[GlossaryEntry, re.Match[str]]]:
    for found in _ANY.finditer(text):
        yield GLOSSARY[int((found.lastgroup or "")[1:])], found
