"""An LLM learns from conversations without pictures: what it is given, what it learns, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clips.errors import UserError
from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, resolve_chat_template
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.model.small_llama import SmallLlamaConfig, new_llama, train_tokenizer
from llava_bridge.training.setup import setup_stage
from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig

SAID = [("human", "a dog, a cat\nIs there a dog?"), ("gpt", "yes"), ("human", "Is there a cow?"), ("gpt", "no")]


def setup_of(folder: Path, llm: Path, *entries: dict[str, Any], text: bool = False) -> Any:
    (folder / "talk.json").write_text(json.dumps(entries))
    (folder / "text.jsonl").write_text('{"text": "a dog"}\n')
    data = [ConversationSourceConfig(path=str(folder / "talk.json"))]
    data += [ConversationSourceConfig(path=str(folder / "text.jsonl"), format="text")] if text else []
    stage = StageConfig(data=data, max_steps=1, global_batch_size=1)
    config = LlavaTrainConfig(output=str(folder / "out"), stages=["llm_pretrain"], llm=str(llm), llm_pretrain=stage)
    return setup_stage(config, "llm_pretrain", folder)


def talk(**fields: str) -> dict[str, Any]:
    return {"id": "1", "conversations": [{"from": who, "value": text} for who, text in SAID], **fields}


def test_only_the_answers_are_learned(tmp_path: Path, bridge_llm: Path) -> None:
    setup = setup_of(tmp_path, bridge_llm, talk())
    batch = setup.collator([setup.dataset[0]])
    learned = batch["labels"][batch["labels"] != IGNORE_INDEX]
    assert setup.processor.decode(learned).split() == ["yes</s>", "no</s>"]
    assert "pixel_values" not in batch


def test_pictures_and_mixtures_are_refused(tmp_path: Path, bridge_llm: Path) -> None:
    with pytest.raises(UserError, match=r"llm_pretrain\.data: expected conversations without pictures"):
        setup_of(tmp_path, bridge_llm, talk(), talk(image="x.png"))
    with pytest.raises(UserError, match=r"llm_pretrain\.data: expected either text"):
        setup_of(tmp_path, bridge_llm, talk(), text=True)


def test_one_token_begins_each_turn() -> None:
    tokenizer = train_tokenizer(["is there a dog yes no"] * 9, SmallLlamaConfig(vocab_size=300))
    chat = ConversationEncoder(tokenizer, resolve_chat_template(None, "turns"), 0)
    encoded = chat.encode([{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "yes"}], 99)
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert (tokens[:2], tokens.count("<|assistant|>"), tokens[-1]) == (["<s>", "<|user|>"], 1, "</s>")
    assert tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX]).strip() == "yes</s>"


def test_initial_weights_have_the_stated_spread() -> None:
    tokenizer = train_tokenizer(["a dog"], SmallLlamaConfig(vocab_size=300))
    for config, std in ((SmallLlamaConfig(hidden_size=64), 64**-0.5), (SmallLlamaConfig(initializer_range=0.02), 0.02)):
        torch.manual_seed(0)
        weight = new_llama(config, tokenizer).model.layers[0].mlp.up_proj.weight
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    with pytest.raises(UserError, match=r"llm_from_scratch\.initializer_range: expected more than 0"):
        SmallLlamaConfig(initializer_range=0)
