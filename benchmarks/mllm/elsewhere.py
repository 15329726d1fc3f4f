"""Answers that were made elsewhere, scored as if our model had given them: `clips-bench score`.

`benchmarks.mllm.answers` reads the file, `benchmarks.mllm.matching` finds each answer's question, and what an answer
brings along of its question is compared with the data before anything is scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalogue import find
from benchmarks.config import BenchmarkConfig
from benchmarks.mllm.answers import Answer, read_answers
from benchmarks.mllm.evaluate import data_hash, outcome_of
from benchmarks.mllm.matching import Match, loosest, match
from benchmarks.mllm.tasks import data_root, go_offline, load_task
from benchmarks.output import writable_directory
from benchmarks.protocol import Entries, fingerprint
from benchmarks.results import Result, check_name, refuse_newer, write_result
from clips.artifact import file_hash, say
from clips.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score answers that were made elsewhere, without a model.

    Args:
        task: a benchmark of `clips-bench list` that asks a LLaVA, any task of lmms-eval's, or the path of one's own.
        answers: JSON lines: ours, LLaVA's, or lmms-eval's samples.
        data: a directory in the hub's layout, as for `clips-bench run`.
        results: directory of the result files.
        row: the name of the answers in the table.
        name: the benchmark's column; by default the task's name, or its file's.
        questions: LLaVA's file of the questions (``llava_pope_test.jsonl``), where only it tells the picture of each.
        partial: score what belongs together where questions have no answer, or answers no question; both are counted,
            and the protocol states which questions were answered.
        scale: as for `clips-bench run`.
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
    scale: float | None = None
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
            name=self.name or Path(self.task).name.removesuffix(".yaml"),
            uses=self.task,
            data=self.data,
            scale=self.scale,
            without=self.without,
            judge_model=self.judge_model,
            judge_url=self.judge_url,
            judge_key_env=self.judge_key_env,
        )


def score_answers(config: ScoreConfig) -> None:
    """Match, score and store a result like any other, whose model is the file.

    Raises:
        UserError: an unknown task, a malformed file, questions without an answer, answers without a question, or what
            the file says of its questions contradicts the data.
    """
    benchmark = config.benchmark
    entry = find(config.task)
    if entry.kind != "mllm":
        raise UserError(f"task: '{config.task}' asks no questions (expected a benchmark that needs a LLaVA)")
    if config.scale is not None and "scale" not in entry.takes:
        raise UserError(f"scale: the metrics of '{config.task}' have one of their own")
    refuse_newer(config.results, config.row, benchmark.name)
    answers = read_answers(Path(config.answers), None if config.questions is None else Path(config.questions))
    go_offline()
    from benchmarks.mllm.scoring import Recorded

    task = load_task(entry.task, entry.folder, data_root(config.data), own=entry.own)
    docs = list(task.eval_docs_no_media)
    found = match(answers, docs, config.answers, partial=config.partial)
    refuse_contradictions(found.places, docs, task, config.answers)
    counted = _counted(found, len(docs))
    say(f"{config.answers}: {counted}")
    numbers = list(found.places)
    about: Entries = {"prompt": "made elsewhere", "decoding": "made elsewhere", "input_model": "answers made elsewhere"}
    if len(numbers) < len(docs):
        about["answered"] = hashlib.sha256(str(numbers).encode()).hexdigest()[:16]
    writable_directory(config.results)  # before a judge is asked for what could not be stored
    outcome = outcome_of(
        Recorded({place: found.places[number].text for place, number in enumerate(numbers)}),
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
        model={"path": config.answers, "hash": file_hash(config.answers), "matched": counted},
        metrics=outcome.metrics,
        primary=outcome.primary,
        absent=outcome.absent,
        without_skill=entry.without_skill,
        protocol=outcome.protocol,
        fingerprint=fingerprint(outcome.protocol),
        key=f"answers {file_hash(config.answers)} {data_hash(benchmark)}",
    )
    path = write_result(config.results, result, outcome.items)
    first = [name for name in result.primary if name in result.metrics]
    shown = [result.metrics[name] for name in dict.fromkeys((*first, *result.metrics))]
    values = ", ".join(f"{each.label} {each.value * each.scale:.1f}" for each in shown)
    say(f"{path}: {values or '; '.join(result.absent.values())} ({len(numbers)} questions)")


def _counted(found: Match, questions: int) -> str:
    """How many answers found a question which way, and what is left on either side."""
    left = f"{len(found.strangers):,} answers without a question, {found.unanswered:,} questions without an answer"
    return f"{len(found.places):,} of {questions:,} questions answered ({found.told()}); {left}"


def refuse_contradictions(
    places: Mapping[int, Answer], docs: Sequence[Mapping[str, Any]], task: Any, file: str
) -> None:
    """Compare what lmms-eval's samples say of their questions with the data: other data, or another order, differ.

    Compared are ``target`` with the task's, the texts and numbers of ``doc`` with the row's, and ``input`` with the
    question's words, all without regard to case, articles and the like. ``doc_hash`` tells nothing: lmms-eval 0.7
    writes the hash of ``null`` into every sample.

    Raises:
        UserError: naming how many contradict the data, and the first of them.
    """
    wrong = [(place, said) for place, answer in places.items() if (said := _contradiction(answer, docs[place], task))]
    if wrong:
        place, said = wrong[0]
        raise UserError(
            f"{file}: {len(wrong)} of {len(places)} answers say otherwise of their question than the data, the first "
            f"of question {place}: {said} (expected the data and the order in which they were asked)"
        )


def _contradiction(answer: Answer, doc: Mapping[str, Any], task: Any) -> str:
    """The first thing that differs; empty where nothing does."""
    for what, theirs, ours in _compared(answer, doc, task):
        if loosest(theirs) != loosest(ours):
            return f"{what} {theirs[:80]!r}, in the data {ours[:80]!r}"
    return ""


def _compared(answer: Answer, doc: Mapping[str, Any], task: Any) -> Iterator[tuple[str, str, str]]:
    """(what, in the file, in the data) of all that both sides have."""
    for name, theirs in (answer.doc or {}).items():
        ours = doc.get(name)
        if isinstance(theirs, str | int | float) and isinstance(ours, str | int | float):
            yield f"doc.{name}", str(theirs), str(ours)
    if answer.target is not None and (target := _of_task(task.doc_to_target, doc)) is not None:
        yield "target", answer.target, target
    question = loosest(str(doc.get("question", "")))
    if answer.input is not None and question and question in loosest(_of_task(task.doc_to_text, doc) or ""):
        told = question in loosest(answer.input)  # a prompt for another model has the same question in other words
        yield "input", question if told else answer.input, question


def _of_task(function: Any, doc: Mapping[str, Any]) -> str | None:
    """What a task's function makes of a question; None where it wants the image, which is not looked at here."""
    try:
        return str(function(dict(doc)))
    except Exception:
        return None
