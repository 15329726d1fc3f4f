"""``clips-bench score``: precomputed answers, which `matching` matches to their questions, or those of results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from benchmarks.results.protocol import Entries
from benchmarks.results.result_types import RAW_ANSWER
from benchmarks.results.results import (
    Result,
    check_name,
    check_not_newer,
    has_items,
    read_items,
    read_result,
    read_results,
    result_path,
    write_result,
)
from benchmarks.tasks.mllm.evaluate_task import CUSTOM, EXCLUDED, LMMS_EVALS, evaluate_task
from benchmarks.tasks.mllm.items import Sample, in_whole_groups
from benchmarks.tasks.mllm.lmms_task import LmmsTask, UnlistedTaskConfig
from benchmarks.tasks.mllm.matching import ID_COLUMNS, Answer, match, normalize_text, read_answers, unread_keys
from benchmarks.tasks.mllm.offline_tasks import data_root, go_offline, load_task
from benchmarks.tasks.registry import configure, get_benchmark
from benchmarks.tasks.run_benchmarks import with_outcome
from clips.commandline.signals import sigterm_interrupts
from clips.core.artifact import git_state, library_versions
from clips.core.durable import writable_directory
from clips.core.identity import file_hash
from clips.errors import UserError
from clips.ranges import PositiveFloat
from clips.safe_text import log_info


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score precomputed answers, or again those of results by the installed scorer, without a model.

    Args:
        data: a directory in the Hub's structure, as for `clips-bench run`.
        output: directory of the result files; with ``results`` another one, and `compare` of both says what moved.
        results: instead of ``answers``, results of LLaVAs whose stored answers are scored: of a model, of several, or
            of a study.
        task: a benchmark of `clips-bench list` for a LLaVA, any task of lmms-eval, or the path of a custom task; of
            ``results`` only this one.
        answers: JSON lines: this suite's, LLaVA's, or lmms-eval's samples.
        model_name: the name of the answers in the table.
        name: the benchmark's column; by default the task's name, or its file's.
        questions: LLaVA's file of the questions (``llava_pope_test.jsonl``), if only it names the image of each.
        partial: score the matching pairs if questions have no answer, or answers no question; both are counted, and the
            protocol identifies the answered questions.
        scale: as for `clips-bench run`.
        exclude_metrics: lmms-eval's metrics to skip.
        judge_model: as for `clips-bench run`.
        judge_url: as for `clips-bench run`.
        judge_key_env: as for `clips-bench run`.
    """

    data: str
    output: str
    results: str | None = None
    task: str | None = None
    answers: str | None = None
    model_name: str | None = None
    name: str | None = None
    questions: str | None = None
    partial: bool = False
    scale: PositiveFloat | None = None
    exclude_metrics: tuple[str, ...] = ()
    judge_model: str | None = None
    judge_url: str | None = None
    judge_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if self.results is None:
            for name in ("task", "answers", "model_name"):
                if getattr(self, name) is None:
                    raise UserError(f"{name}: expected a value, or 'results', whose answers are scored again")
            check_name(str(self.model_name), "model_name")
        else:
            fields = ("answers", "model_name", "name", "questions", "partial")
            if given := [name for name in fields if getattr(self, name)]:
                raise UserError(f"{given[0]}: expected none with 'results', which have it")


@sigterm_interrupts()
def run_score(config: ScoreConfig) -> None:
    """Score the answers of a file or of results, and store normal results.

    Raises:
        UserError: an unknown task, a malformed file, questions without an answer, answers without a question, or
            the file's questions contradict the data; results without answers, or of other data.
    """
    if config.results is not None:
        _score_results(config, Path(config.results))
    else:
        _score_file(config, str(config.task), str(config.answers), str(config.model_name))


def _score_results(config: ScoreConfig, root: Path) -> None:
    stored = read_results(root / "results" if (root / "results").is_dir() else root) if root.is_dir() else []
    stored = stored or [read_result(file) for file in sorted(root.glob("*.json"))]  # those of one model
    with_answers = [
        (result, task)
        for result in stored
        if result.status == "ok" and has_items(result) and (task := _task_of(result)) and config.task in (None, task)
    ]
    if not with_answers:
        raise UserError(f"results: {root}: expected results of LLaVAs with items, found none")
    go_offline()
    for result, _ in with_answers:
        target = result_path(config.output, result.model_name, result.benchmark)
        if result.path and target.resolve() == result.path.resolve():
            raise UserError(f"output: {config.output}: expected another directory than that of the results")
        check_not_newer(config.output, result.model_name, result.benchmark)
    for result, task in with_answers:
        _score_again(config, result, task)


def _task_of(result: Result) -> str:
    """The task of a result by this suite's harness; empty for others. That of a custom task is its file's name."""
    return next(
        (
            str(result.protocol["task"]).removeprefix(kind)
            for kind in (LMMS_EVALS, CUSTOM)
            if not result.measured_elsewhere and str(result.protocol.get("task", "")).startswith(kind)
        ),
        "",
    )


def _score_again(config: ScoreConfig, result: Result, task: str) -> None:
    from benchmarks.tasks.mllm.llava_model import RecordedAnswersModel

    excluded = [name for name, why in result.missing_metrics.items() if why == EXCLUDED]
    entry, benchmark = _configured(
        dataclasses.replace(config, exclude_metrics=(*config.exclude_metrics, *excluded)), task, result.benchmark
    )
    where = f"{result.model_name} on {result.benchmark}"
    if (expected := result.protocol.get("data_hash")) != (found := entry.data_hash(benchmark)):
        raise UserError(f"data: {config.data}: expected the data of {where}, {expected:.12}…, got {found:.12}…")
    items = read_items(result)
    # what the answers were generated with; the rest of the protocol is of the scorer
    kept = {name: value for name, value in result.protocol.items() if name in _GENERATED or name.startswith("input_")}
    # the task filters the answers of the model again
    answers = dict(enumerate(items[RAW_ANSWER if RAW_ANSWER in items else "prediction"]))
    outcome = evaluate_task(
        RecordedAnswersModel(answers), benchmark, config.output, kept, only=[int(name) for name in items["item"]]
    )
    scored = Result(
        model_name=result.model_name,
        benchmark=result.benchmark,
        benchmark_type=result.benchmark_type,
        status="ok",
        model=result.model,
        execution=result.execution,
        key=f"answers {result.items_hash} {entry.data_hash(benchmark)}",
        command=shlex.join(["clips-bench", *sys.argv[1:]]),
        git=git_state(),
    )
    scored = with_outcome(scored, entry, outcome)
    path = write_result(config.output, scored, outcome.items)
    log_info(f"{path}: {_values(scored)}; before: {_values(result)}")


_GENERATED = frozenset({"prompt", "decoding", "precision", "shots", "answered"})


def _values(result: Result, *, every: bool = False) -> str:
    primary = [name for name in result.primary if name in result.metrics]
    metrics = [result.metrics[name] for name in dict.fromkeys((*primary, *(result.metrics if every else ())))]
    values = ", ".join(f"{each.label} {each.value * each.scale:.1f}" for each in metrics)
    return values or "; ".join(result.missing_metrics.values())


def _configured(config: ScoreConfig, task: str, name: str) -> tuple[LmmsTask, Any]:
    entry = get_benchmark(task)
    if not isinstance(entry, LmmsTask):
        raise UserError(f"task: '{task}' has no questions (expected a benchmark that needs a LLaVA)")
    if config.scale is not None and entry.config is not UnlistedTaskConfig:
        raise UserError(f"scale: the metrics of '{task}' define their own")
    settings = ("data", "scale", "exclude_metrics", "judge_model", "judge_url", "judge_key_env")
    return entry, configure(name=name, task=task, **{name: getattr(config, name) for name in settings})


def _score_file(config: ScoreConfig, task_name: str, file: str, model_name: str) -> None:
    entry, benchmark = _configured(config, task_name, config.name or Path(task_name).name.removesuffix(".yaml"))
    check_not_newer(config.output, model_name, benchmark.name)
    answers = read_answers(Path(file), None if config.questions is None else Path(config.questions))
    go_offline()
    from benchmarks.tasks.mllm.llava_model import RecordedAnswersModel

    task = load_task(entry.task, entry.folder, data_root(config.data), entry.dataset)
    docs = list(task.eval_docs_no_media)
    if unread := unread_keys(answers, task.aggregation()):
        log_info(f"{file}: keys that are not read: {', '.join(unread)}")
    has_prompts = all(answer.prompt is not None for answer in answers)
    prompts = [str(_call(task.doc_to_text, doc) or "") for doc in docs] if has_prompts else []
    matches = match(answers, docs, file, partial=config.partial, prompts=prompts)
    reject_contradictions(matches.answers, docs, task, file)
    matched = in_whole_groups(matches.answers, docs, entry.folder)
    if not matched:
        raise UserError(f"{file}: expected a question of '{task_name}' with answers to all its orders or pairs")
    counts = (
        f"{len(matches.answers):,} of {len(docs):,} questions answered ({matches.summary()}); "
        f"{len(matches.unmatched):,} answers without a question, {matches.num_unanswered:,} questions without an answer"
    )
    if len(matched) < len(matches.answers):
        counts += f"; {len(matches.answers) - len(matched):,} answers not used, to questions that lack others' answers"
    log_info(f"{file}: {counts}")
    numbers = list(matched)
    about: Entries = {"prompt": "precomputed", "decoding": "precomputed", "input_model": "precomputed answers"}
    if len(numbers) < len(docs):
        about["answered"] = hashlib.sha256(str(numbers).encode()).hexdigest()[:16]
    writable_directory(config.output)  # before a judge is called for answers that could not be stored
    differences: list[str] = []
    outcome = evaluate_task(
        RecordedAnswersModel({index: answer.text for index, answer in enumerate(matched.values())}),
        benchmark,
        config.output,
        about,
        only=numbers,
        check=lambda samples: differences.extend(_score_differences(matched, samples)),
    )
    if differences:
        differing = (
            f"{len(differences):,} of {len(numbers):,} answers have another score in the file than lmms-eval "
            f"{library_versions()['lmms-eval']} gives them here, first {differences[0]}"
        )
        log_info(f"{file}: {differing}")
        counts += f"; {differing}"
    result = Result(
        model_name=model_name,
        benchmark=benchmark.name,
        benchmark_type=entry.benchmark_type,
        status="ok",
        model={"path": file, "hash": file_hash(file), "matched": counts},
        key=f"answers {file_hash(file)} {entry.data_hash(benchmark)}",
    )
    result = with_outcome(result, entry, outcome)
    path = write_result(config.output, result, outcome.items)
    log_info(f"{path}: {_values(result, every=True)} ({len(numbers)} questions)")


def _score_differences(answers: Mapping[int, Answer], samples: Sequence[Sample]) -> Iterator[str]:
    """For each answer that its file gives a score: the difference from the one computed here, if there is any."""
    for (number, answer), sample in zip(answers.items(), samples, strict=True):
        for name in sorted(sample.keys() & answer.row.keys() - _NO_SCORES):
            theirs, ours = (_score(each[name]) for each in (answer.row, sample))
            if isinstance(theirs, Mapping) and isinstance(ours, Mapping):  # of the keys that both versions have
                theirs, ours = ({key: each[key] for key in theirs.keys() & ours.keys()} for each in (theirs, ours))
            if theirs != ours and not (theirs != theirs and ours != ours):  # NaN is itself
                yield f"question {number}: {name} {_brief(theirs)}, here {_brief(ours)}"
                break


_NO_SCORES = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", RAW_ANSWER}
    | {"token_counts", "doc_hash", "input_media"}
)
_READINGS = ("pred", "parsed_pred", "pred_answer", "prediction", "is_correct", "correct", "scores")
"""Keys of what an aggregation is given, instead of a score: what the scorer read in the answer."""


def _score(entry: Any) -> Any:
    """What lmms-eval logs for a metric, as a number or, if it has no score, what the scorer read in the answer."""
    plain = json.loads(json.dumps(entry, default=str))
    if isinstance(plain, dict):
        readings = {key: plain[key] for key in _READINGS if key in plain}
        # since 0.5 lmms-eval logs a list, with a reading for each repetition
        ones = {key: value[0] for key, value in readings.items() if isinstance(value, list) and len(value) == 1}
        plain = plain.get("score", readings | ones)
    return float(plain) if isinstance(plain, bool | int) else plain


def _brief(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:100]


def reject_contradictions(
    answers: Mapping[int, Answer], docs: Sequence[Mapping[str, Any]], task: Any, file: str
) -> None:
    """Compare the question fields of lmms-eval's samples with the data; other data, or another order, differ.

    ``target`` is compared with the task's, the strings and numbers of ``doc`` with the row's, and ``input`` with the
    question's text and the task's prompts: it differs if it is the prompt of another question and does not contain this
    one's. Strings are compared after all normalizations, numbers by value. ``doc_hash`` is useless: lmms-eval 0.7
    writes the hash of ``null`` into every sample.

    Raises:
        UserError: the message counts the contradictions and names the first.
    """
    prompts = [""] * len(docs)
    if any(answer.input is not None for answer in answers.values()):
        questions = [_call(task.doc_to_text, doc) for doc in docs]
        prompts = [normalize_text(prompt) if isinstance(prompt, str) else "" for prompt in questions]
    all_prompts = frozenset(prompts)
    ids = {column: {str(doc.get(column)): n for n, doc in enumerate(docs)} for column in ID_COLUMNS}
    wrong = []
    for number, answer in answers.items():
        other = None if answer.number is None or answer.id is None else ids[answer.id_name].get(answer.id)
        if other is not None and str(docs[number].get(answer.id_name)) != answer.id:
            wrong.append(f"question {number}: {answer.id_name} {answer.id!r:.80}, which is question {other}")
            continue
        for field, theirs, ours in _shared_fields(answer, docs[number], task, prompts[number], all_prompts):
            if not _equal(theirs, ours):
                wrong.append(f"question {number}: {field} {str(theirs)[:80]!r}, in the data {str(ours)[:80]!r}")
                break
    if wrong:
        raise UserError(
            f"{file}: {len(wrong)} of {len(answers)} answers contradict the data, first {wrong[0]} "
            "(expected the data and the order that the answers were generated with)"
        )


def _shared_fields(
    answer: Answer, doc: Mapping[str, Any], task: Any, prompt: str, prompts: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    """(field, in the file, in the data) of all fields that both sides have."""
    for name, theirs in (answer.doc or {}).items():
        ours = doc.get(name)
        if isinstance(theirs, str | int | float) and isinstance(ours, str | int | float):
            yield f"doc.{name}", theirs, ours
    if answer.target is not None and (target := _call(task.doc_to_target, doc)) is not None:
        yield "target", answer.target, target
    if answer.input is None:
        return
    given, question = normalize_text(answer.input), normalize_text(str(doc.get("question", "")))
    if question and question in prompt:
        yield "input", question if question in given else answer.input, question
    if prompt and prompt not in given and given in prompts:  # otherwise it is another model's prompt
        yield "input", answer.input, _call(task.doc_to_text, doc)


def _equal(theirs: object, ours: object) -> bool:
    """Whether a value of the file equals that of the data; lmms-eval may write numbers as strings."""
    if normalize_text(str(theirs)) == normalize_text(str(ours)):
        return True
    both_text = isinstance(theirs, str) and isinstance(ours, str)
    return not both_text and (number := _number(theirs)) is not None and number == _number(ours)


def _number(value: object) -> Decimal | None:
    """The exact number, so that long ids differ; True and False are 1 and 0, as in columns of class labels."""
    try:
        number = Decimal({"True": "1", "False": "0"}.get(str(value), str(value)))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _call(function: Any, doc: Mapping[str, Any]) -> Any:
    """The result of a task's function for a question; None if it needs the image, which is not loaded."""
    try:
        return function(dict(doc))
    except Exception:
        return None
