"""Captions by servers with OpenAI's chat API, killed and restarted at will."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clips_world
import numpy as np
import pytest
import yaml
from serving import DEAD, ChatServer, llava_replies, running

from clips.commandline.progress import log_estimate
from clips.core import chat_client
from clips.core.chat_client import ChatClient, TemporaryError, choices, image_request
from clips.data import decode_image
from clips.data.sources import SourceConfig, open_source
from clips.errors import UserError
from clips.recaption.captioners import ChatCaptioner
from clips.recaption.recaption_config import RecaptionConfig
from clips.recaption.run import run_recaption

PROMPT = "{web}. What color is it?"
Settings = Callable[..., RecaptionConfig]


@pytest.fixture(scope="module")
def address(bridge_llava: Path) -> Iterator[str]:
    models = [{"id": "tiny", "owned_by": "llava-bridge", "root": "old"}]
    with running(ChatServer(llava_replies(bridge_llava), models)) as server:
        yield server.url


@pytest.fixture
def settings(address: str, tmp_path: Path) -> Settings:
    shards = clips_world.write_shards(tmp_path / "train")
    usual = {"path": str(shards), "model": "tiny", "endpoint": (address,), "output": str(tmp_path / "out")}
    return lambda **fields: RecaptionConfig(
        **{**usual, "prompt": PROMPT, "max_new_tokens": 6, "batch_size": 1, **fields}
    )


def content(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(directory).glob("0*"))}


def test_captions_are_the_servers_answers_in_order_with_a_dead_replica(settings: Settings, address: str) -> None:
    config = settings(endpoint=(DEAD, address))
    run_recaption(config)
    written = open_source(SourceConfig(path=config.output, synthetic_caption="re_caption"))
    assert written.blocks == [9, 7, 5]  # type: ignore[attr-defined]
    client, captions = ChatClient(urls=[address]), set()
    for index in range(21):
        sample = written.read(index, np.random.default_rng(0))
        text = PROMPT.replace("{web}", sample.web)
        request = image_request("tiny", [decode_image(sample.image)], text, max_tokens=6, temperature=0)
        assert sample.synthetic == " ".join(choices(client.submit(request).result(60))[0][0].split())
        captions.add(sample.synthetic)
    assert len(captions) > 5  # a caption in the wrong place would be seen
    manifest = json.loads(Path(config.output, "manifest.json").read_text())
    assert manifest["data"]["model"] == {"path": "tiny", "class": "llava-bridge", "root": "old"}
    assert 21 <= manifest["captions"]["tokens"] <= 21 * 6
    run_recaption(settings(output=f"{config.output}-again", requests_in_flight=3))
    assert content(config.output) == content(f"{config.output}-again")


def test_an_outage_ends_the_run_in_one_line_and_the_same_command_resumes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(temperature=1.0)
    run_recaption(settings(temperature=1.0, output=f"{config.output}-whole"))
    submit = ChatClient.submit

    def interrupted(self: ChatClient, request: Any, replica: int = 0) -> Any:
        client = dataclasses.replace(self, urls=[DEAD], retry_seconds=0) if replica > 17 else self
        return submit(client, request, replica)

    monkeypatch.setattr(ChatClient, "submit", interrupted)
    with pytest.raises(UserError, match=r"^endpoint: http://127\.0\.0\.1:9/v1 cannot be reached \(connect\)$"):
        run_recaption(config)
    assert list(content(config.output)) == ["00000.tar", "00001.tar"]
    assert not list(Path(config.output, ".work").glob("*.partial"))
    listed = ChatClient.models
    monkeypatch.setattr(ChatClient, "models", lambda self: [{**each, "root": "new"} for each in listed(self)])
    with pytest.raises(UserError, match=r"^model: .*out has captions of old, the server has new as 'tiny'; choose an"):
        run_recaption(config)
    work = Path(config.output, ".work/model.json")
    work.write_text(work.read_text().replace("old", "/scratch/1/llava"))  # as of vLLM
    monkeypatch.setattr(ChatClient, "models", lambda self: [{**each, "root": "/scratch/2"} for each in listed(self)])
    monkeypatch.setattr(ChatClient, "submit", submit)
    run_recaption(config)
    assert "has /scratch/2 as 'tiny'; both must be the same model" in capsys.readouterr().err
    assert content(config.output) == content(f"{config.output}-whole")


def test_a_rejected_image_is_dropped_with_its_reason(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ChatCaptioner.make_request

    def broken(self: ChatCaptioner, image: Any) -> dict[str, Any]:
        made = request(self, image)
        if image.index == 4:
            made["messages"][0]["content"][0]["image_url"]["url"] = "data:image/jpeg;base64,AAAA"
        return made

    monkeypatch.setattr(ChatCaptioner, "make_request", broken)
    run_recaption(settings())
    manifest = json.loads(Path(settings().output, "manifest.json").read_text())
    assert manifest["captions"]["dropped"] == {"rejected by the server (400)": 1}
    assert manifest["captions"]["written"] == 20


def test_an_image_at_which_the_server_fails_is_dropped_and_a_server_that_fails_at_all_ends_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, request = ChatClient.send_once, ChatCaptioner.make_request
    fails_at = {4}

    async def send(self: ChatClient, method: str, base: str, path: str, body: Any) -> Any:
        if body and body["index"] in fails_at:
            raise TemporaryError(f"{base} answers 500 (Internal Server Error)", 500)
        body = body and {name: value for name, value in body.items() if name != "index"}
        return await attempt(self, method, base, path, body)

    monkeypatch.setattr(chat_client, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(ChatClient, "send_once", send)
    monkeypatch.setattr(
        ChatCaptioner, "make_request", lambda self, image: request(self, image) | {"index": image.index}
    )
    run_recaption(settings(retry_minutes=0.1))
    manifest = json.loads(Path(settings().output, "manifest.json").read_text())
    assert manifest["captions"]["dropped"] == {"rejected by the server (500)": 1}
    assert manifest["captions"]["written"] == 20
    fails_at.update(range(21))
    with pytest.raises(UserError, match=r"^endpoint: http://\S+ answers 500 \(Internal Server Error\)$"):
        run_recaption(settings(output=f"{settings().output}-down", retry_minutes=0.001))


def test_a_run_that_lost_too_many_samples_resumes_under_a_higher_limit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions, asked = ChatCaptioner.read_captions, []

    def empty_after_nine(self: ChatCaptioner, pending: Any) -> Any:
        asked.append(pending)
        return captions(self, pending) if len(asked) <= 9 else "refused"

    monkeypatch.setattr(ChatCaptioner, "read_captions", empty_after_nine)
    with pytest.raises(
        UserError, match=r"00001\.tar: 7 of 7 samples are invalid, more than max_invalid_ratio \(0\.2\)"
    ):
        run_recaption(settings())
    first = content(settings().output)
    run_recaption(settings(max_invalid_ratio=1.0))
    assert list(content(settings().output)) == ["00000.tar", "00001.tar", "00002.tar"]
    assert first == {"00000.tar": content(settings().output)["00000.tar"]}


def test_an_estimate_writes_nothing(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(estimate=7, token_prices=(1e6, 2e6), shard="1/2")
    run_recaption(config)
    found = capsys.readouterr().err
    assert "7 of 7 images captioned in" in found
    assert "the time is too long: expected an estimate from 64 or more (requests_in_flight)" in found
    assert "estimate for all 21, from 7: 0.00 h in one process, 0.00 h in 2" in found
    tokens = [int(part.replace(",", "").split()[0]) for part in found.partition("tokens: ")[2].split(", ")[:2]]
    cost = float(found.partition("cost: ")[2].replace(",", ""))
    assert tokens[0] > 21 * 6
    assert cost == pytest.approx(tokens[0] + 2 * tokens[1], abs=3)  # each count is rounded
    assert not Path(config.output).exists()


def test_an_estimate_is_scaled_to_the_whole_job(capsys: pytest.CaptureFixture[str]) -> None:
    log_estimate(
        part=2, total=10, seconds=72.0, tokens=(100, 8), prices=(2e3, 1e5), concurrent=("batch_size", 2), processes=2
    )
    assert capsys.readouterr().err.splitlines() == [
        "estimate for all 10, from 2: 0.10 h in one process, 0.05 h in 2",
        "tokens: 500 of prompts, 40 generated",
        "cost: 5.00",
    ]


def run_on_answers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any], **fields: Any
) -> Any:
    """Caption seven images by a server whose answer to the image of a number is ``answer(number)``; the captions."""
    monkeypatch.setattr(chat_client, "_FIRST_DELAY", 0.01)

    def reply(request: dict[str, Any]) -> Any:
        text = f"A square number {(number := int(request['messages'][0]['content'][1]['text'].split()[2][:-1]))} here."
        made = answer(number, text)
        if isinstance(made, dict):
            return made
        said, finish, tokens = made
        choices = [{"message": {"content": said}, "finish_reason": finish}]
        return {"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}

    with running(ChatServer(reply, [{"id": "tiny"}])) as server:
        data = clips_world.write_shards(Path(settings().path).parent / "seven", sizes=(7,))
        config = settings(path=str(data), endpoint=(server.url,), retry_minutes=0.1, **fields)
        run_recaption(config)
    written = open_source(SourceConfig(path=config.output, synthetic_caption=config.caption_column))
    read = (written.read(index, np.random.default_rng(0)) for index in range(len(written)))
    return {int(sample.web.split()[-1]): sample.synthetic for sample in read}


@pytest.mark.parametrize(
    ("finish", "tokens", "kept"),
    [
        ("content_filter", 3, None),
        ("length", 3, None),  # max_new_tokens is 6: the server's own limit
        ("length", 6, "A square number 4."),
        ("length", 0, "A square number 4."),  # a server that does not count
        ("tool_calls", 3, None),
        ("eos_token", 3, "A square number 4. It also"),
        (None, 3, "A square number 4."),
    ],
)
def test_an_answer_that_the_server_did_not_finish_is_no_caption(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, finish: str | None, tokens: int, kept: str | None
) -> None:
    def answer(number: int, text: str) -> tuple[str, str | None, int]:
        return ("A square number 4. It also", finish, tokens) if number == 4 else (text, "stop", 5)

    found = run_on_answers(settings, monkeypatch, answer)
    assert found == {
        number: kept if number == 4 else f"A square number {number} here." for number in range(7) if number != 4 or kept
    }
    dropped = json.loads(Path(settings().output, "manifest.json").read_text())["captions"]["dropped"]
    assert dropped == ({} if kept else {f"not finished by the server ({finish})": 1})


def test_an_error_with_status_200_is_repeated_as_its_code_says(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def answer(number: int, text: str) -> Any:
        asked.append(number)
        if number in (2, 3) and asked.count(number) < 3:
            return {"error": {"message": "overloaded", "code": 503} if number == 2 else "overloaded"}
        return {"error": {"message": "no image", "code": 400}} if number == 5 else (text, "stop", 5)

    found = run_on_answers(settings, monkeypatch, answer)
    assert found == {number: f"A square number {number} here." for number in range(7) if number != 5}
    assert [asked.count(number) for number in range(7)] == [1, 1, 3, 3, 1, 1, 1]


def test_one_caption_of_many_images_gets_a_line(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run_on_answers(settings, monkeypatch, lambda number, text: ("A beach." if number else text, "stop", 5))
    assert "00000.tar: 7 captions; 6 of them are the same: 'A beach.'" in capsys.readouterr().err
    run_on_answers(settings, monkeypatch, lambda number, text: (text, "stop", 5), output=f"{settings().output}-2")
    assert "the same" not in capsys.readouterr().err


def test_a_new_caption_takes_no_fields_place(settings: Settings, address: str) -> None:
    with pytest.raises(
        UserError, match=r"^caption_column: shard-0000\d\.tar/\d+ has 'captions' already; expected a new"
    ):
        run_recaption(settings(caption_column="captions"))
    assert not Path(settings().output).exists()
    samples = {f"{index:02d}": clips_world.sample(index) for index in range(22)}
    samples["21"]["json"] = json.dumps(clips_world.captions(21) | {"late": 1}).encode()
    late = clips_world.write_shard(Path(settings().path).parent / "late" / "0.tar", samples)
    run_recaption(settings(path=str(late), caption_column="late"))
    dropped = json.loads(Path(settings().output, "manifest.json").read_text())["captions"]["dropped"]
    assert dropped == {"has the field 'late' already": 1}


def test_mistakes_are_one_line(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"^model: http://.* has no 'other'; expected tiny$"):
        run_recaption(settings(model="other"))
    with pytest.raises(UserError, match=r"^endpoint: http://127\.0\.0\.1:9/v1 cannot be reached \(connect\)$"):
        run_recaption(settings(endpoint=(DEAD,), retry_minutes=0.0))
    with pytest.raises(UserError, match=r"^endpoint: expected a URL such as"):
        settings(endpoint=("localhost",))
    assert not Path(settings().output).exists()
    run_recaption(settings())
    with pytest.raises(UserError, match="captioner"):  # a local model's captions are not mixed with a server's
        run_recaption(settings(endpoint=()))


def _slurm_task(number: int, config: Path) -> tuple[list[str], dict[str, str]]:
    script = Path(__file__).parents[2] / "scripts" / "slurm" / "recaption.sbatch"
    environment = {"SLURM_ARRAY_TASK_ID": f"{number}", "SLURM_ARRAY_TASK_COUNT": "2"}
    return ["bash", str(script), "--config", str(config)], environment


def _kubernetes_pod(number: int, config: Path) -> tuple[list[str], dict[str, str]]:
    job = yaml.safe_load((Path(__file__).parents[2] / "scripts" / "kubernetes" / "recaption.yaml").read_text())["spec"]
    assert job["completions"] == int(job["template"]["spec"]["containers"][0]["env"][0]["value"])
    (pod,) = job["template"]["spec"]["containers"]
    (text,) = pod["args"]
    text = text.replace("/data/recaption.yaml", str(config)).replace("--endpoint '[http://vllm:8000/v1]'", "")
    return [*pod["command"], text], {"JOB_COMPLETION_INDEX": f"{number - 1}", "SHARDS": "2"}


def _write_two_parts(settings: Settings, folder: Path) -> str:
    """Write ``whole``, the captions of one process, and the config of the same for tasks; returns their output."""
    data = str(clips_world.write_shards(folder / "two", sizes=(70, 66)))  # each task's part has at least 64 batches
    run_recaption(settings(path=data, output=str(folder / "whole")))
    config = settings(path=data)
    names = ("path", "model", "output", "prompt", "max_new_tokens", "batch_size")
    fields = {name: getattr(config, name) for name in names} | {"endpoint": list(config.endpoint)}
    (folder / "recaption.yaml").write_text(yaml.safe_dump(fields))
    return config.output


@pytest.mark.slow
@pytest.mark.parametrize("start", [_slurm_task, _kubernetes_pod])
def test_schedulers_share_the_work(settings: Settings, tmp_path: Path, start: Callable[..., Any]) -> None:
    output = _write_two_parts(settings, tmp_path)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for number in (1, 2):
        command, environment = start(number, tmp_path / "recaption.yaml")
        done = subprocess.run(
            command, env={**os.environ, **environment, **path}, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        assert Path(output, "manifest.json").is_file() == (number == 2)
    assert content(output) == content(str(tmp_path / "whole"))


@pytest.mark.slow
def test_tasks_of_ray_share_the_work(settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    output = _write_two_parts(settings, tmp_path)
    script = Path(__file__).parents[2] / "scripts" / "ray" / "recaption.py"
    command = [sys.executable, str(script), "2", "--cpus", "0.5", "--max_retries", "0", "--config"]
    done = subprocess.run([*command, str(tmp_path / "recaption.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert content(output) == content(str(tmp_path / "whole"))
    missing = subprocess.run([*command, "none.yaml"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "returned non-zero exit status 2" in missing.stderr
