"""The glossary of statistical terms: links from the page's text to explanations at its end.

A new term is one entry in ``glossary.yaml``. The page explains only the terms that it uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clips.safe_text import jinja_finalize


@dataclass(frozen=True)
class GlossaryEntry:
    """A term and its meaning.

    Args:
        id: its anchor is ``term-<id>``.
        name: its heading in the glossary.
        pattern: regular expression of its spellings on the page.
        meaning: one or two sentences for readers without a course in statistics.
        linked: whether its occurrences are links; metrics, which occur everywhere, are not.
    """

    id: str
    name: str
    pattern: str
    meaning: str
    linked: bool = True


GLOSSARY: tuple[GlossaryEntry, ...] = tuple(
    GlossaryEntry(**entry) for entry in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
)
_TERMS = re.compile("|".join(f"(?P<term{index}>{entry.pattern})" for index, entry in enumerate(GLOSSARY)))
_LINK = '<a class="term" href="#term-{id}">{text}</a>'


class Glossary:
    """Links terms, and collects the used ones."""

    def __init__(self) -> None:
        self._used: set[GlossaryEntry] = set()

    def link(self, text: str) -> Any:
        """The text as markup, in which the first occurrence of each term is a link to its meaning."""
        from markupsafe import Markup, escape

        clean, parts, seen, end = str(jinja_finalize(text)), [], set(), 0
        for entry, match in _occurrences(clean):
            if entry not in seen and entry.linked:
                parts += [escape(clean[end : match.start()]), _LINK.format(id=entry.id, text=escape(match[0]))]
                end = match.end()
            seen.add(entry)
        self._used |= seen
        return Markup("".join([*parts, escape(clean[end:])]))

    def add_terms(self, text: str) -> None:
        """Mark the terms of a text without links, such as a column header, as used."""
        self._used |= {entry for entry, _ in _occurrences(text)}

    @property
    def used(self) -> list[GlossaryEntry]:
        """The entries to explain: the used terms, and the terms in their explanations."""
        num_known = 0
        while num_known < len(self._used):
            num_known = len(self._used)
            self.add_terms(" ".join(entry.meaning for entry in GLOSSARY if entry in self._used))
        return [entry for entry in GLOSSARY if entry in self._used]


def _occurrences(text: str) -> Iterator[tuple[GlossaryEntry, re.Match[str]]]:
    for match in _TERMS.finditer(text):
        yield GLOSSARY[int((match.lastgroup or "").removeprefix("term"))], match
