"""Passwords in URLs stay out of all outputs of a run, wherever they were given."""

from __future__ import annotations

import json
from pathlib import Path

import clips_world
import pytest
import report_material

from benchmarks import cli as bench
from benchmarks.results.results import Result, read_items, read_result, write_result
from clips import cli
from clips.core.artifact import read_manifest, write_manifest
from clips.core.identity import Identity, identity
from clips.errors import UserError
from clips.safe_text import REDACTED, log_info, redact
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
        f"pipe:curl 'https://me:{PLANTED}@host' | cat",
        f"clips train --data.cache s3://me:{PLANTED}@host/a --seed 1",
    ],
)
def test_user_and_password_of_a_url_are_masked(text: str) -> None:
    told = redact({"a": [text]})["a"][0]
    assert redact({text: 1}) == {told: 1}
    assert PLANTED not in told
    assert told.count(f"://{REDACTED}@") == 1
    assert redact(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "runs/demo/encoders/clips-s0",
        "s3://bucket/{000..127}.tar",
        "https://host:8080/a.tar?version=3&keyframes=2",
        "https://host/a?auth=not-masked, as docs/security.md says",
        "abfs://container@account.dfs.core.windows.net/a",
        "clips train --config a.yaml -u x, user: b",
        "https://host/a:b@c and d@e",
    ],
)
def test_all_other_text_stays(text: str) -> None:
    assert redact(text) == text
    assert redact({"n": 3, "x": None, "y": (1.5, True)}) == {"n": 3, "x": None, "y": [1.5, True]}


@pytest.mark.timeout(60)  # what grows with the square of the length takes many minutes
def test_a_hostile_text_ends() -> None:
    assert redact("://" + ":" * 500_000) == "://" + ":" * 500_000


def test_a_run_with_a_masked_password_is_known_again(tmp_path):
    def config(path: str) -> EncoderTrainConfig:
        return clips_world.train_config(tmp_path, tmp_path / "out", data={"sources": [{"path": path}]})

    def known(path: str) -> Identity:
        return identity("clips train", config(path))

    same = f"pipe:curl https://me:{PLANTED}@host/a.tar"
    run = known(same)
    create_run_dir(config(same), run)
    write_manifest(tmp_path / "out", kind="encoder", config=config(same), identity=run.values)
    for record in ("config.yaml", "manifest.json", ".checkpoints/run.json"):
        assert PLANTED not in (tmp_path / "out" / record).read_text()
    assert check_trained(config(same), known(same))
    with pytest.raises(UserError, match=r"holds another run: data\.sources"):
        check_trained(config(same.replace("a.tar", "b.tar")), known(same.replace("a.tar", "b.tar")))


@pytest.mark.slow
def test_a_training_leaves_none_behind(tmp_path, capsys):
    """Given in a command that reads shards; and the finished run is still known as the same."""
    shards = clips_world.write_shards(tmp_path / "shards")
    (tmp_path / "sizes.json").write_text(json.dumps({"shard-00000.tar": 9, "shard-00001.tar": 7}))
    source = {
        "path": f"pipe:: https://me:{PLANTED}@host; cat {shards}/shard-{{00000..00001}}.tar",
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
        result = Result(**told, command=f"clips-bench run --data https://me:{PLANTED}@host", protocol=protocol)
        write_result(results, result, read_items(found))
    monkeypatch.setattr("sys.argv", ["clips-bench", "report", str(results)])
    assert bench.main() == 0
    assert REDACTED in (results / "clip" / "pope.json").read_text()
    _check_no_secret(tmp_path, capsys)


def test_complaints_and_logs_hold_none(tmp_path, capsys, monkeypatch):
    words = ["clips", "data", "inspect", f"https://me:{PLANTED}@127.0.0.1:1/a.tar"]
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
