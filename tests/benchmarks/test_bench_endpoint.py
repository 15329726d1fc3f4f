"""A LLaVA behind servers with OpenAI's chat API gives the same answers and numbers as its directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import bench_world as world
import pytest
from serving import DEAD, ChatServer, llava_replies, running

from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.tasks.mllm import llava_model
from benchmarks.tasks.registry import BenchmarkConfig, configure
from clips.core.chat_client import ChatClient
from clips.errors import UserError

pytestmark = world.LMMS_EVAL_WARNS


@pytest.fixture(scope="module")
def llava(places: Path) -> Path:
    return places / "llava"


@pytest.fixture(scope="module")
def address(llava: Path) -> Iterator[str]:
    models = [{"id": "mine", "root": "a hash"}]
    with running(ChatServer(llava_replies(llava), models)) as server:
        yield server.url


@pytest.fixture
def pope(tmp_path: Path) -> BenchmarkConfig:
    world.write_hub(tmp_path / "hub", 2)
    return configure(name="pope", data=str(tmp_path / "hub"), max_new_tokens=4)


def test_the_same_answers_and_numbers_as_the_directory(pope, llava, address, tmp_path, monkeypatch) -> None:
    ours = world.measure(tmp_path / "results", pope, row="ours", llava=llava, device="cpu")
    served = {"llava": "mine", "endpoint": (DEAD, address), "batch_size": 3}
    encoded, encode = [], llava_model.data_url
    monkeypatch.setattr(llava_model, "data_url", lambda *given: encoded.append(given) or encode(*given))
    theirs = world.measure(tmp_path / "results", pope, row="theirs", **served)
    assert theirs.metrics == ours.metrics
    assert len(encoded) == read_items(theirs)["image"].nunique() < len(read_items(theirs))
    columns = ["item", "image", "question", "prediction", "score"]
    assert read_items(theirs)[columns].equals(read_items(ours)[columns])
    assert theirs.protocol["input_model"] == "mine, by a server with OpenAI's chat API"
    assert theirs.model["path"] == "mine of a server"
    monkeypatch.setattr(ChatClient, "submit", lambda *_: pytest.fail("a cached question is asked again"))
    world.measure(tmp_path / "results", pope, row="again", **served)


def test_reasoning_is_no_part_of_a_served_answer(pope, address, tmp_path, monkeypatch) -> None:
    said = "<think>\nIs it?\n\nNo. Yes?\n</think>\n\nyes"
    monkeypatch.setattr(llava_model, "choices", lambda reply: [(said, None)])
    found = world.measure(tmp_path / "results", pope, llava="mine", endpoint=(address,), batch_size=3)
    assert found.metrics["pope_recall"].value == 1.0
    assert set(read_items(found)["prediction"]) == {"yes"}


def test_another_model_of_the_same_name_is_asked_again(pope, address, tmp_path, monkeypatch) -> None:
    served: dict[str, Any] = {"llava": "mine", "endpoint": (address,), "batch_size": 3}
    first = world.measure(tmp_path / "results", pope, **served)
    listed, submit, asked = ChatClient.models, ChatClient.submit, []
    monkeypatch.setattr(ChatClient, "models", lambda self: [{**each, "root": "another"} for each in listed(self)])
    monkeypatch.setattr(ChatClient, "submit", lambda *given, **more: asked.append(1) or submit(*given, **more))
    second = world.measure(tmp_path / "results", pope, row="second", **served)
    assert len(asked) == second.protocol["questions"]
    assert second.model["hash"] != first.model["hash"]
    assert world.measure(tmp_path / "results", pope, **served).model["hash"] == second.model["hash"]


def test_blind_runs_send_the_images_that_the_directory_sees(pope, llava, address, tmp_path) -> None:
    blind = dataclasses.replace(pope, blind=("shuffled", "blank"), blind_items=1.0)
    ours = world.measure(tmp_path / "results", blind, row="ours", llava=llava, device="cpu")
    served = {"llava": "mine", "endpoint": (address,), "batch_size": 3}
    theirs = world.measure(tmp_path / "results", blind, row="theirs", **served)
    assert {"pope_accuracy_over_blank", "pope_accuracy_shuffled"} <= theirs.metrics.keys()
    columns = ["prediction", "shuffled:prediction", "shuffled:correct"]
    assert read_items(theirs)[columns].equals(read_items(ours)[columns])
    assert str(theirs.protocol["blind_blank"]).endswith("RGB (127, 127, 127)")
    assert theirs.protocol["blind_shuffled"] == ours.protocol["blind_shuffled"]


def test_an_outage_is_no_score_and_the_same_command_resumes(pope, address, tmp_path, monkeypatch) -> None:
    submit, asked = ChatClient.submit, 0

    def interrupted(self: ChatClient, request: Any, replica: int = 0) -> Any:
        nonlocal asked
        asked += 1
        return submit(ChatClient(urls=[DEAD]) if asked == 3 else self, request, replica)

    served: dict[str, Any] = {"llava": "mine", "endpoint": (address,), "batch_size": 2, "retry_minutes": 0.0}
    monkeypatch.setattr(ChatClient, "submit", interrupted)
    with pytest.raises(UserError, match=r"endpoint: .* cannot be reached \(connect\) \(pope, question \d\)"):
        world.measure(tmp_path / "results", pope, **served)
    assert read_result(result_path(tmp_path / "results", "row", "pope")).status == "failed"
    questions, asked = asked, 100
    assert world.measure(tmp_path / "results", pope, **served).status == "ok"
    assert asked - 100 < questions  # those before the outage were cached


def test_answers_next_to_a_rejected_question_are_not_asked_again(pope, address, tmp_path, monkeypatch) -> None:
    submit, asked = ChatClient.submit, []

    def rejects_the_first(self: ChatClient, request: Any, replica: int = 0) -> Any:
        asked.append(request)
        future = submit(self, {**request, "messages": []} if len(asked) == 1 else request, replica)
        futures.wait([future], 60)
        return future

    served: dict[str, Any] = {"llava": "mine", "endpoint": (address,), "batch_size": 4, "retry_minutes": 0.0}
    monkeypatch.setattr(ChatClient, "submit", rejects_the_first)
    with pytest.raises(UserError, match=r"endpoint: .* \(pope, question \d\)"):
        world.measure(tmp_path / "results", pope, **served)
    questions = len(asked)
    assert world.measure(tmp_path / "results", pope, **served).status == "ok"
    assert len(asked) == questions + 1


def test_a_limit_prints_the_time_tokens_and_cost_of_all_questions(pope, address, tmp_path, capfd) -> None:
    part = dataclasses.replace(pope, limit=2)
    served = {"llava": "mine", "endpoint": (address,), "batch_size": 2, "token_prices": (1e6, 2e6)}
    found = world.measure(tmp_path / "results", part, **served)
    printed = capfd.readouterr().err
    total = int(found.protocol["full_size"])
    assert total > 2
    assert f"estimate for all {total}, from 2: 0.00 h in one process\n" in printed
    assert "the time is too long" not in printed
    prompts, generated = (int(words.split()[0]) for words in printed.partition("tokens: ")[2].split(", ")[:2])
    assert prompts > total * 4
    assert float(printed.partition("cost: ")[2].split()[0]) == pytest.approx(prompts + 2 * generated, abs=2)
    world.measure(tmp_path / "results", part, row="again", **served)
    assert "estimate" not in capfd.readouterr().err  # answers were cached


def test_beams_are_rejected_before_a_server_is_asked(pope, tmp_path) -> None:
    beams = dataclasses.replace(pope, num_beams=2)
    with pytest.raises(
        UserError, match=r"^benchmarks.pope.num_beams: expected 1 with endpoint, whose API has no beams"
    ):
        world.measure(tmp_path / "results", beams, llava="mine", endpoint=("http://127.0.0.1:9",))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"llava": "other"}, r"model: http://.* has no 'other'; expected mine"),
        ({"llava": None, "encoder": "x"}, "^llava: expected the model's name at the endpoint$"),
        ({"endpoint": ("host:8000",)}, "^endpoint: expected a URL such as http"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], reason: str, pope, address, tmp_path) -> None:
    with pytest.raises(UserError, match=reason):
        world.measure(tmp_path / "results", pope, **{"llava": "mine", "endpoint": (address,), **settings})
