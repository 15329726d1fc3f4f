"""Names on the hub stand for directories: its cache is laid out here by hand, and nothing else can be reached."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from bridge_world import config_file, make_llava

from clips.commandline import parse_config
from clips.errors import UserError
from clips.references import hub_directory
from llava_bridge.data.inspection import InspectConfig, inspect
from llava_bridge.encoders import load_encoder
from llava_bridge.layouts.swap import SwapConfig, swap
from llava_bridge.model.assembly import load_llm, load_tokenizer
from llava_bridge.model.existing import take_up
from llava_bridge.model.parts import check_encoder, check_llava, check_llm
from llava_bridge.training.config import TrainConfig
from llava_bridge.training.identity import identity
from llava_bridge.training.workspace import check_inputs

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the hub with an encoder, an LLM (in two commits) and a LLaVA; no network."""
    cache = tmp_path / "hub"
    llava = make_llava(tmp_path / "llava", bridge_encoder, bridge_llm)
    for name, directory in {"eyes": bridge_encoder, "llm": bridge_llm, "llava": llava}.items():
        put(cache, name, directory, COMMIT, "main")
    put(cache, "llm", bridge_llm, OLDER, "old")
    (cache / "models--org--llm/snapshots" / OLDER / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    hub_directory.cache_clear()
    yield cache
    hub_directory.cache_clear()


def put(cache: Path, name: str, directory: Path, commit: str, branch: str) -> None:
    repository = cache / f"models--org--{name}"
    shutil.copytree(directory, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)


def same(one: Any, other: Any) -> bool:
    theirs = other.state_dict() if hasattr(other, "state_dict") else other
    own = one.state_dict() if hasattr(one, "state_dict") else one
    return own.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in own.items())


def test_a_name_gives_what_its_directory_gives(hub: Path, bridge_encoder: Path, bridge_llm: Path) -> None:
    assert same(load_llm("org/llm"), load_llm(str(bridge_llm)))
    assert load_tokenizer("org/llm").get_vocab() == load_tokenizer(str(bridge_llm)).get_vocab()
    eyes, expected = load_encoder("hf-hub:org/eyes"), load_encoder(str(bridge_encoder))
    assert same(eyes.weights, expected.weights)
    assert (eyes.pixels, eyes.architecture) == (expected.pixels, expected.architecture)
    assert len(load_encoder("several:hf-hub:org/eyes + timm:test_vit@random", 64).architecture["towers"]) == 2
    model, processor = take_up("org/llava", "auto")
    again, _ = take_up(str(hub.parent / "llava"), "auto")
    assert same(model, again)
    assert processor.chat_template
    assert same(load_llm("org/llava"), load_llm(str(hub.parent / "llava")))


def test_a_directory_of_that_name_comes_first(hub: Path) -> None:
    Path("org/llm").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^llm: org/llm has no config\.json"):
        check_llm("org/llm")


def test_revisions(hub: Path) -> None:
    check_llm("org/llm@main")
    check_llm(f"org/llm@{COMMIT}")
    with pytest.raises(UserError, match=r"^llm: org/llm@old has no weights"):
        check_llm("org/llm@old")


@pytest.mark.parametrize(
    ("check", "name", "message"),
    [
        (check_llm, "org/none", r"llm: org/none is not a directory; org/none: cannot be had from the hub \(.+\)"),
        (check_llava, "org/none", r"llava: org/none is not a directory; org/none: cannot be had from the hub \(.+\)"),
        (check_llava, "org/llm", r"llava: org/llm is no LLaVA in transformers' layout"),
        (check_llm, "org--a/x", r"llm: org--a/x is not a directory; org--a/x: cannot be had from the hub \(.+\)"),
        (check_llm, "org/eyes", r"llm: org/eyes has no config\.json"),
        (check_llm, "./org/llm", r"llm: \./org/llm has no config\.json"),
        (check_encoder, "hf-hub:org/none", r"encoder: org/none: cannot be had from the hub \(.+\)"),
        (check_encoder, "hf-hub:none", r"encoder: none: cannot be had from the hub \(.+\)"),
        (check_encoder, "hf-hub:org/llm", r"encoder: hf-hub:org/llm is no directory of open_clip's; try transformers:"),
        (check_encoder, "org/eyes", r"encoder: org/eyes is not a directory \(expected .*hf-hub:ORG/NAME"),
    ],
)
def test_what_is_not_there_takes_one_line(hub: Path, check: Any, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        check(name)
    assert "\n" not in str(caught.value)


def test_only_what_is_read_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub_directory.cache_clear()
    assert hub_directory("org/llm@v2", "llm") == tmp_path
    hub_directory.cache_clear()
    assert (asked.pop("name"), asked.pop("revision")) == ("org/llm", "v2")
    wanted = {"config.json", "tokenizer.model", "chat_template.jinja", "merges.txt", "model-00001-of-00002.safetensors"}
    others = {"pytorch_model.bin", "consolidated.safetensors", "README.md", "flax_model.msgpack"}
    assert set(filter_repo_objects(sorted(wanted | others), **asked)) == wanted


def test_a_run_keeps_names_and_commits(hub: Path, bridge_talk: Path, tmp_path: Path) -> None:
    path = config_file(tmp_path, "run", bridge_talk, encoder="hf-hub:org/eyes", llm="org/llm", stages=["align"])
    config = parse_config(TrainConfig, ["--config", str(path)], prog="test").among(1)
    check_inputs(config)
    found = identity(config)
    assert (found["encoder"], found["llm"]) == ("hf-hub:org/eyes", "org/llm")
    assert (found["inputs.encoder"], found["inputs.llm"]) == (COMMIT, COMMIT)


def test_a_llava_of_the_hub_takes_another_encoder(hub: Path, bridge_talk: Path, tmp_path: Path, capsys: Any) -> None:
    swap(SwapConfig(llava="org/llava", encoder="hf-hub:org/eyes", output=str(tmp_path / "swapped")))
    check_llava(str(tmp_path / "swapped"))
    assert same(load_llm(str(tmp_path / "swapped")), load_llm("org/llava"))
    inspect(InspectConfig(path=str(bridge_talk / "talk.json"), llm="org/llm", image_tokens=16))
    assert "What colour is it?" in capsys.readouterr().out
