"""Publishing: what goes is what belongs to the directory, without secrets or paths of this machine, in one commit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from repo_server import Hub
from report_material import items_table, put_result
from report_study import make_study

from benchmarks.publishing import upload_files
from benchmarks.publishing.publish import PublishConfig, run_publish
from benchmarks.publishing.upload_files import shorten_local_paths
from clips.core.artifact import atomic_write, directory_hash, write_manifest
from clips.errors import UserError

TOKEN = "hf_" + "a1B2" * 9


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub that takes uploads; what is pushed lies in its folder."""
    server_class = type("Played", (Hub,), {"folder": tmp_path / "hub", "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), server_class)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server_class
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small LLaVA with a parent that states a license and a config that names directories of this machine."""
    parent, found = tmp_path / "parent", tmp_path / "model"
    for directory in (parent, found):
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"\0weights")
    write_manifest(parent, kind="encoder", config={}, license="apache-2.0")
    (found / "config.json").write_text('{"model_type": "llava"}')
    (found / "config.yaml").write_text("output: /home/somebody/runs/mine\n")
    (found / ".wandb-run").write_text("abc")
    (found / "tensorboard").mkdir()
    (found / "tensorboard/events").write_bytes(b"x")
    config = {"encoder": "/home/somebody/encoders/eyes", "url": "https://host.org/a/b"}
    write_manifest(found, kind="llava", config=config, parents={"encoder": parent}, license="mit")
    return found


def push(directory: Path, **changes: Any) -> None:
    run_publish(PublishConfig(directory=str(directory), repo_id="org/mine", **changes))


def test_a_dry_run_lists_everything_without_a_request(hub, model, capsys):
    push(model, dry_run=True)
    said = capsys.readouterr().out
    assert hub.seen == []
    assert "org/mine (models, private)" in said
    assert "8 B  model.safetensors" in said
    assert "manifest.json  (" in said
    assert "skipped: .wandb-run, tensorboard" in said
    assert "license: mit" in said
    assert f"made from encoder {model.parent / 'parent'}: license apache-2.0" in said
    assert "`clips-bench card` writes one" in said


def test_the_model_is_pushed_without_local_paths(hub, model, capsys):
    before = (model / "manifest.json").read_text(encoding="utf-8")
    push(model)
    pushed = hub.folder / "org/mine"
    assert {path.name for path in pushed.iterdir()} == {
        ".private", "config.json", "config.yaml", "manifest.json", "model.safetensors",
    }  # fmt: skip
    assert (pushed / "model.safetensors").read_bytes() == b"\0weights"
    manifest = json.loads((pushed / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"] == {"encoder": "…/eyes", "url": "https://host.org/a/b"}
    assert manifest["parents"]["encoder"]["path"] == "…/parent"
    assert manifest["hash"] == json.loads(before)["hash"]
    assert (pushed / "config.yaml").read_text(encoding="utf-8") == "output: …/mine\n"
    assert (model / "manifest.json").read_text(encoding="utf-8") == before
    said = capsys.readouterr()
    assert "/commit/" in said.err
    assert TOKEN not in said.out + said.err + "".join(path.read_text("latin-1") for path in pushed.iterdir())
    assert {authorization for _, path, authorization in hub.seen if "create" in path} == {f"Bearer {TOKEN}"}
    push(model, commit_message="again")  # a private repository that is there takes another commit


def test_evaluation_results_for_the_hub_are_pushed(hub: type[Hub], model: Path) -> None:
    before = directory_hash(model)
    (model / ".eval_results").mkdir()
    (model / ".eval_results/pope.yaml").write_text("- {value: 86.7, notes: accuracy of /home/somebody/runs/mine}\n")
    (model / ".eval_results/draft.txt").write_text("not yet")
    push(model)
    pushed = hub.folder / "org/mine/.eval_results"
    assert {path.name for path in pushed.iterdir()} == {"pope.yaml"}
    assert (pushed / "pope.yaml").read_text(encoding="utf-8") == "- {value: 86.7, notes: accuracy of …/mine}\n"
    assert directory_hash(model) == before  # the results remain those of this model


def test_a_public_repository_is_not_taken_for_a_private_one(hub: type[Hub], model: Path) -> None:
    (hub.folder / "org/mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^repo_id: org/mine is public already"):
        push(model)
    assert not [*(hub.folder / "org/mine").iterdir()]
    push(model, private=False)
    assert (hub.folder / "org/mine/model.safetensors").is_file()


def add(name: str, text: str) -> Any:
    return lambda model: (model / name).write_text(text, encoding="utf-8")


def listed(name: str, text: str) -> Any:
    """A file that the manifest knows."""

    def change(model: Path) -> None:
        (model / name).write_text(text, encoding="utf-8")
        write_manifest(model, kind="llava", config={})

    return change


def link(model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "elsewhere")
    (model / "model.safetensors").symlink_to(model.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: (model / "manifest.json").unlink(), "expected an encoder, a LLaVA, a study's output or"),
        (add("notes.txt", "mine"), "notes.txt is not of the artifact; move it elsewhere"),
        (
            add("config.json", '{"model_type": "other"}'),
            "config.json differs from its manifest; it was changed after it was finished",
        ),
        (link, "model.safetensors is a symlink to a file elsewhere"),
        (add("README.md", f"token {TOKEN}"), "README.md: line 1 contains a token of the Hugging Face hub"),
        (add("config.yaml", "a: 1\nurl: s3://me:secret@bucket/x"), "config.yaml: line 2 contains a password"),
        (add("summary.json", "-----BEGIN RSA PRIVATE KEY-----"), "summary.json: line 1 contains a private key"),
        (
            listed("config.json", '{"_name_or_path": "/home/me/llm"}'),
            "config.json: names the local directory /home/me/llm",
        ),
    ],
)
def test_private_content_is_rejected(hub: type[Hub], model: Path, change: Any, message: str) -> None:
    change(model)
    with pytest.raises(UserError, match=message) as caught:
        push(model)
    assert TOKEN not in str(caught.value)
    assert hub.seen == []


def test_results_are_published_without_benchmark_images(hub, tmp_path, capsys):
    put_result(tmp_path / "results", "row", "gqa", items_table(0.5, benchmark="gqa"))
    push(tmp_path / "results")
    pushed = hub.folder / "org/mine"
    assert {path.name for path in pushed.rglob("*.*") if path.name != ".private"} == {"gqa.json"}
    assert "(datasets, private)" in capsys.readouterr().out
    assert any(path == "/api/datasets/org/mine/commit/main" for _, path, _ in hub.seen)
    push(tmp_path / "results", include_images=True)
    assert (pushed / "row/gqa.items.parquet").is_file()


def test_removed_results_of_a_study_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path, monkeypatch)
    monkeypatch.setattr(upload_files, "_check_finished", lambda *_: None)  # one branch of it has failed
    put_result(study / "results", "former", "gqa", items_table(0.5, benchmark="gqa"))
    for name in ("table.csv", "table_wide.csv", "notes.txt"):
        atomic_write(study / "report" / name, "x")
    for step in ("former", "encoder-clip-s0"):
        atomic_write(study / "steps" / step / "config.yaml", "a: 1\n")
    files = upload_files.plan_upload(study, include_images=True).files
    assert "results/clip-s0/retrieval.json" in files
    assert "results/clip-s0/retrieval.items.parquet" in files
    assert "steps/encoder-clip-s0/config.yaml" in files
    assert {name for name in files if name.startswith("report/")} == {"report/table.csv", "report/table_wide.csv"}
    assert not [name for name in files if "former" in name]


def test_an_unfinished_study_is_not_published(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unfinished: step llava-net-tiny-s0 is not done, nor are 1 more"):
        push(make_study(tmp_path, monkeypatch))
    assert hub.seen == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("clips train --config /home/me/x.yaml --a b", "clips train --config …/x.yaml --a b"),
        ("~/.cache/clips", "…/clips"),
        ("file:///home/me/x", "file:…/x"),
        (r"C:\\Users\\me\\x", "…/x"),
        ("https://host.org/a/b s3://bucket/a/b runs/demo/x yes/no </b> 1/2/3", None),
        (r"{\"post\": \"\\n\\nAnswer\"}", None),
    ],
)
def test_paths_of_the_machine_are_shortened_and_nothing_else(text: str, left: str | None) -> None:
    assert shorten_local_paths(text) == ((left, 1) if left else (text, 0))
