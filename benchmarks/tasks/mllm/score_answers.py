"""Scoring of precomputed answers like those of a model: `clips-bench score`.

`benchmarks.tasks.mllm.answers` reads the file, `benchmarks.tasks.mllm.matching` finds each answer's question, and the
fields of an answer that describe its question are checked against the data before scoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from benchmarks.results.protocol import Entries, fingerprint
from benchmarks.results.results import Result, check_name, check_not_newer, write_result
from benchmarks.tasks.mllm.answers import Answer, read_answers
from benchmarks.tasks.mllm.evaluate_task import data_hash, evaluate_task
from benchmarks.tasks.mllm.matching import Match, loosest, match
from benchmarks.tasks.mllm.offline_tasks import data_root, go_offline, load_task
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.core.artifact import file_hash, log_info, writable_directory
from clips.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score precomputed answers, without a model.

    Args:
        task: a benchmark of `clips-bench list` for a LLaVA, any task of lmms-eval, or the path of a custom task.
        answers: JSON lines: this suite's, LLaVA's, or lmms-eval's samples.
        data: a directory in the Hub's structure, as for `clips-bench run`.
        output: directory of the result files.
        model_name: the name of the answers in the table.
        name: the benchmark's column; by default the task's name, or its file's.
        questions: LLaVA's file of the questions (``llava_pope_test.jsonl``), if only it names the image of each.
        partial: score the matching pairs if questions have no answer, or answers no question; both are counted, and the
            protocol states the answered questions.
        scale: as for `clips-bench run`.
        exclude_metrics: lmms-eval's metrics to skip.
        judge_model: as for `clips-bench run`.
        judge_url: as for `clips-bench run`.
        judge_key_env: as for `clips-bench run`.
    """

    task: str
    answers: str
    data: str
    output: str
    model_name: str
    name: str | None = None
    questions: str | None = None
    partial: bool = False
    scale: float | None = None
    exclude_metrics: tuple[str, ...] = ()
    judge_model: str | None = None
    judge_url: str | None = None
    judge_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        check_name(self.model_name, "model_name")

    @property
    def benchmark(self) -> BenchmarkConfig:
        """The benchmark that these answers are to."""
        return BenchmarkConfig(
            name=self.name or Path(self.task).name.removesuffix(".yaml"),
            task=self.task,
            data=self.data,
            scale=self.scale,
            exclude_metrics=self.exclude_metrics,
            judge_model=self.judge_model,
            judge_url=self.judge_url,
            judge_key_env=self.judge_key_env,
        )


def run_score(config: ScoreConfig) -> None:
    """Match, score and store a result like any other, whose model is the file.

    Raises:
        UserError: an unknown task, a malformed file, questions without an answer, answers without a question, or the
            file's questions contradict the data.
    """
    benchmark = config.benchmark
    entry = get_benchmark(config.task)
    if entry.benchmark_type != "mllm":
        raise UserError(f"task: '{config.task}' asks no questions (expected a benchmark that needs a LLaVA)")
    if config.scale is not None and "scale" not in entry.takes:
        raise UserError(f"scale: the metrics of '{config.task}' have one of their own")
    check_not_newer(config.output, config.model_name, benchmark.name)
    answers = read_answers(Path(config.answers), None if config.questions is None else Path(config.questions))
    go_offline()
    from benchmarks.tasks.mllm.lmms_scoring import RecordedAnswersModel

    task = load_task(entry.task, entry.folder, data_root(config.data), own=entry.own)
    docs = list(task.eval_docs_no_media)
    found = match(answers, docs, config.answers, partial=config.partial)
    reject_contradictions(found.places, docs, task, config.answers)
    counted = _counted(found, len(docs))
    log_info(f"{config.answers}: {counted}")
    numbers = list(found.places)
    about: Entries = {"prompt": "made elsewhere", "decoding": "made elsewhere", "input_model": "answers made elsewhere"}
    if len(numbers) < len(docs):
        about["answered"] = hashlib.sha256(str(numbers).encode()).hexdigest()[:16]
    writable_directory(config.output)  # before a judge is called for answers that could not be stored
    outcome = evaluate_task(
        RecordedAnswersModel({place: found.places[number].text for place, number in enumerate(numbers)}),
        benchmark,
        config.output,
        about,
        only=numbers,
    )
    result = Result(
        model_name=config.model_name,
        benchmark=benchmark.name,
        benchmark_type=entry.benchmark_type,
        status="ok",
        model={"path": config.answers, "hash": file_hash(config.answers), "matched": counted},
        metrics=outcome.metrics,
        primary=outcome.primary,
        missing_metrics=outcome.missing_metrics,
        trivial_baseline_note=entry.trivial_baseline_note,
        protocol=outcome.protocol,
        fingerprint=fingerprint(outcome.protocol),
        key=f"answers {file_hash(config.answers)} {data_hash(benchmark)}",
    )
    path = write_result(config.output, result, outcome.items)
    first = [name for name in result.primary if name in result.metrics]
    shown = [result.metrics[name] for name in dict.fromkeys((*first, *result.metrics))]
    values = ", ".join(f"{each.label} {each.value * each.scale:.1f}" for each in shown)
    log_info(f"{path}: {values or '; '.join(result.missing_metrics.values())} ({len(numbers)} questions)")


def _counted(found: Match, questions: int) -> str:
    """Number of answers matched by each normalization, and the unmatched ones on either side."""
    left = f"{len(found.strangers):,} answers without a question, {found.unanswered:,} questions without an answer"
    return f"{len(found.places):,} of {questions:,} questions answered ({found.told()}); {left}"


def reject_contradictions(
    places: Mapping[int, Answer], docs: Sequence[Mapping[str, Any]], task: Any, file: str
) -> None:
    """Check the question fields of lmms-eval's samples against the data; other data, or another order, differ.

    ``target`` is compared with the task's, the strings and numbers of ``doc`` with the row's, and ``input`` with the
    question's text and the task's prompts: it differs if it is the prompt of another question and does not contain this
    one's. Strings are compared without case, articles and punctuation, numbers by value. ``doc_hash`` is useless:
    lmms-eval 0.7 writes the hash of ``null`` into every sample.

    Raises:
        UserError: the message counts the contradictions and names the first.
    """
    given = any(answer.input is not None for answer in places.values())
    prompts = [_prompt(task, doc) for doc in docs] if given else [""] * len(docs)
    all_prompts = frozenset(prompts)
    wrong = []
    for place, answer in places.items():
        for what, theirs, ours in _compared(answer, docs[place], task, prompts[place], all_prompts):
            if not _equal(theirs, ours):
                wrong.append(f"question {place}: {what} {str(theirs)[:80]!r}, in the data {str(ours)[:80]!r}")
                break
    if wrong:
        raise UserError(
            f"{file}: {len(wrong)} of {len(places)} answers say otherwise of their question than the data, the first "
            f"of {wrong[0]} (expected the data and the order in which they were asked)"
        )


def _compared(
    answer: Answer, doc: Mapping[str, Any], task: Any, prompt: str, prompts: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    """(field, in the file, in the data) of all fields that both sides have."""
    for name, theirs in (answer.doc or {}).items():
        ours = doc.get(name)
        if isinstance(theirs, str | int | float) and isinstance(ours, str | int | float):
            yield f"doc.{name}", theirs, ours
    if answer.target is not None and (target := _of_task(task.doc_to_target, doc)) is not None:
        yield "target", answer.target, target
    if answer.input is None:
        return
    given, question = loosest(answer.input), loosest(str(doc.get("question", "")))
    if question and question in prompt:
        yield "input", question if question in given else answer.input, question
    if prompt and prompt not in given and given in prompts:  # else a prompt of another model, with other wording
        yield "input", answer.input, _of_task(task.doc_to_text, doc)


def _equal(theirs: object, ours: object) -> bool:
    """Whether a value of the file equals that of the data; lmms-eval writes numbers as strings, too."""
    if loosest(str(theirs)) == loosest(str(ours)):
        return True
    texts = isinstance(theirs, str) and isinstance(ours, str)
    return not texts and (number := _number(theirs)) is not None and number == _number(ours)


def _number(value: object) -> Decimal | None:
    """Exact, so that long ids differ; True and False are 1 and 0, as in columns of class labels."""
    try:
        number = Decimal({"True": "1", "False": "0"}.get(str(value), str(value)))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _prompt(task: Any, doc: Mapping[str, Any]) -> str:
    prompt = _of_task(task.doc_to_text, doc)
    return loosest(prompt) if isinstance(prompt, str) else ""


def _of_task(function: Any, doc: Mapping[str, Any]) -> Any:
    """The result of a task's function for a question; None if it needs the image, which is not read here."""
    try:
        return function(dict(doc))
    except Exception:
        return None
