"""Answers that were made elsewhere, scored as if our model had given them: `clips-bench score`.

Three kinds of JSON lines are read, told apart by their fields:

- ours: ``{"doc_id" or "question_id": …, "answer": "…"}``;
- LLaVA's playground: ``{"question_id": …, "prompt": "…", "text": "…"}`` (and ``convert_*`` files without a prompt);
- lmms-eval's samples: ``{"doc_id": …, "resps": [["…"]], …}``, as ``--log_samples`` writes them.

Which answer belongs to which question is told by the first way that fits all of them: the number of the question in the
data, its picture with its words, its id with or without its words, its words alone. Order tells nothing: where the same
words are asked of many pictures, a wrong order looks right. LLaVA's answers to POPE name no picture, and its ids are
its own: its file of questions, which has the pictures, is given as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalogue import find
from benchmarks.config import BenchmarkConfig
from benchmarks.data.caption_sets import read_lines
from benchmarks.mllm.evaluate import data_hash, outcome_of
from benchmarks.mllm.tasks import data_root, go_offline, load_task
from benchmarks.output import writable_directory
from benchmarks.protocol import Entries, fingerprint
from benchmarks.results import Result, check_name, refuse_newer, write_result
from clips.artifact import file_hash, say
from clips.errors import UserError

ID_COLUMNS = ("question_id", "questionId", "id", "index", "image_id")
"""The columns of lmms-eval's data sets that LLaVA's files may mean by ``question_id`` (TextVQA's is the picture)."""

_MMVET = "v1_"  # LLaVA's files for MM-Vet leave this out


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score answers that were made elsewhere, without a model.

    Args:
        task: a benchmark of `clips-bench list` that asks a LLaVA, or any task of lmms-eval's.
        answers: JSON lines: ours, LLaVA's, or lmms-eval's samples.
        data: a directory in the hub's layout, as for `clips-bench run`.
        results: directory of the result files.
        row: the name of the answers in the table.
        name: the benchmark's column; by default the task's name.
        questions: LLaVA's file of the questions (``llava_pope_test.jsonl``), where only it tells the picture of each.
        partial: score the answered questions alone where others have no answer; the protocol states how many.
        without: metrics of lmms-eval's that are not to be computed.
        judge_model: as for `clips-bench run`.
        judge_url: as for `clips-bench run`.
        judge_key_env: as for `clips-bench run`.
    """

    task: str
    answers: str
    data: str
    results: str
    row: str
    name: str | None = None
    questions: str | None = None
    partial: bool = False
    without: tuple[str, ...] = ()
    judge_model: str | None = None
    judge_url: str | None = None
    judge_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        check_name(self.row, "row")

    @property
    def benchmark(self) -> BenchmarkConfig:
        """The benchmark that these answers are to."""
        return BenchmarkConfig(
            name=self.name or self.task,
            uses=self.task,
            data=self.data,
            without=self.without,
            judge_model=self.judge_model,
            judge_url=self.judge_url,
            judge_key_env=self.judge_key_env,
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of a file of answers.

    Args:
        text: the answer.
        number: of the question in the data.
        id: of the question.
        prompt: the question's words, with what was said of how to answer.
        image: the picture's file name without its ending.
        category: the kind of question.
    """

    text: str
    number: int | None = None
    id: str | None = None
    prompt: str | None = None
    image: str | None = None
    category: str | None = None


def score_answers(config: ScoreConfig) -> None:
    """Match, score and store a result like any other, whose model is the file.

    Raises:
        UserError: an unknown task, a malformed file, questions without an answer or answers without a question.
    """
    benchmark = config.benchmark
    entry = find(config.task)
    if entry.kind != "mllm":
        raise UserError(f"task: '{config.task}' asks no questions (expected a benchmark that needs a LLaVA)")
    refuse_newer(config.results, config.row, benchmark.name)
    answers = read_answers(Path(config.answers), None if config.questions is None else Path(config.questions))
    go_offline()
    from benchmarks.mllm.scoring import Recorded

    task = load_task(entry.task, entry.folder, data_root(config.data))
    docs = list(task.eval_docs_no_media)
    found = match(answers, docs, config.answers, partial=config.partial)
    numbers = sorted(found)
    about: Entries = {"prompt": "made elsewhere", "decoding": "made elsewhere", "input_model": "answers made elsewhere"}
    if len(numbers) < len(docs):
        about["answered"] = hashlib.sha256(str(numbers).encode()).hexdigest()[:16]
    writable_directory(config.results)  # before a judge is asked for what could not be stored
    outcome = outcome_of(
        Recorded({place: found[number].text for place, number in enumerate(numbers)}),
        benchmark,
        config.results,
        about,
        only=numbers,
    )
    result = Result(
        row=config.row,
        benchmark=benchmark.name,
        kind=entry.kind,
        status="ok",
        model={"path": config.answers, "hash": file_hash(config.answers)},
        metrics=outcome.metrics,
        primary=outcome.primary,
        absent=outcome.absent,
        without_skill=entry.without_skill,
        protocol=outcome.protocol,
        fingerprint=fingerprint(outcome.protocol),
        key=f"answers {file_hash(config.answers)} {data_hash(benchmark)}",
    )
    path = write_result(config.results, result, outcome.items)
    shown = [metric for name in result.primary if (metric := result.metrics.get(name))]
    values = ", ".join(f"{metric.label} {metric.value * metric.scale:.1f}" for metric in shown)
    say(f"{path}: {values or '; '.join(result.absent.values())} ({len(numbers)} questions)")


def read_answers(file: Path, questions: Path | None = None) -> list[Answer]:
    """The answers of a file in any of the three formats.

    Args:
        file: the answers.
        questions: LLaVA's file of questions, ``{question_id, image, text, category}``, joined to them by the id.

    Raises:
        UserError: a file is missing, or a line has no answer or nothing that says to which question.
    """
    asked = {} if questions is None else dict(_question(row) for _, row in _lines(questions, ("question_id",)))
    answers = [_answer(asked.get(str(row.get("question_id")), {}) | row, f"{file} line {n}") for n, row in _lines(file)]
    if not answers:
        raise UserError(f"{file}: no answers in it")
    return answers


def _lines(file: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    return read_lines(file, texts=(), others=needed)


def _question(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Its id and what it adds to an answer: ``text`` is the prompt here, the answer there."""
    told = {name: row[name] for name in ("image", "category") if name in row}
    return str(row["question_id"]), told | ({"prompt": row["text"]} if "text" in row else {})


def _answer(row: Mapping[str, Any], place: str) -> Answer:
    text = next((row[name] for name in ("answer", "resps", "text") if row.get(name) is not None), None)
    while isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise UserError(f"{place}: expected a text as 'answer' (ours), 'text' (LLaVA's) or 'resps' (lmms-eval's)")
    number, name, prompt, image = (row.get(key) for key in ("doc_id", "question_id", "prompt", "image"))
    if number is None and name is None and not isinstance(prompt, str):
        raise UserError(f"{place}: expected 'doc_id', 'question_id' or 'prompt', to know which question it answers")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise UserError(f"{place}: doc_id: expected the number of the question in the data, got {number!r:.80}")
    return Answer(
        text=text,
        number=number,
        id=None if name is None else str(name),
        prompt=prompt if isinstance(prompt, str) else None,
        image=Path(image).stem if isinstance(image, str) else None,
        category=row["category"] if isinstance(row.get("category"), str) else None,
    )


def match(
    answers: Sequence[Answer], docs: Sequence[Mapping[str, Any]], file: str, *, partial: bool = False
) -> dict[int, Answer]:
    """Number of the question → its answer.

    Args:
        answers: as read.
        docs: the questions of the data.
        file: named in errors.
        partial: questions without an answer are allowed.

    Raises:
        UserError: no way of telling fits; how many stay without a partner by the best one is said.
    """
    best: tuple[int, int, str] | None = None
    for way, keys, asked in _ways(answers, docs):
        places = {key: place for place, key in enumerate(asked)}
        if len(places) < len(docs):
            continue  # it does not tell the questions from each other
        found = [next((places[key] for key in several if key in places), None) for several in keys]
        known = {place for place in found if place is not None}
        strangers, unanswered = len(answers) - len(known), len(docs) - len(known)
        if strangers == 0 and (unanswered == 0 or partial):
            return {place: answer for place, answer in zip(found, answers, strict=True) if place is not None}
        best = min(best or (strangers, unanswered, way), (strangers, unanswered, way))
    if best is None:
        told = f"{len(answers)} answers and {len(docs)} questions"
        raise UserError(f"{file}: neither ids nor words tell which of its {told} belong together (expected 'doc_id')")
    hint = "; --partial true scores the answered ones" if best[0] == 0 else ""
    raise UserError(
        f"{file}: {best[1]} of {len(docs)} questions have no answer, {best[0]} of {len(answers)} answers no question "
        f"of their own (told by {best[2]}){hint}"
    )


Key = tuple[Any, ...]


def _ways(
    answers: Sequence[Answer], docs: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[list[Key]], list[Key]]]:
    """The ways to tell which belong together: its name, the keys that each answer may have, each question's key."""
    if all(answer.number is not None for answer in answers):
        yield "doc_id", [[(answer.number,)] for answer in answers], [(place,) for place in range(len(docs))]
        return
    words = all(answer.prompt is not None for answer in answers) and all("question" in doc for doc in docs)
    prompts = [_prefixes(answer.prompt or "") for answer in answers]
    asked = [_plain(str(doc.get("question", ""))) for doc in docs]
    if words and all(answer.image for answer in answers) and all(doc.get("image_source") for doc in docs):
        named = [[(each.image, each.category, text) for text in texts]
                 for each, texts in zip(answers, prompts, strict=True)]  # fmt: skip
        pictures = [(Path(doc["image_source"]).stem, doc.get("category")) for doc in docs]
        yield "picture and words", named, [(*each, text) for each, text in zip(pictures, asked, strict=True)]
    ids = [[answer.id, f"{_MMVET}{answer.id}"] for answer in answers if answer.id is not None]
    for column in ID_COLUMNS if len(ids) == len(answers) else ():
        if any(doc.get(column) is None for doc in docs):
            continue
        names = [str(doc[column]) for doc in docs]
        if words:
            both = [[(name, text) for name in each for text in texts] for each, texts in zip(ids, prompts, strict=True)]
            yield f"{column} and words", both, list(zip(names, asked, strict=True))
        else:
            yield column, [[(name,) for name in each] for each in ids], [(name,) for name in names]
    if words:
        yield "words", [[(text,) for text in texts] for texts in prompts], [(text,) for text in asked]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _prefixes(prompt: str) -> list[str]:
    """A prompt, and what is left of it when its last lines, which tell how to answer, are taken away one by one."""
    lines = prompt.replace("<image>", "").strip().splitlines()
    return [_plain(" ".join(lines[:count])) for count in range(len(lines), 0, -1)]
