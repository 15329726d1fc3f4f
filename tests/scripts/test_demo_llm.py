"""scripts/demo/train_llm.py: what the LLM learns, and that a LLaVA takes its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from script_modules import load_script

from clips.commandline.parsing import parse_config
from clips.core.artifact import file_hash, read_manifest
from clips.typed_data import to_plain
from llava_bridge.conversation import IGNORE_INDEX, IMAGE, ConversationEncoder
from llava_bridge.data import read_samples
from llava_bridge.data.batches import ConversationDataset
from llava_bridge.model.build import LlavaParts, build_llava, load_llm, load_tokenizer

train_llm = load_script("demo/train_llm.py")
DEMO = Path(str(train_llm.__file__)).parent


def trained(output: Path, talk: Path, **fields: Any) -> Path:
    small = {"vocab_size": 320, "hidden_size": 32, "max_steps": 12, "global_batch_size": 8, "learning_rate": 1e-2}
    train_llm.train_llm(train_llm.LlmConfig(output=str(output), data=bridge_world.source(talk), **{**small, **fields}))
    return output


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, bridge_talk: Path) -> Path:
    return trained(tmp_path_factory.mktemp("llm") / "llm", bridge_talk)


def test_a_llava_is_built_of_it(llm: Path, bridge_encoder: Path) -> None:
    assert json.loads((llm / "manifest.json").read_text())["kind"] == "llm"
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(llm)))
    own, found = load_llm(str(llm)).state_dict(), model.model.language_model.state_dict()
    assert all(torch.equal(own[f"model.{name}"], value) for name, value in found.items())
    assert processor.tokenizer.convert_tokens_to_ids(IMAGE) == load_tokenizer(str(llm)).convert_tokens_to_ids(IMAGE)


def test_the_shipped_llm_is_what_its_config_made() -> None:
    shipped, manifest = DEMO / "llm", read_manifest(DEMO / "llm")
    config = parse_config(train_llm.LlmConfig, ["--config", str(DEMO / "llm.yaml")], prog="")
    for name, value in to_plain(config).items():
        assert manifest["config"][name] == value or name == "output", name
    assert {path.name for path in shipped.iterdir()} == {*manifest["files"], "manifest.json"}
    assert all(file_hash(shipped / name) == told["hash"] for name, told in manifest["files"].items())


def test_it_learns_the_answers_of_conversations_without_their_images(llm: Path, bridge_talk: Path) -> None:
    model, tokenizer = load_llm(str(llm)), load_tokenizer(str(llm))
    samples = [train_llm.without_images(sample) for sample in read_samples(*bridge_world.source(bridge_talk))]
    chat = ConversationEncoder(tokenizer, tokenizer.chat_template, image_tokens=0)
    item = ConversationDataset(samples, chat, 256)[0]
    assert not item["images"]
    learned = [label for label in item["labels"] if label != IGNORE_INDEX]
    assert tokenizer.decode(learned).split() == ["red</s>", "yes</s>"]
    tokens, labels = torch.tensor([item["input_ids"]]), torch.tensor([item["labels"]])
    with torch.no_grad():
        assert model(input_ids=tokens, labels=labels).loss < 2  # of 5.8 by chance


def test_the_same_seed_gives_the_same_weights(llm: Path, bridge_talk: Path, tmp_path: Path) -> None:
    again, other = trained(tmp_path / "again", bridge_talk), trained(tmp_path / "other", bridge_talk, seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (llm, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_gradients_are_clipped_as_by_torch() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 3), (5,), (7, 2))]
    for size in (1.0, 0.01):
        for weight in weights:
            weight.grad = torch.randn(weight.shape) * size
        copies = [torch.nn.Parameter(torch.zeros_like(weight)) for weight in weights]
        for weight, copy in zip(weights, copies, strict=True):
            assert weight.grad is not None
            copy.grad = weight.grad.clone()
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        train_llm.clip_gradients(weights[::2], weights[1:2])
        for weight, copy in zip(weights, copies, strict=True):
            torch.testing.assert_close(weight.grad, copy.grad)


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    script = Path(str(train_llm.__file__))
    words = ["--output", str(tmp_path / "out"), "--data", "[{path: none.json}]"]
    done = bridge_world.run_python(str(script), *words)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (2, ["none.json: no such file or directory"])
    assert not (tmp_path / "out").exists()
