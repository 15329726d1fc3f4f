"""What the words of statistics on the page mean: linked where they stand, explained at its end.

A further word is one entry in ``WORDS``. The page explains those that it has used and no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clips.visible import shown


@dataclass(frozen=True)
class Word:
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


WORDS: tuple[Word, ...] = (
    Word(
        "interval",
        "95 % interval",
        r"95 % intervals?|[Ii]ntervals?",
        "The range in which the true score is to be expected. Had the benchmark been made twenty times, each time of "
        "other pictures of the same kind, about nineteen of such ranges would hold it.",
    ),
    Word(
        "training-noise",
        "training noise",
        r"training noise|noise of training",
        "What the same training gives more or less with another seed: other first weights, another order of the data. "
        "An interval over pictures does not tell it; several seeds do.",
    ),
    Word(
        "shown",
        "shown, told apart",
        r"difference could be shown|(?:was|were) (?:not )?shown(?: to differ)?|test tells|told apart",
        "Rows are told apart, and a difference is shown, where its corrected p-value is below 0.05. Not shown does not "
        "mean that there is none: it may be too small for so few items.",
    ),
    Word(
        "p",
        "p-value",
        r"p-values?|corrected p\b",
        "How often rows that are in truth alike would differ as much as these do, or more. Corrected: raised because "
        "many were looked at, see Holm.",
    ),
    Word(
        "paired",
        "paired test",
        r"paired tests?",
        "Two models that are evaluated on the same images are compared image by image. The p-value is how often models "
        "that are equally good would differ as much by the luck of the images, and of training where several seeds "
        "tell how large that is.",
    ),
    Word(
        "holm",
        "Holm-corrected",
        r"Holm-corrected|correct(?:ed|ion) for (?:all|many|their)",
        "Of twenty tests between equal rows one shows a difference by luck. Holm's method raises the p-values of all "
        "tests that were made together, so that there is any such false alarm in one table of twenty only.",
    ),
    Word(
        "smallest",
        "smallest difference",
        r"smallest (?:true )?difference|smallest that could be shown",
        "The true difference that a single test of these items would show four times in five. What is smaller may well "
        "be there and not be shown.",
    ),
    Word(
        "chance",
        "chance",
        r"[Cc]hance",
        "What answers give that are made without looking: each possible answer as often as any other. A score is told "
        "from chance where its 95 % interval lies wholly above it, and above what always saying yes, or always naming "
        "the commonest class, gives.",
    ),
    Word(
        "student",
        "Student's t",
        r"Student's t",
        "The distribution of a mean whose spread is estimated from few values. Its intervals are wider than the usual "
        "ones, since a few seeds tell their own spread only roughly.",
    ),
    Word(
        "spearman",
        "Spearman's ρ",
        r"Spearman's (?:ρ|correlation)",
        "How alike two measures order the rows: 1 the same order, −1 the opposite one, 0 no connection.",
    ),
    Word(
        "pearson", "Pearson's r", r"Pearson's r", "How near the points are to a line: 1 or −1 on it, 0 no connection."
    ),
    Word(
        "permutation",
        "permutation test",
        r"permutation tests?",
        "The scores on one measure are dealt out to the rows anew, in all orders or thousands of them; the p-value is "
        "how often the correlation is as strong as it was.",
    ),
    Word(
        "fisher",
        "Fisher's interval",
        r"Fisher's",
        "The 95 % interval of a correlation, computed on a stretched scale so that it does not reach beyond 1 and −1.",
    ),
    Word(
        "pareto",
        "Pareto front",
        r"Pareto front",
        "The rows to which no other is superior: none is as good for less, or better for the same.",
    ),
    Word(
        "recall",
        "R@K, T→I, I→T",
        r"R@\d+",
        "The share of queries with a right answer among the K most similar ones: T→I looks for the picture of a "
        "caption, I→T for a caption of a picture; mean R@1 is the mean of both.",
        linked=False,
    ),
    Word(
        "f1",
        "F1",
        r"\bF1\b",
        "The harmonic mean of two shares: of the answers yes those that are right, and of the questions to be answered "
        "yes those that were.",
        linked=False,
    ),
    Word(
        "cider",
        "CIDEr",
        r"CIDEr",
        "How many words and groups of words a caption shares with people's captions of the picture, rare ones counting "
        "more. It may be above 100.",
        linked=False,
    ),
    Word(
        "auc",
        "AUC",
        r"\bAUC\b",
        "The probability that what is looked for gets a higher value than something else; 50 is chance.",
        linked=False,
    ),
)
_ANY = re.compile("|".join(f"(?P<w{place}>{word.pattern})" for place, word in enumerate(WORDS)))


class Glossary:
    """Links words, and remembers which."""

    def __init__(self) -> None:
        self._used: set[Word] = set()

    def link(self, text: str) -> Any:
        """A text as markup, the first of each word in it being a link to its meaning."""
        from markupsafe import Markup, escape

        clean, parts, linked, end = str(shown(text)), [], set(), 0
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
    def used(self) -> list[Word]:
        """What is to be explained: the words that were used, and those that explain them."""
        known = 0
        while known < len(self._used):
            known = len(self._used)
            self.look_up(" ".join(word.meaning for word in WORDS if word in self._used))
        return [word for word in WORDS if word in self._used]


_LINK = '<a class="word" href="#word-{id}">{text}</a>'


def _words(text: str) -> Iterator[tuple[Word, re.Match[str]]]:
    for found in _ANY.finditer(text):
        yield WORDS[int((found.lastgroup or "")[1:])], found
