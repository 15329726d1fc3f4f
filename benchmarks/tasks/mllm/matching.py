"""Files of precomputed answers, and their matching to the questions of the data.

A match has a *key* and a *normalization*. The key is the question's index in the data, its image with its text, an id
that no other question has, if each answer's prompt contains the question's text, its id with its text, its id under the
data's column name, its text alone, or the task's whole prompt (ScienceQA's questions differ in their options only).
Normalizations apply in sequence, on both sides, and an answer uses the first one that yields a question. Questions
that become equal are not matched, and of two different answers to one question none is used.

Order is not a key: if many images share the same question, a wrong order looks right. Only questions with the same
whole prompt are told apart by it, if all other answers are in the order of the data.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clips.errors import UserError
from clips.text_files import check_keys, read_json, read_json_lines

ID_COLUMNS = ("question_id", "questionId", "id", "index", "image_id")
"""Columns of lmms-eval's datasets that ``question_id`` of LLaVA's files may denote (TextVQA's is the image)."""
ANSWER_KEYS = ("resps", "filtered_resps", "prediction", "response", "caption", "answer", "text")
"""Keys of the answer, the first one that a file has: with a ``prediction``, ``answer`` is the right one; ``text`` of
LLaVA's questions is the question."""


_KEYS = {
    *(*ANSWER_KEYS, *ID_COLUMNS, "doc_id", "prompt", "image", "category", "target", "doc", "input"),
    # what LLaVA and lmms-eval write as well
    *("answer_id", "model_id", "metadata", "question", "arguments", "doc_hash", "prompt_hash", "target_hash"),
    *("input_media", "token_counts", "filter"),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of an answer file."""

    text: str  # the answer
    number: int | None = None  # index of the question in the data
    id: str | None = None  # id of the question
    id_name: str = "question_id"  # the field that it was read from
    prompt: str | None = None  # the question's text, with the answer instruction
    image: str | None = None  # the image's file name without extension
    category: str | None = None  # the category of the question
    target: str | None = None  # the right answer in lmms-eval's data
    doc: Mapping[str, Any] | None = None  # the question's row in lmms-eval's data
    input: str | None = None  # lmms-eval's full prompt
    # the whole line, in which lmms-eval's samples have their scores
    row: Mapping[str, Any] = field(default_factory=dict)


def read_answers(file: Path, questions: Path | None = None) -> list[Answer]:
    """Read the answers of a file in any of the three formats, as JSON lines or as one JSON list.

    Args:
        questions: LLaVA's file of questions, ``{question_id, image, text, category}``, joined to them by the id.

    Raises:
        UserError: a file is missing, or a line has no answer or no question reference.
    """
    by_id: dict[str, dict[str, Any]] = {}
    if questions is not None:
        names = {"image": "image", "category": "category", "text": "prompt"}  # its text is the answer's prompt
        for _, row in read_json_lines(questions, texts=(), others=("question_id",)):
            by_id[str(row["question_id"])] = {new: row[name] for name, new in names.items() if name in row}
    rows = [*_json_objects(file)]
    if not rows:
        raise UserError(f"{file}: contains no answers")
    keys = _answer_keys([row for _, row in rows])
    for where, row in rows:
        if "prompt" in row and "answer" in keys and row.get("text") not in (None, row.get("answer")):
            raise UserError(f"{where}: expected one answer, got 'answer' and 'text' (LLaVA's, beside 'prompt')")
    return [_answer(by_id.get(str(row.get("question_id")), {}) | row, where, keys) for where, row in rows]


def _answer_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The key of all answers of a file: a line in which it is null, or not there, is not answered by another key."""
    present = [key for key in ANSWER_KEYS if any(key in row for row in rows)]
    of_lmms_eval = [key for key in present if key in ANSWER_KEYS[:2]]
    return of_lmms_eval or present[:1]


def unread_keys(answers: Sequence[Answer], scores: Collection[str]) -> list[str]:
    """Keys of the lines that mean nothing here, as ``"'promt' (8 answers; did you mean 'prompt'?)"``.

    Args:
        answers: the answers.
        scores: names of metrics: lmms-eval's samples have a key for each.
    """
    counts = Counter(key for answer in answers for key in answer.row if key not in _KEYS and key not in scores)
    keys = []
    for key, count in counts.most_common():
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.75)
        keys.append(f"'{key:.80}' ({count:,} answers{f'; did you mean {near[0]!r}?' if near else ''})")
    return keys


def _json_objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of JSON lines or of a JSON list."""
    with file.open("rb") if file.is_file() else contextlib.nullcontext() as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip() if stream else b""
    if start.startswith(b"["):
        rows = read_json(file)
        for number, row in enumerate(rows, 1):
            check_keys(row, f"{file} item {number}", texts=())
            yield f"{file} item {number}", row
        return
    for number, row in read_json_lines(file):
        if number == 1 and not {*ANSWER_KEYS, *ID_COLUMNS, "doc_id", "prompt"} & row.keys():
            raise UserError(f"{file} line 1: expected an object for each answer, got one with the keys {[*row][:3]}")
        yield f"{file} line {number}", row


def _answer(row: Mapping[str, Any], where: str, names: Sequence[str]) -> Answer:
    name = next((key for key in names if row.get(key) is not None), None)
    text = None if name is None else row[name]
    while isinstance(text, list) and len(text) == 1:
        text = text[0]
    others = [key for key in ("prediction", "response", "caption") if row.get(key) not in (None, row.get(str(name)))]
    if name in ANSWER_KEYS[2:5] and others:
        raise UserError(f"{where}: expected one answer, got '{name}' and '{others[0]}'")
    if isinstance(text, list):
        raise UserError(f"{where}: {name}: expected one answer, got {len(text)} (of repeated runs)")
    if not isinstance(text, str):
        got = f"{'none' if name is None else json.dumps(text)}{f' as {names[0]!r}' if names else ''}"
        raise UserError(f"{where}: expected a string as 'answer', 'text' (LLaVA's) or 'resps' (lmms-eval's), got {got}")
    number, image, doc, target = (row.get(key) for key in ("doc_id", "image", "doc", "target"))
    id_name = next((key for key in ID_COLUMNS if row.get(key) is not None), "question_id")
    id = row.get(id_name)
    prompt, full_prompt, category = (
        value if isinstance(value := row.get(key), str) else None for key in ("prompt", "input", "category")
    )
    if number is None and id is None and prompt is None:
        raise UserError(f"{where}: expected 'doc_id', 'question_id' or 'prompt' to identify the question")
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise UserError(f"{where}: doc_id: expected the question's index in the data, got {number!r:.80}")
    return Answer(
        text=text,
        number=number,
        id=None if id is None else str(id),
        id_name=id_name,
        prompt=prompt,
        image=Path(image).stem if isinstance(image, str) else None,
        category=category,
        target=None if target is None else str(target),
        doc=doc if isinstance(doc, Mapping) else None,
        input=full_prompt,
        row=row,
    )


_TAILS = (
    "please answer yes or no.",
    "answer the question with yes or no.",
    "answer the question using a single word or phrase.",
    "answer with the option's letter from the given choices directly.",
)
"""Answer instructions at the end of questions (MME's) and of prompts, in lower case."""
_TAIL_LINES = re.compile(r"\(?[A-Z]\)?[.):] |Reference OCR tokens?:")
"""Prefixes of the lines that LLaVA's prompts add below a question (options, TextVQA's OCR)."""
_MISSPELLINGS = {"imange": "image"}
"""Known misspellings in published questions: POPE's until November 2023, which LLaVA's answers contain."""


def _collapse_spaces(text: str) -> str:
    return " ".join(text.split())


def _strip_instructions(text: str) -> str:
    while tail := next((each for each in _TAILS if text.lower().endswith(each)), ""):
        text = text[: -len(tail)].rstrip()
    return text


@dataclass(frozen=True, kw_only=True)
class _Normalization:
    """One normalization step."""

    name: str  # printed with the number of answers that it matched
    text: Callable[[str], str] = str  # of a question's text, whitespace collapsed
    id: Callable[[str], str] = str  # of a question's id
    lines: bool = False  # whether a prompt's last lines may be removed, one by one, if they are no question text


_NORMALIZATIONS = (
    _Normalization(name="unchanged"),
    _Normalization(name="without the answer instruction", text=_strip_instructions, lines=True),
    _Normalization(name="in lower case", text=str.lower),
    _Normalization(
        name="by the id without inner directories or 'v1_'",
        # MME/artwork/images/1.jpg → artwork/1.jpg; v1_7 → 7 (MM-Vet's, which LLaVA's files omit)
        id=lambda id: "/".join([part for part in id.split("/") if part != "images"][-2:]).removeprefix("v1_"),
    ),
    _Normalization(name="with 'an' read as 'a'", text=lambda text: re.sub(r"\ban\b", "a", text)),
    _Normalization(
        name="with known misspellings fixed",
        text=lambda text: re.sub(r"\w+", lambda word: _MISSPELLINGS.get(word[0], word[0]), text),
    ),
)


def normalize_text(text: str) -> str:
    """A text after all normalization steps."""
    text = _collapse_spaces(text)
    for step in _NORMALIZATIONS:
        text = step.text(text)
    return text


@dataclass(frozen=True, kw_only=True)
class _Key:
    """The matching key of a question or answer: exact parts, an id, and the text."""

    exact: Hashable = ()
    id: str = ""
    text: str = ""

    def variants(self, level: int) -> list[Hashable]:
        """The keys after the first ``level`` + 1 normalization steps, that of the full prompt first."""
        steps, name = _NORMALIZATIONS[: level + 1], self.id
        texts, lines = [_collapse_spaces(self.text)], self.text.strip().splitlines()
        if any(step.lines for step in steps):
            while len(lines) > 1 and (
                _collapse_spaces(lines[-1]).lower() in _TAILS or _TAIL_LINES.match(lines[-1].strip())
            ):
                lines.pop()
                texts.append(_collapse_spaces(" ".join(lines)))
        for step in steps:
            name, texts = step.id(name), [step.text(text) for text in texts]
        return [(self.exact, name, text) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Match:
    """Matched answers."""

    answers: Mapping[int, Answer]  # question index → its answer
    key: str  # name of the matching key
    compares_texts: bool  # whether the texts of questions and answers are compared, by the key or in addition to an id
    counts: Mapping[str, int]  # name of a normalization → number of answers that it matched
    unmatched: Sequence[Answer]  # the answers without a question
    num_unanswered: int  # number of questions without an answer
    repeated: int = 0  # number of answers that are equal to another one to the same question; one of them counts
    # index of a question with different answers → the first of them
    contested: Mapping[int, Answer] = field(default_factory=dict)

    def summary(self) -> str:
        """As text: the key, and the number of matches per normalization."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        repeated = f"; {self.repeated:,} answers are given twice" if self.repeated else ""
        if self.contested:
            first = next(iter(self.contested.values()))
            name = repr(_label(first.number if first.id is None else first.id, first.prompt or ""))
            repeated += f"; {len(self.contested):,} questions have different answers, first {name}"
        return f"matched by {self.key}" + (f": {counts}" if counts else "") + repeated


def match(
    answers: Sequence[Answer],
    docs: Sequence[Mapping[str, Any]],
    file: str,
    *,
    partial: bool = False,
    prompts: Sequence[str] = (),
) -> Match:
    """Match each answer to its question.

    Args:
        partial: allow questions without an answer, and if texts are compared also answers without a question (with ids
            alone, an answer without a question indicates ids of other data).
        prompts: the task's prompt for each question, if it is known.

    Raises:
        UserError: no key distinguishes the questions, or too few answers match; the message counts both sides.
    """
    matches: list[Match] = []
    for key in _candidate_keys(answers, docs, prompts):
        each = _assign(key, answers, docs)
        if each is None:
            continue
        if not each.unmatched and not each.num_unanswered:
            return each
        matches.append(each)
    if not matches:
        sizes = f"{len(answers)} answers and {len(docs)} questions"
        ids = [name for name in ID_COLUMNS if len({str(doc[name]) for doc in docs if name in doc}) == len(docs)]
        names = " or ".join(map(repr, ["doc_id", *ids]))
        raise UserError(f"{file}: neither ids nor texts match its {sizes} (expected {names})")
    best = max(matches, key=lambda each: len(each.answers))
    is_partial = bool(best.answers) and (not best.unmatched or best.compares_texts)
    if partial and is_partial:
        return best
    hint = "; --partial true scores the matching ones" if is_partial and not partial else ""
    raise UserError(
        f"{file}: {best.num_unanswered} of {len(docs)} questions have no answer, {len(best.unmatched)} of "
        f"{len(answers)} answers have no question ({best.summary()}){hint}{_nearest(best.unmatched, docs)}"
    )


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A way to match: the keys of the answers and of the questions."""

    name: str
    answers: Sequence[_Key]
    questions: Sequence[_Key]
    texts: bool = False  # whether the keys contain texts
    # whether the key is an id alone, and the question's text must be part of the answer's prompt
    verified: bool = False
    # whether questions of the same key are told apart by the order of the answers, if it is that of the data for all
    # others
    in_order: bool = False


def _candidate_keys(
    answers: Sequence[Answer], docs: Sequence[Mapping[str, Any]], whole: Sequence[str]
) -> Iterator[_Candidate]:
    if all(answer.number is not None for answer in answers):
        numbers = [_Key(exact=n) for n in range(len(docs))]
        yield _Candidate(name="doc_id", answers=[_Key(exact=each.number) for each in answers], questions=numbers)
        return
    has_prompt = all(answer.prompt is not None for answer in answers)
    has_text = has_prompt and all("question" in doc for doc in docs)
    prompts = [(answer.prompt or "").replace("<image>", "") if has_prompt else "" for answer in answers]
    questions = [str(doc["question"]) if has_text else "" for doc in docs]
    if has_text and all(answer.image for answer in answers) and all(doc.get("image_source") for doc in docs):
        theirs = [(answer.image, answer.category) for answer in answers]
        ours = [(Path(doc["image_source"]).stem, doc.get("category")) for doc in docs]
        yield _Candidate(
            name="image and text",
            answers=[_Key(exact=exact, text=text) for exact, text in zip(theirs, prompts, strict=True)],
            questions=[_Key(exact=exact, text=text) for exact, text in zip(ours, questions, strict=True)],
            texts=True,
        )
    for column in ID_COLUMNS if all(answer.id is not None for answer in answers) else ():
        if any(doc.get(column) is None for doc in docs):
            continue
        if has_text:
            yield _Candidate(
                name=column,
                answers=[_Key(id=str(each.id)) for each in answers],
                questions=[_Key(id=str(doc[column])) for doc in docs],
                verified=True,
            )
        elif any(answer.id_name != column for answer in answers) and not _are_sparse(
            [str(doc[column]) for doc in docs]
        ):
            continue  # unrelated ids often have the same range, and nothing else would reveal the mismatch
        yield _Candidate(
            name=f"{column} and text" if has_text else column,
            answers=[_Key(id=str(each.id), text=text) for each, text in zip(answers, prompts, strict=True)],
            questions=[_Key(id=str(doc[column]), text=text) for doc, text in zip(docs, questions, strict=True)],
            texts=has_text,
        )
    asked = [_Key(text=text) for text in prompts]
    if has_text:
        yield _Candidate(name="text", answers=asked, questions=[_Key(text=text) for text in questions], texts=True)
    if has_prompt and whole:
        whole_keys = [_Key(text=text) for text in whole]
        yield _Candidate(name="the whole prompt", answers=asked, questions=whole_keys, texts=True, in_order=True)


def _are_sparse(ids: Sequence[str]) -> bool:
    """Whether ids are so far apart, as GQA's 9 digits, that those of other questions would hardly be among them."""
    numbers = [int(id) for id in ids if id.isdecimal()]
    return len(numbers) < len(ids) or max(numbers) - min(numbers) > _SPARSE * len(numbers)


_SPARSE = 100
_MAX_CONTRADICTED = 0.1  # of the ids whose texts agree; with more, the ids are those of other data
_MIN_ORDERED = 10  # answers in the order of the data that show that the others are


def _assign(key: _Candidate, answers: Sequence[Answer], docs: Sequence[Mapping[str, Any]]) -> Match | None:
    """Match step by step; None if the data's own texts and ids do not distinguish the questions."""
    matched: dict[int, tuple[int, str]] = {}
    contested: dict[int, list[int]] = {}
    repeated: list[int] = []
    unmatched = list(range(len(answers)))
    for level, step in enumerate(_NORMALIZATIONS):
        if not unmatched:
            break
        questions: dict[Hashable, list[int]] = {}
        for number, question in enumerate(key.questions):
            questions.setdefault(question.variants(level)[0], []).append(number)
        if level == 0 and len(questions) < len(key.questions) and not key.in_order:
            return None
        shared: dict[Hashable, list[int]] = {}
        remaining = []
        for index in unmatched:
            name = next((each for each in key.answers[index].variants(level) if each in questions), None)
            if name is None or len(questions[name]) > 1:
                remaining.append(index)
                if name is not None:
                    shared.setdefault(name, []).append(index)
                continue
            (number,) = questions[name]
            if number in matched and answers[matched[number][0]].text == answers[index].text:
                repeated.append(index)
            elif number in matched or number in contested:  # different answers to one question: none is used
                first = [matched.pop(number)[0]] if number in matched else []
                contested.setdefault(number, first).append(index)
            else:
                matched[number] = index, step.name
        if key.in_order:
            ordered = [matched[number][0] for number in sorted(matched)]
            if len(ordered) >= _MIN_ORDERED and ordered == sorted(ordered):
                for name, places in shared.items():
                    numbers = [number for number in questions[name] if number not in matched]
                    if len(numbers) == len(places):
                        in_order = f"{step.name}, by the order of all others"
                        matched |= {n: (place, in_order) for n, place in zip(numbers, places, strict=True)}
                        remaining = [index for index in remaining if index not in places]
        unmatched = remaining
    if key.in_order and not matched:
        return None
    contradicted: set[int] = set()
    if key.verified:
        contradicted = {
            number
            for number, (index, _) in matched.items()
            # a prompt may have a hint before the question and options after it
            if normalize_text(str(docs[number]["question"])) not in normalize_text(answers[index].prompt or "")
        }
        matched = {number: each for number, each in matched.items() if number not in contradicted}
    pairs = {number: answers[matched[number][0]] for number in sorted(matched)}
    used = {index for index, _ in matched.values()} | {*repeated, *itertools.chain(*contested.values())}
    per_name = Counter(name for _, name in matched.values())
    counts = {name: n for step in _NORMALIZATIONS for name, n in per_name.items() if name.startswith(step.name)}
    return Match(
        answers=pairs,
        key=f"{key.name}, with the question in each prompt" if key.verified else key.name,
        compares_texts=key.texts or (key.verified and len(contradicted) <= _MAX_CONTRADICTED * len(matched)),
        counts={
            name: count for step in _NORMALIZATIONS for name, count in counts.items() if name.startswith(step.name)
        },
        unmatched=[answer for index, answer in enumerate(answers) if index not in used],
        num_unanswered=len(key.questions) - len(matched),
        repeated=len(repeated),
        contested={number: answers[indices[0]] for number, indices in contested.items()},
    )


def _nearest(unmatched: Sequence[Answer], docs: Sequence[Mapping[str, Any]]) -> str:
    """The first three answers without a question, each with the most similar question."""
    if not unmatched:
        return ""
    compared = docs[:10_000]
    ids = [next((str(doc[column]) for column in ID_COLUMNS if doc.get(column) is not None), "") for doc in compared]
    labels = [_label(id, doc.get("question", "")) for id, doc in zip(ids, compared, strict=True)]
    shown = []
    for answer in unmatched[:3]:
        label = _label(answer.number if answer.id is None else answer.id, answer.prompt or "")
        near = difflib.get_close_matches(label, labels, n=1, cutoff=0.0)
        shown.append(f"{label!r} (nearest question: {near[0] if near else ''!r})")
    return "; without a question: " + "; ".join(shown)


def _label(name: object, question: object) -> str:
    """An id and the first line of a question, without its answer instruction."""
    line = str(question).strip().partition("\n")[0]
    return f"{name} {_strip_instructions(_collapse_spaces(line))}".strip()[:200]
