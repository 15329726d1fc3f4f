"""Judged benchmarks: a local server plays the judge; what it says is counted, remembered and never made up."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_world as world
import pytest
from serving import ChatServer, running

from benchmarks.report.report_command import ReportConfig, run_report
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.mllm.judge import patched_judge
from benchmarks.tasks.mllm.lmms_task import UnlistedTaskConfig, make_judge
from benchmarks.tasks.registry import configure, get_benchmark

QUESTIONS = 4

pytestmark = world.LMMS_EVAL_WARNS


@pytest.fixture
def judge() -> Iterator[ChatServer]:
    """A judge on this machine: ``said`` makes its answers, ``asked`` keeps the requests."""

    def reply(request: dict[str, Any]) -> Any:
        said = server.said(request)  # type: ignore[attr-defined]
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return said if isinstance(said, int) else {"model": "judge-2026", "choices": [choice]}

    server = ChatServer(reply)
    server.said = lambda _: "0.5"  # type: ignore[attr-defined]
    with running(server):
        yield server


@pytest.fixture(scope="module")
def places(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judged")
    (root / "llava").symlink_to(places / "llava")
    numbers, image = range(QUESTIONS), [world.draw_image(number) for number in range(QUESTIONS)]

    def write(file: str, **columns: Any) -> None:
        whole = {name: each if isinstance(each, list) else [each] * QUESTIONS for name, each in columns.items()}
        world.write_parquet(root / "hub" / world.HUB / f"{file}.parquet", whole | {"image": image})

    def card(folder: str, name: str, split: str, path: str) -> None:
        content = {"configs": [{"config_name": name, "data_files": [{"split": split, "path": path}]}]}
        (root / "hub" / world.HUB / folder / "README.md").write_text(f"---\n{json.dumps(content)}\n---\n")

    write(
        "MMVet/data/test-00000-of-00001",
        question_id=[f"v1_{number}" for number in numbers],
        question=[f"What color is square {number}?" for number in numbers],
        answer=[world.color(number) for number in numbers],
        capability=["rec", "ocr", "rec,ocr", "know"],
    )
    write(
        "llava-bench-in-the-wild/data/train-00000-of-00001",
        question_id=list(numbers),
        question="What is it?",
        gpt_answer="A square.",
        caption=[world.captions(number)[0] for number in numbers],
        category=["conv", "detail", "complex", "conv"],
    )
    write(
        "HallusionBench/data/image-0",
        **{"category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": "0", "gt_answer": "1"},
        figure_id=["1", "1", "2", "2"],
        question_id=["0", "1", "0", "1"],
        question=[f"Is square {number} red?" for number in numbers],
        gt_answer_details=[f"It is, number {number}." for number in numbers],
    )
    card("HallusionBench", "default", "image", "data/image-0.parquet")
    write(
        "MMBench/en/dev-0",
        index=list(numbers),
        question=[f"What is {answer}" for answer in ("A.", "B.", "nothing", "unclear")],
        answer=["A", "C", "D", "D"],
        **{letter: f"thing {letter}" for letter in "ABCD"},
        **dict.fromkeys(("category", "L2-category", "source", "split", "hint"), "nan"),
    )
    card("MMBench", "en", "dev", "en/dev-0.parquet")
    return root


@pytest.fixture(autouse=True)
def no_judge_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_URL", "MODEL_VERSION", "API_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("benchmarks.tasks.mllm.judge._RETRY_SECONDS", 0.0)

    def answer_batches(model, processor, images, prompts, max_new_tokens, batch_size, **_):
        for place, prompt in enumerate(prompts):
            yield {place: f"It is {prompt.split('There are several')[0].split()[-1]}"}

    monkeypatch.setattr("llava_bridge.inference.generate.iter_answer_batches", answer_batches)


def _run(places: Path, results: Path, name: str = "mmvet", row: str = "row", **settings: Any) -> Result:
    benchmark = configure(name=name, data=str(places / "hub"), **settings)
    return world.measure(results, benchmark, row=row, llava=places / "llava")


def _marks(request: dict[str, Any]) -> str:
    """0.0, 0.3, 0.6, 0.9 for the four questions."""
    (number,) = re.findall(r"square (\d)\? \|", request["messages"][0]["content"])
    return f"{0.3 * int(number):.1f}"


def test_judge_scores_are_counted_and_requested_once(places, tmp_path, judge, monkeypatch):
    monkeypatch.setenv("SECRET", "key-7")
    judge.said = _marks
    settings = {"judge_url": judge.url, "judge_model": "gpt-test", "judge_key_env": "SECRET"}
    found = _run(places, tmp_path, **settings)
    metric = found.metrics["gpt_eval_score"]
    assert metric.value == pytest.approx(100 * (0.0 + 0.3 + 0.6 + 0.9) / 4)
    assert metric.ci_low < metric.value < metric.ci_high
    assert found.protocol["judge"] == "gpt-test (judge-2026)"
    assert "127.0.0.1" not in json.dumps(dict(found.protocol))
    assert read_items(found)["category"].tolist() == ["rec", "ocr", "rec,ocr", "know"]
    assert len(judge.asked) == QUESTIONS
    assert {(each["path"], each["key"], each["model"]) for each in judge.asked} == {
        ("/v1/chat/completions", "Bearer key-7", "gpt-test")
    }
    _run(places, tmp_path, row="again", **settings)  # another row with the same answers
    assert len(judge.asked) == QUESTIONS
    assert "key-7" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    other = _run(places, tmp_path, row="other", **settings | {"judge_model": "gpt-else"})
    assert len(judge.asked) == 2 * QUESTIONS
    assert other.fingerprint != found.fingerprint
    assert other.key != found.key


def test_the_judge_of_a_task_that_is_not_listed_is_a_part_of_its_result(tmp_path, monkeypatch):
    monkeypatch.delenv("MODEL_VERSION", raising=False)
    task = dataclasses.replace(get_benchmark("gqa"), config=UnlistedTaskConfig)
    settings = {"name": "own", "data": "d"}
    assert task.further_inputs(UnlistedTaskConfig(**settings), str(tmp_path)) == {}
    judged = UnlistedTaskConfig(**settings, judge_model="gpt-test")
    assert task.further_inputs(judged, str(tmp_path)) == {"judge_model": "gpt-test"}
    assert get_benchmark("gqa").further_inputs(judged, str(tmp_path)) == {}


def test_numbers_in_a_judges_reasoning_are_no_grades(tmp_path, judge):
    config = configure(name="llava_in_the_wild", data="d", judge_url=judge.url, judge_model="gpt-test")
    judge.said = lambda _: "Assistant 1 names it, Assistant 2 does not.\n</think>\n\n8 3\nThe first one is right."
    for _ in range(2):  # the second one from the cache
        reply, _model = make_judge(config, "llava_in_the_wild", tmp_path).ask({"model": "gpt-4", "messages": []})
        assert reply == "8 3\nThe first one is right."
    assert len(judge.asked) == 1


def test_requests_of_the_openai_client_go_to_the_judge(tmp_path, judge):
    from openai import OpenAI

    config = configure(name="mmvet", data="d", judge_url=judge.url, judge_model="gpt-test")
    with patched_judge(make_judge(config, "mmvet", tmp_path)):
        client = OpenAI(api_key="unused", base_url="http://127.0.0.1:9/v1")
        reply = client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Is it?"}])
    assert reply.choices[0].message.content == "0.5"
    assert [each["model"] for each in judge.asked] == ["gpt-test"]


def test_environment_variables_of_lmms_eval_name_the_judge(places, tmp_path, judge, monkeypatch):
    judge.said = _marks
    monkeypatch.setenv("OPENAI_API_URL", f"{judge.url}/chat/completions")
    monkeypatch.setenv("OPENAI_API_KEY", "key-8")
    monkeypatch.setenv("MODEL_VERSION", "by-variable")
    assert _run(places, tmp_path).protocol["judge"] == "by-variable (judge-2026)"
    assert (judge.asked[0]["path"], judge.asked[0]["key"]) == ("/v1/chat/completions", "Bearer key-8")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "no judge: no key: set OPENAI_API_KEY, or judge_url to a server without keys"),
        ("http://127.0.0.1:9/v1", r"no judge: http://127\.0\.0\.1:9/v1 cannot be reached \(connect\)"),
    ],
)
def test_without_a_judge_answers_stay_and_there_is_no_score(places, tmp_path, capsys, judge, url, said):
    found = _run(places, tmp_path, judge_url=url)
    assert (found.status, dict(found.metrics)) == ("ok", {})
    assert re.fullmatch(said, found.missing_metrics["gpt_eval_score"])
    items = read_items(found)
    assert items["prediction"].tolist() == [f"It is {number}?" for number in range(QUESTIONS)]
    assert items["score"].isna().all()
    assert "no judge" in capsys.readouterr().err
    run_report(ReportConfig(inputs=(str(tmp_path),)))
    table = (tmp_path / "report/table.md").read_text()
    assert "| row | no judge |" in table
    assert "row on mmvet: no judge: " in table
    judge.said = _marks  # now there is one: what was not marked is not taken for done
    assert _run(places, tmp_path, judge_url=judge.url).metrics["gpt_eval_score"].value == pytest.approx(45)


@pytest.mark.parametrize(
    ("reply", "said", "requests"),
    [
        ("", "no judge: 'gpt-4o-2024-11-20' answers ''", 4),  # as servers do whose answer went elsewhere
        ("7", "answers '7', expected a number from 0 to 1", 4),
        (401, "answers 401", 1),
        (503, "answers 503", 1),
    ],
)
def test_a_judge_without_scores_is_reported_and_retried(places, tmp_path, judge, reply, said, requests):
    judge.said = lambda _: reply
    assert said in _run(places, tmp_path, judge_url=judge.url).missing_metrics["gpt_eval_score"]
    assert len(judge.asked) == requests
    judge.said = _marks  # fixed: its earlier answer is not remembered
    assert _run(places, tmp_path, judge_url=judge.url).metrics["gpt_eval_score"].value == pytest.approx(45)


def test_llava_bench_compares_two_answers(places, tmp_path, judge):
    marks = iter(("8 4", "10 6", "5 5", "9 8"))
    judge.said = lambda _: f"{next(marks)}\nThe first is better."
    found = _run(places, tmp_path, "llava_in_the_wild", judge_url=judge.url)
    assert found.metrics["gpt_eval_llava_all"].value == 71.9  # 23 of 32, as lmms-eval rounds
    assert found.metrics["gpt_eval_llava_conv"].value == 70.6  # 12 of 17
    assert found.metrics["gpt_eval_llava_all"].ci_method == "student"
    assert found.protocol["judge"] == "gpt-4o-2024-11-20 (judge-2026)"


def test_scorers_that_use_requests(places, tmp_path, judge):
    """HallusionBench asks about every answer, MMBench about those without a letter or an option in them."""
    judge.said = lambda request: "Incorrect" if "number 3." in request["messages"][0]["content"] else "Correct."
    found = _run(places, tmp_path, "hallusion_bench_image", judge_url=judge.url)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values == {"aAcc": 75.0, "qAcc": 50.0, "fAcc": 50.0, "unread": 0.0}
    assert (len(judge.asked), found.protocol["judge"]) == (QUESTIONS, "gpt-4 (judge-2026)")
    judge.asked.clear()
    judge.said = lambda _: "D"
    found = _run(places, tmp_path, "mmbench_en_dev", judge_url=judge.url)
    assert found.metrics["gpt_eval_score"].value == 75.0  # of the answers A, B, and two that the judge takes for D
    assert len(judge.asked) == 2
    assert "no judge" in _run(places, tmp_path / "without", "mmbench_en_dev").missing_metrics["gpt_eval_score"]
