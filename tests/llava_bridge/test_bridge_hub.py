"""Names on the hub stand for directories: its cache is laid out here by hand, and nothing else can be reached."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bridge_world
import huggingface_hub.constants
import pytest
import torch
from bridge_world import config_file
from original_world import draw_image, write_original, write_tower
from safetensors.torch import load_file, save_file

from benchmarks.tasks.eval_model import EvalModel
from benchmarks.tasks.registry import configure
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.commandline.parsing import parse_config
from clips.core.artifact import directory_hash, read_manifest
from clips.errors import UserError
from clips.model_refs import download_from_hub
from llava_bridge.conversion.convert_command import ConvertConfig, run_convert
from llava_bridge.conversion.swap_encoder import SwapConfig, run_swap
from llava_bridge.data.inspect_command import InspectConversationsConfig, run_inspect
from llava_bridge.encoders import load_encoder, resolve_encoder
from llava_bridge.inference.chat_command import ChatConfig, run_chat
from llava_bridge.inference.generate import load_llava
from llava_bridge.inference.serve_command import ServeConfig, run_serve
from llava_bridge.model.build import load_llm, load_tokenizer
from llava_bridge.model.llava_checks import resolve_llava_dir, resolve_llm_dir
from llava_bridge.model.llava_files import load_for_training
from llava_bridge.training import setup as training_setup
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.setup import check_same_everywhere, setup_stage
from llava_bridge.training.train_config import LlavaTrainConfig

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def hub(
    tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, bridge_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A cache of the hub with an encoder, an LLM (in two commits) and a LLaVA; no network."""
    cache = tmp_path / "hub"
    shutil.copytree(bridge_llava, tmp_path / "llava")
    for name, directory in {"eyes": bridge_encoder, "llm": bridge_llm, "llava": bridge_llava}.items():
        put(cache, name, directory, COMMIT, "main")
    put(cache, "llm", bridge_llm, OLDER, "old")
    (cache / "models--org--llm/snapshots" / OLDER / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    download_from_hub.cache_clear()
    yield cache
    download_from_hub.cache_clear()


def put(cache: Path, name: str, directory: Path, commit: str, branch: str) -> None:
    repository = cache / f"models--org--{name}"
    shutil.copytree(directory, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)


def same(one: Any, other: Any) -> bool:
    theirs = other.state_dict() if hasattr(other, "state_dict") else other
    own = one.state_dict() if hasattr(one, "state_dict") else one
    return own.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in own.items())


def test_a_hub_name_gives_the_same_as_its_directory(hub: Path, bridge_encoder: Path, bridge_llm: Path) -> None:
    for name in ("org/llm", "org/llm@main", f"org/llm@{COMMIT}"):
        assert same(load_llm(name), load_llm(str(bridge_llm)))
    assert load_tokenizer("org/llm").get_vocab() == load_tokenizer(str(bridge_llm)).get_vocab()
    eyes, expected = load_encoder("hf-hub:org/eyes"), load_encoder(str(bridge_encoder))
    assert same(eyes.weights, expected.weights)
    assert (eyes.pixels, eyes.architecture) == (expected.pixels, expected.architecture)
    model, processor = load_for_training("org/llava", "auto")
    again, _ = load_for_training(str(hub.parent / "llava"), "auto")
    assert same(model, again)
    assert processor.chat_template
    assert same(load_llm("org/llava"), load_llm(str(hub.parent / "llava")))
    assert same(load_llava("hf-hub:org/llava@main")[0], load_llava(hub.parent / "llava")[0])


@pytest.mark.parametrize(
    ("check", "name", "message"),
    [
        (resolve_llm_dir, "org/llm@old", r"llm: org/llm@old has no weights"),
        (resolve_llm_dir, "org/here", r"llm: org/here has no config\.json"),  # a directory of that name comes first
        (resolve_llm_dir, "org/none", r"llm: org/none is not a directory; org/none: cannot be downloaded from the Hub"),
        (functools.partial(resolve_llava_dir, field="llava"), "org/llm", r"llava: org/llm is no LLaVA in the trans"),
        (resolve_llm_dir, "org/eyes", r"llm: org/eyes has no config\.json"),
        (resolve_encoder, "transformers:org/none", r"encoder: org/none is not a directory; org/none: cannot be"),
        (resolve_encoder, "transformers:org/eyes", r"encoder: org/eyes has no config\.json"),
        (load_llava, "org/none", r"llava: org/none is not a directory; org/none: cannot be downloaded from the Hub"),
        (resolve_encoder, "hf-hub:org/none", r"encoder: org/none: cannot be downloaded from the Hub"),
        (resolve_encoder, "hf-hub:org/llm", r"encoder: hf-hub:org/llm is no directory of open_clip's; try"),
        (resolve_encoder, "org/eyes", r"encoder: org/eyes is not a directory \(expected .*hf-hub:ORG/NAME"),
    ],
)
def test_a_missing_repository_is_one_line(hub: Path, check: Any, name: str, message: str) -> None:
    Path("org/here").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        check(name)
    assert "\n" not in str(caught.value)


def test_only_needed_files_are_requested_and_pickles_only_as_a_fallback(monkeypatch, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({**options, "name": name})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    download_from_hub.cache_clear()
    download_from_hub("org/older", "source")
    assert ["pytorch_model*.bin" in each["allow_patterns"] for each in asked] == [False, True]
    download_from_hub.cache_clear()
    asked.clear()
    (tmp_path / "caption_decoder.safetensors").touch()  # of OpenVision 2, whose tower is in a pickle
    download_from_hub("org/tower", "encoder")
    assert ["open_clip_pytorch_model.bin" in each["allow_patterns"] for each in asked] == [False, True]
    (tmp_path / "model.safetensors").touch()  # of transformers
    (tmp_path / "open_clip_config.json").touch()
    download_from_hub("org/both", "encoder")
    assert ["open_clip_pytorch_model.bin" in each["allow_patterns"] for each in asked[2:]] == [False, True]
    assert "pytorch_model*.bin" not in asked[-1]["allow_patterns"]
    (tmp_path / "open_clip_config.json").unlink()
    assert download_from_hub("org/llm@v2", "llm") == tmp_path
    download_from_hub.cache_clear()
    last = asked[-1]
    assert (last.pop("name"), last.pop("revision")) == ("org/llm", "v2")
    wanted = {"config.json", "tokenizer.model", "chat_template.jinja", "merges.txt", "model-00001-of-00002.safetensors"}
    others = {"pytorch_model.bin", "consolidated.safetensors", "README.md", "flax_model.msgpack"}
    assert set(filter_repo_objects(sorted(wanted | others), **last)) == wanted


@pytest.mark.parametrize("encoder", ["hf-hub:org/eyes", "transformers:org/tower", "transformers:hf-hub:org/tower@main"])
def test_a_run_keeps_names_and_commits(encoder, hub, original_parts, bridge_talk, tmp_path):
    put(hub, "tower", write_tower(original_parts, tmp_path / "clip", pickled=True), COMMIT, "main")
    path = config_file(tmp_path, "run", bridge_talk, encoder=encoder, llm="org/llm", stages=["align"])
    config = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test").with_processes(1)
    found = resolve_inputs(config).identity.values
    assert (found["encoder"], found["llm"]) == (encoder, "org/llm")
    assert (found["inputs.encoder"], found["inputs.llm"]) == (COMMIT, COMMIT)


@pytest.mark.parametrize("reference", ["hf-hub:org/eyes", "transformers:org/tower"])
def test_a_branch_that_moves_changes_nothing_of_a_started_run(reference, hub, original_parts, bridge_talk, tmp_path):
    put(hub, "tower", write_tower(original_parts, tmp_path / "clip"), COMMIT, "main")
    path = config_file(tmp_path, "run", bridge_talk, encoder=reference, llm="org/llm", stages=["align"])
    inputs = resolve_inputs(parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test").with_processes(1))
    first = setup_stage(inputs, "align").model.state_dict()
    for name in ("eyes", "tower", "llm"):
        later = tmp_path / "later" / name
        shutil.copytree(hub / f"models--org--{name}" / "snapshots" / COMMIT, later)
        (weights,) = later.glob("*.safetensors")
        save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
        put(hub, name, later, "c" * 40, "main")
    download_from_hub.cache_clear()  # as in another process
    assert not same(load_llm("org/llm").state_dict(), load_llm(f"org/llm@{COMMIT}").state_dict())
    assert same(setup_stage(inputs, "align").model.state_dict(), first)


@pytest.mark.slow
def test_nodes_train_the_commit_of_the_first_one(hub, bridge_talk, tmp_path):
    """The second node knows a later commit; with a file of another content under the same name it ends in one line."""
    instruct = bridge_world.stage(bridge_talk, max_steps=2, global_batch_size=4)
    fields = {"stages": ["instruct"], "instruct": instruct, "encoder": "hf-hub:org/eyes", "llm": "org/llm"}
    later, weights = tmp_path / "later", "open_clip_model.safetensors"
    shutil.copytree(hub, later)
    shutil.copytree(hub / "models--org--eyes" / "snapshots" / COMMIT, tmp_path / "eyes")
    changed = {key: value + 1 for key, value in load_file(tmp_path / "eyes" / weights).items()}
    save_file(changed, tmp_path / "eyes" / weights, {"format": "pt"})
    put(later, "eyes", tmp_path / "eyes", "c" * 40, "main")

    def train(name: str) -> list[tuple[int, str]]:
        path = config_file(tmp_path, name, bridge_talk, **fields)
        nodes = {**bridge_world.launched(), "WORLD_SIZE": "2", "HF_HUB_OFFLINE": "1"}
        first = {**nodes, "HF_HUB_CACHE": str(hub)}
        second = {**nodes, "RANK": "1", "HF_HUB_CACHE": str(later)}
        with bridge_world.training(path, **first) as one, bridge_world.training(path, **second) as other:
            return [(process.wait(timeout=300), process.printed()) for process in (one, other)]  # type: ignore[attr-defined]

    (status, printed), (status_of_second, printed_by_second) = train("run")
    assert (status, status_of_second) == (0, 0), printed + printed_by_second
    assert read_manifest(tmp_path / "run")["data"]["encoder"] == COMMIT
    shutil.copyfile(tmp_path / "eyes" / weights, later / "models--org--eyes" / "snapshots" / COMMIT / weights)
    (status, printed), (status_of_second, printed_by_second) = train("other")
    expected = "instruct: the process of rank 1 has read other weights than that of rank 0"
    assert (status, status_of_second) == (2, 2), printed + printed_by_second
    assert expected in printed
    assert not (tmp_path / "other").exists()


def test_a_process_with_other_weights_or_data_is_found(hub, bridge_talk, tmp_path, monkeypatch):
    path = config_file(tmp_path, "run", bridge_talk, encoder="hf-hub:org/eyes", llm="org/llm", stages=["align"])
    inputs = resolve_inputs(parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test").with_processes(1))
    ours, theirs = setup_stage(inputs, "align"), setup_stage(inputs, "align")

    def compare(setup: Any) -> None:
        """As if rank 0 had ``setup``, and rank 1 ours."""
        facts: list[Any] = []
        monkeypatch.setattr(training_setup, "all_gather_objects", lambda found: ["", found])
        monkeypatch.setattr(training_setup, "from_main", lambda work: facts.append(work()) or facts[0])
        for each in (setup, ours):
            check_same_everywhere(each, "align")

    compare(theirs)
    with torch.no_grad():
        theirs.model.model.vision_tower.tower.visual.proj[-1, -1] *= 1 + 1e-6
    compare(theirs)
    theirs.dataset.samples = theirs.dataset.samples[:-1]
    with pytest.raises(UserError, match="align: the process of rank 1 has read other data than that of rank 0"):
        compare(theirs)
    with torch.no_grad():
        theirs.model.model.vision_tower.tower.visual.proj[-1, -1] += 1e-3
    with pytest.raises(UserError, match="align: the process of rank 1 has read other weights than that of rank 0"):
        compare(theirs)


def test_a_llava_of_the_hub_takes_another_encoder(hub: Path, bridge_talk: Path, tmp_path: Path, capsys: Any) -> None:
    run_swap(SwapConfig(llava="org/llava", encoder="hf-hub:org/eyes", output=str(tmp_path / "swapped")))
    resolve_llava_dir(str(tmp_path / "swapped"))
    assert same(load_llm(str(tmp_path / "swapped")), load_llm("org/llava"))
    manifest = read_manifest(tmp_path / "swapped")
    assert manifest["data"] == {"encoder": COMMIT}
    assert Path(manifest["parents"]["llava"]["path"]).name == COMMIT
    run_inspect(InspectConversationsConfig(path=str(bridge_talk / "talk.json"), llm="org/llm", image_tokens=16))
    assert "What color is it?" in capsys.readouterr().out


def test_a_llava_of_the_hub_answers(hub: Path, tmp_path: Path, capsys: Any) -> None:
    draw_image().save(tmp_path / "picture.png")
    said = []
    for directory in (str(tmp_path / "llava"), "org/llava", "hf-hub:org/llava"):
        run_chat(ChatConfig(model=directory, image="picture.png", prompt="What?", max_new_tokens=5))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]


def test_a_llava_of_the_hub_is_served(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    served: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda _, sockets: served.append(sockets))
    monkeypatch.setattr("os._exit", served.append)  # the command ends its process
    run_serve(ServeConfig(model="org/llava", port=0))
    assert len(served) == 2
    assert served[1] == 0


def test_an_original_llava_of_the_hub_is_converted(hub, original_parts, original_tower, tmp_path):
    put(hub, "tower", original_tower, COMMIT, "main")
    put(hub, "original", write_original(original_parts, tmp_path / "original", "org/tower"), COMMIT, "main")
    run_convert(ConvertConfig(source="org/original", output="named"))
    run_convert(ConvertConfig(source=str(tmp_path / "original"), output="local", vision_tower=str(original_tower)))
    assert same(load_llava("named")[0], load_llava("local")[0])
    manifest = read_manifest(Path("named"))
    assert manifest["config"]["source"] == "org/original"
    commits = {name: Path(parent["path"]).name for name, parent in manifest["parents"].items()}
    assert commits == {"source": COMMIT, "vision_tower": COMMIT}


def test_models_of_the_hub_are_evaluated(hub: Path, bridge_encoder: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model_name": "r", "output": "r", "encoder": "hf-hub:org/eyes", "llava": "org/llava"}
    row = EvalModel(RunConfig(**fields, benchmarks=[configure(name="retrieval", data="data")]))
    for needs, name, local in (("encoder", "eyes", bridge_encoder), ("llava", "llava", tmp_path / "llava")):
        assert row.path(needs) == str(hub / f"models--org--{name}/snapshots/{COMMIT}")  # type: ignore[arg-type]
        assert row.record(needs)["hash"] == directory_hash(local)  # type: ignore[arg-type]
    assert row.record("llava")["path"] == "org/llava"
    other = EvalModel(dataclasses.replace(row.config, encoder=str(bridge_encoder)))
    assert same(row.encoder.model, other.encoder.model)
    missing = EvalModel(dataclasses.replace(row.config, llava="org/none"))
    with pytest.raises(UserError, match=r"^llava: org/none is not a directory; .*cannot be downloaded from the Hub"):
        missing.path("llava")
