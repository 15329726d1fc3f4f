"""Matching of precomputed answers to the questions of the data, for files written for other data.

A match has a *key* and a *normalization*. The key is the question's index in the data, its image with its text, its id
with its text, its id under the data's column name, or its text alone. Order is not a key: where many images share the
same question, a wrong order looks right. The normalizations are `WAYS`; each adds one simplification to the previous
ones, on both sides. An answer takes the first normalization that yields a question. If two questions become equal by a
simplification, neither is matched, and of two answers to one question none is used.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks.mllm.answers import ID_COLUMNS, Answer
from clips.errors import UserError

TAILS = (
    "please answer yes or no.",
    "answer the question with yes or no.",
    "answer the question using a single word or phrase.",
    "answer with the option's letter from the given choices directly.",
)
"""Answer instructions at the end of questions (MME's) and of prompts, in lower case."""
TAIL_LINES = re.compile(r"\(?[A-Z]\)?[.):] |Reference OCR tokens?:")
"""Beginnings of the lines that LLaVA's prompts add below a question (options, TextVQA's OCR). Any other line may be
part of the question.
"""
MISSPELLINGS = {"imange": "image"}
"""Known misspellings in published questions: POPE's until November 2023, which LLaVA's answers contain."""

_SHOWN, _LOOKED_AT = 3, 10_000
_AMBIGUOUS = -1


def _plain(text: str) -> str:
    return " ".join(text.split())


def _without_tail(text: str) -> str:
    while tail := next((each for each in TAILS if text.lower().endswith(each)), ""):
        text = text[: -len(tail)].rstrip()
    return text


def _without_lines(text: str) -> list[str]:
    """A prompt, and its prefixes without the last line, the last two and so on, while these lines are not part of the
    question.
    """
    texts, lines = [_plain(text)], text.strip().splitlines()
    while len(lines) > 1 and (_plain(lines[-1]).lower() in TAILS or TAIL_LINES.match(lines[-1].strip())):
        lines.pop()
        texts.append(_plain(" ".join(lines)))
    return texts


def _short(name: str) -> str:
    """``MME/artwork/images/1.jpg`` → ``artwork/1.jpg``; ``v1_7`` → ``7`` (MM-Vet's, which LLaVA's files omit)."""
    return "/".join([part for part in name.split("/") if part != "images"][-2:]).removeprefix("v1_")


def _fix_misspellings(text: str) -> str:
    return re.sub(r"\w+", lambda word: MISSPELLINGS.get(word[0], word[0]), text)


def _same(text: str) -> str:
    return text


@dataclass(frozen=True, kw_only=True)
class Way:
    """One normalization step.

    Args:
        name: printed with the number of answers that it matched.
        words: of a question's text, whitespace collapsed.
        id: of a question's id.
        lines: whether a prompt's last lines may be removed, one by one, if they are in ``TAILS`` or ``TAIL_LINES``.
    """

    name: str
    words: Callable[[str], str] = _same
    id: Callable[[str], str] = _same
    lines: bool = False


WAYS = (
    Way(name="as written"),
    Way(name="without what says how to answer", words=_without_tail, lines=True),
    Way(name="in lower case", words=str.lower),
    Way(name="by the id without inner directories or 'v1_'", id=_short),
    Way(name="with 'an' read as 'a'", words=lambda text: re.sub(r"\ban\b", "a", text)),
    Way(name="with known misspellings fixed", words=_fix_misspellings),
)


def loosest(text: str) -> str:
    """A text after all normalization steps for texts."""
    text = _plain(text)
    for way in WAYS:
        text = way.words(text)
    return text


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The matching key of a question or answer: fixed parts, an id, and the text (several, where lines are removed)."""

    fixed: Hashable = ()
    id: str = ""
    words: str = ""

    def keys(self, upto: int) -> list[Hashable]:
        """The keys after the first ``upto`` + 1 normalization steps, the full prompt first."""
        ways, name = WAYS[: upto + 1], self.id
        texts = _without_lines(self.words) if any(way.lines for way in ways) else [_plain(self.words)]
        for way in ways:
            name, texts = way.id(name), [way.words(text) for text in texts]
        return [(self.fixed, name, text) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Match:
    """Matched answers.

    Args:
        places: question index → its answer.
        by: name of the matching key.
        ways: name of a normalization → number of answers that it matched.
        strangers: the answers without a question.
        unanswered: number of questions without an answer.
    """

    places: Mapping[int, Answer]
    by: str
    ways: Mapping[str, int]
    strangers: Sequence[Answer]
    unanswered: int

    def told(self) -> str:
        """As text: the key, and the number of matches per normalization."""
        ways = ", ".join(f"{count:,} {name}" for name, count in self.ways.items())
        return f"told by {self.by}" + (f": {ways}" if ways else "")


def match(answers: Sequence[Answer], docs: Sequence[Mapping[str, Any]], file: str, *, partial: bool = False) -> Match:
    """Match each answer to its question.

    Args:
        answers: the answers of the file.
        docs: the questions of the data.
        file: the file named in errors.
        partial: allow questions without an answer, and if texts are compared also answers without a question (with ids
            alone, an answer without a question indicates ids of other data).

    Raises:
        UserError: no key distinguishes the questions, or too few answers match; the message counts both sides.
    """
    found: list[Match] = []
    for by, asked, of_docs in _candidate_keys(answers, docs):
        each = _assign(by, answers, asked, of_docs)
        if each is None:
            continue
        if not each.strangers and not each.unanswered:
            return each
        found.append(each)
    if not found:
        told = f"{len(answers)} answers and {len(docs)} questions"
        ids = [name for name in ID_COLUMNS if len({str(doc[name]) for doc in docs if name in doc}) == len(docs)]
        names = " or ".join(map(repr, ["doc_id", *ids]))
        raise UserError(f"{file}: neither ids nor words tell which of its {told} belong together (expected {names})")
    best = max(found, key=lambda each: len(each.places))
    excusable = bool(best.places) and (not best.strangers or best.by.endswith("words"))
    if partial and excusable:
        return best
    hint = "; --partial true scores those that belong together" if excusable and not partial else ""
    raise UserError(
        f"{file}: {best.unanswered} of {len(docs)} questions have no answer, {len(best.strangers)} of {len(answers)} "
        f"answers no question of their own ({best.told()}){hint}{_nearest(best.strangers, docs)}"
    )


def _candidate_keys(
    answers: Sequence[Answer], docs: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[_Asked], list[_Asked]]]:
    """Candidate keys: name, keys of the answers, keys of the questions."""
    if all(answer.number is not None for answer in answers):
        yield "doc_id", [_Asked(fixed=each.number) for each in answers], [_Asked(fixed=n) for n in range(len(docs))]
        return
    words = all(answer.prompt is not None for answer in answers) and all("question" in doc for doc in docs)
    prompts = [(answer.prompt or "").replace("<image>", "") if words else "" for answer in answers]
    questions = [str(doc["question"]) if words else "" for doc in docs]
    if words and all(answer.image for answer in answers) and all(doc.get("image_source") for doc in docs):
        theirs = [(answer.image, answer.category) for answer in answers]
        ours = [(Path(doc["image_source"]).stem, doc.get("category")) for doc in docs]
        yield (
            "image and words",
            [_Asked(fixed=fixed, words=text) for fixed, text in zip(theirs, prompts, strict=True)],
            [_Asked(fixed=fixed, words=text) for fixed, text in zip(ours, questions, strict=True)],
        )
    for column in ID_COLUMNS if all(answer.id is not None for answer in answers) else ():
        if any(doc.get(column) is None for doc in docs):
            continue
        if not words and any(answer.id_name != column for answer in answers):
            continue  # unrelated ids often have the same range, and nothing else would reveal the mismatch
        yield (
            f"{column} and words" if words else column,
            [_Asked(id=str(each.id), words=text) for each, text in zip(answers, prompts, strict=True)],
            [_Asked(id=str(doc[column]), words=text) for doc, text in zip(docs, questions, strict=True)],
        )
    if words:
        yield "words", [_Asked(words=text) for text in prompts], [_Asked(words=text) for text in questions]


def _assign(by: str, answers: Sequence[Answer], asked: Sequence[_Asked], docs: Sequence[_Asked]) -> Match | None:
    """Match step by step; None if the data's own texts and ids do not distinguish the questions."""
    taken: dict[int, tuple[int, str]] = {}
    contested: set[int] = set()
    free = list(range(len(answers)))
    for level, way in enumerate(WAYS):
        if not free:
            break
        places: dict[Hashable, int] = {}
        for place, doc in enumerate(docs):
            key = doc.keys(level)[0]
            places[key] = _AMBIGUOUS if key in places else place
        if level == 0 and len(places) < len(docs):
            return None
        left = []
        for index in free:
            place = next((places[key] for key in asked[index].keys(level) if key in places), _AMBIGUOUS)
            if place == _AMBIGUOUS:
                left.append(index)
            elif (
                place in taken or place in contested
            ):  # by this step or an earlier one: it is ambiguous which one counts
                taken.pop(place, None)
                contested.add(place)
            else:
                taken[place] = index, way.name
        free = left
    used = {index for index, _ in taken.values()}
    counts = Counter(name for _, name in taken.values())
    return Match(
        places={place: answers[taken[place][0]] for place in sorted(taken)},
        by=by,
        ways={way.name: counts[way.name] for way in WAYS if counts[way.name]},
        strangers=[answer for index, answer in enumerate(answers) if index not in used],
        unanswered=len(docs) - len(taken),
    )


def _nearest(strangers: Sequence[Answer], docs: Sequence[Mapping[str, Any]]) -> str:
    """The first few answers without a question, each next to the question that reads most like it."""
    if not strangers:
        return ""
    labels = [_label(_name(doc), doc.get("question", "")) for doc in docs[:_LOOKED_AT]]
    shown = []
    for answer in strangers[:_SHOWN]:
        label = _label(answer.number if answer.id is None else answer.id, answer.prompt or "")
        near = difflib.get_close_matches(label, labels, n=1, cutoff=0.0)
        shown.append(f"{label!r} (nearest question: {near[0] if near else ''!r})")
    return "; without a question: " + "; ".join(shown)


def _label(name: object, words: object) -> str:
    """An id and the first line of a question, without the answer instruction that all questions share."""
    return f"{name} {_without_tail(_plain(str(words).strip().partition(chr(10))[0]))}".strip()[:200]


def _name(doc: Mapping[str, Any]) -> str:
    return next((str(doc[column]) for column in ID_COLUMNS if doc.get(column) is not None), "")
