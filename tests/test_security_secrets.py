"""Secrets stay out of all outputs of a run, wherever they were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clips_world
import pytest
import report_material

from benchmarks import cli as bench
from benchmarks.results.results import Result, read_items, read_result, write_result
from clips import cli
from clips.core.artifact import log_info, read_manifest, write_manifest
from clips.core.identity import Identity, identity
from clips.errors import UserError
from clips.safe_text import REDACTED, equal_up_to_redaction, redact
from clips.train import train
from clips.training.run_dir import check_trained, create_run_dir
from clips.training.train_config import EncoderTrainConfig

PLANTED = "Zq9wXkT2vB7nLm4R"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{PLANTED}@host/a.tar",
        f"https://:{PLANTED}@host/a.tar",
        f"https://me:at@{PLANTED}@host/a.tar",
        f"pipe:curl -u me:{PLANTED} https://host",
        f"pipe:curl -H 'X-Api-Key: {PLANTED}' https://host",
        f"pipe:curl -H 'Authorization: Token {PLANTED}' https://host",
        f"s3://bucket/a.tar?X-Amz-Signature={PLANTED}&X-Amz-Date=1",
        f"https://host/a?a=1&sig={PLANTED}#b",
        f"https://host/a?access_token={PLANTED}",
        f"clips-bench run --judge_key {PLANTED} --model_name a",
        f"clips-bench run --hf-token={PLANTED}",
        f"pipe:curl -H 'Authorization: Bearer {PLANTED}' https://host",
        f"curl -H 'authorization: basic {PLANTED.translate(str.maketrans('0123456789', 'abcdefghij'))}'",
        f"pipe:AWS_SECRET_ACCESS_KEY={PLANTED} aws s3 cp s3://a -",
        f"hf_{PLANTED}",
        f"sk-{PLANTED}",
        f"ghp_{PLANTED}ABCDEF",
        f"github_pat_{PLANTED}_ABCDEF",
        f"glpat-{PLANTED}ABCDEF",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    told = redact({"a": [text]})["a"][0]
    assert redact({text: 1}) == {told: 1}
    assert PLANTED not in told
    assert "AKIA" not in told
    assert REDACTED in told
    assert redact(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "runs/demo/encoders/clips-s0",
        "s3://bucket/{000..127}.tar",
        "https://host:8080/a.tar?version=3&keyframes=2",
        "clips train --recipe.caption_tokens 30 --judge_key_env MY_KEY --max_new_tokens 7",
        "abfs://container@account.dfs.core.windows.net/a",
        "clips train --config a.yaml -u x, user: b",
        "https://host/a:b@c and d@e",
        "a key=value pair, basic shapes, the token",
        "A basic comparison of encoders; basic retrieval, and the bearer certificates of Basic English",
        "9a0364b9e99bb480dd25e1f0284c8555",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redact(text) == text
    assert redact({"n": 3, "x": None, "y": (1.5, True)}) == {"n": 3, "x": None, "y": [1.5, True]}


@pytest.mark.timeout(60)  # what grows with the square of the length takes many minutes
@pytest.mark.parametrize("text", ["://" + ":" * 500_000, "x-" * 250_000, "?" + "a_" * 250_000])
def test_a_hostile_text_ends(text: str) -> None:
    assert redact(text) == text


def test_values_of_the_environment_are_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.setenv("MY_KEY", str(tmp_path))  # where something lies is no secret
    assert redact(f"{tmp_path}/shards") == f"{tmp_path}/shards"
    assert redact(f"curl {PLANTED} short") == f"curl {REDACTED} short"


@pytest.mark.parametrize("where", ["there", "here"])
def test_a_run_is_known_again_where_the_environment_knows_other_secrets(where, tmp_path, monkeypatch):
    def config(path: str) -> EncoderTrainConfig:
        return clips_world.train_config(tmp_path, tmp_path / "out", data={"sources": [{"path": path}]})

    def known(path: str) -> Identity:
        return identity("clips train", config(path))

    same, masked = f"pipe:fetch {PLANTED} a.tar", where == "there"
    with monkeypatch.context() as context:
        if masked:
            context.setenv("MY_KEY", PLANTED)
        run = known(same)
        create_run_dir(config(same), run)
        write_manifest(tmp_path / "out", kind="encoder", config=config(same), identity=run)
    if not masked:
        monkeypatch.setenv("MY_KEY", PLANTED)
    for record in ("config.yaml", "manifest.json", ".checkpoints/run.json"):
        assert (PLANTED not in (tmp_path / "out" / record).read_text()) == masked
    assert check_trained(config(same), known(same))
    for other in (f"pipe:fetch {PLANTED} b.tar", f"pipe:send {PLANTED} a.tar", "pipe:fetch  a.tar"):
        with pytest.raises(UserError, match=r"holds another run: data\.sources"):
            check_trained(config(other), known(other))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/***/b", f"a/{PLANTED}/b", True),
        ("***", PLANTED, True),
        ("***.a.***", f"{PLANTED}.a.{PLANTED}", True),
        ("***.a.***", f"***.a.{PLANTED}", True),
        ("***.a.***", f"{PLANTED}.b.{PLANTED}", False),
        ("a/***/b", f"a/{PLANTED}/c", False),
        ("a/***/b", "a/short/b", False),
        ({"x": ["***", 1]}, {"x": (PLANTED, 1)}, True),
        ({"x": ["***", 1]}, {"x": [PLANTED, 2]}, False),
        ({"x": "***"}, {"x": "***", "y": 1}, False),
        (["***"], "***", False),
        (1, 1, True),
        (None, "***", False),
    ],
)
def test_what_is_masked_stands_for_any_secret(one: Any, other: Any, expected: bool) -> None:
    assert equal_up_to_redaction(one, other) == expected
    assert equal_up_to_redaction(other, one) == expected


@pytest.mark.slow
def test_a_training_leaves_none_behind(tmp_path, capsys, monkeypatch):
    """Given as a command that reads shards, and in the environment; and the finished run is still known as the same."""
    monkeypatch.setenv("HF_TOKEN", f"{PLANTED}environment")
    shards = clips_world.write_shards(tmp_path / "shards")
    (tmp_path / "sizes.json").write_text(json.dumps({"shard-00000.tar": 9, "shard-00001.tar": 7}))
    source = {
        "path": f"pipe:MY_TOKEN={PLANTED} cat {shards}/shard-{{00000..00001}}.tar",
        "shard_sizes": str(tmp_path / "sizes.json"),
        "cache_dir": str(tmp_path / "cache"),
    }
    config = clips_world.train_config(
        shards,
        tmp_path / "out",
        data={"sources": [source], "shuffle_buffer_shards": 2, "max_invalid_ratio": 0.2},
    )
    (tmp_path / "out.json").unlink()
    train(config)
    manifest = read_manifest(tmp_path / "out")
    assert REDACTED in manifest["config"]["data"]["sources"][0]["path"]
    assert list((tmp_path / "out").rglob("config.yaml"))
    train(config)  # nothing to do: it is the same run
    _check_no_secret(tmp_path, capsys)


def test_results_and_reports_hold_none(tmp_path, capsys, monkeypatch):
    results = report_material.put_results(tmp_path / "results", {"clip": 0.4, "clips": 0.7})
    for row in ("clip", "clips"):
        found = read_result(results / row / "pope.json")
        told = {name: value for name, value in vars(found).items() if name not in {"path", "command", "protocol"}}
        protocol = {**found.protocol, "data": f"https://me:{PLANTED}@host/data"}
        result = Result(**told, command=f"clips-bench run --judge_key {PLANTED}", protocol=protocol)
        write_result(results, result, read_items(found))
    monkeypatch.setattr("sys.argv", ["clips-bench", "report", str(results)])
    assert bench.main() == 0
    assert REDACTED in (results / "clip" / "pope.json").read_text()
    _check_no_secret(tmp_path, capsys)


def test_complaints_and_logs_hold_none(tmp_path, capsys, monkeypatch):
    words = ["clips", "data", "inspect", f"https://me:{PLANTED}@127.0.0.1:1/a.tar?sig={PLANTED}"]
    monkeypatch.setattr("sys.argv", words)
    assert cli.main() == 2
    log_info(f"reading https://me:{PLANTED}@host")
    told = capsys.readouterr().err
    assert PLANTED not in told
    assert told.count(REDACTED) >= 2


def _check_no_secret(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = capsys.readouterr()
    assert PLANTED not in told.out + told.err
    for path in folder.rglob("*"):
        if path.is_file():
            assert PLANTED.encode() not in path.read_bytes(), path
