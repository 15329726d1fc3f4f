"""LLMs of many kinds: in a LLaVA each has the logits that it has by itself."""

from __future__ import annotations

import copy
import functools
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import peft
import pytest
import torch
from bridge_world import LLM_KINDS, make_llm_of
from families import quick_of
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from clips.errors import UserError
from llava_bridge import answer, load_llava
from llava_bridge.model.build import LlavaParts, build_llava, extract_lm_head, is_stored_in_bf16, load_llm
from llava_bridge.model.llava_files import load_for_training
from llava_bridge.model.modeling_vision import load_with_float32_tower
from llava_bridge.training.lora import add_lora, share_without_adapter
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import supports_packing
from llava_bridge.training.train_config import LoraConfig

TOKENS = torch.arange(10, 30)[None]


def logits(model: Any, words: int) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits[..., :words]


@pytest.fixture
def tokenizer(bridge_llm: Path) -> Any:
    return AutoTokenizer.from_pretrained(bridge_llm)


@pytest.mark.parametrize("kind", quick_of(["qwen3", "granite", "cohere"], "granite"))
def test_an_llm_stored_in_bf16_stays_in_it_with_the_same_values(kind, tokenizer, tmp_path, bridge_encoder):
    make_llm_of(kind, tokenizer, tmp_path / "whole")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    parts = LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_world.save(tmp_path / "half", half, tokenizer)))
    wide, _ = build_llava(parts)
    stored, processor = build_llava(parts, keep_bf16=True)
    assert {value.dtype for value in wide.parameters()} == {torch.float32}
    assert stored.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert stored.model.vision_tower.dtype == torch.float32
    for name, value in wide.state_dict().items():
        assert torch.equal(stored.state_dict()[name].float(), value), name
    assert supports_packing(stored) == supports_packing(wide)
    assert not is_stored_in_bf16(tmp_path / "whole")
    for model in (wide, stored):  # new adapters are not rounded
        torch.manual_seed(0)
        add_lora(model, LoraConfig(r=4))
    for (name, value), other in zip(wide.named_parameters(), stored.parameters(), strict=True):
        assert torch.equal(other.float(), value), name
        assert other.dtype == torch.float32 or "lora_" not in name
    stored, _ = build_llava(parts, keep_bf16=True)
    for part in (stored.lm_head, stored.model.language_model, stored.model.multi_modal_projector):
        part.bfloat16()
    assert is_stored_in_bf16(bridge_world.save(tmp_path / "llava", stored, processor))
    load = functools.partial(AutoModelForImageTextToText.from_pretrained, tmp_path / "llava", dtype=torch.bfloat16)
    for again, dtype in ((load_with_float32_tower(load), torch.float32), (load(), torch.bfloat16)):
        assert (again.model.vision_tower.dtype, again.lm_head.weight.dtype) == (dtype, torch.bfloat16)
    again, _ = load_for_training(str(tmp_path / "llava"), "auto", keep_bf16=True)
    assert (again.model.vision_tower.dtype, again.lm_head.weight.dtype) == (torch.float32, torch.bfloat16)


def test_integer_buffers_of_a_tower_keep_their_dtype_next_to_a_bf16_llm(bridge_llm: Path, tmp_path: Path) -> None:
    """As TinyViT's: transformers casts all buffers of a part that it keeps in float32."""
    model, processor = build_llava(LlavaParts(encoder="timm:tiny_vit_5m_224@random", llm=str(bridge_llm)))
    for part in (model.lm_head, model.model.language_model, model.model.multi_modal_projector):
        part.bfloat16()
    bridge_world.save(tmp_path, model, processor)
    again, _ = load_for_training(str(tmp_path), "auto", keep_bf16=True)
    assert again.lm_head.weight.dtype == torch.bfloat16
    expected, found = (dict(one.model.vision_tower.named_buffers()) for one in (model, again))
    assert torch.int64 in {value.dtype for value in expected.values()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", quick_of(LLM_KINDS, "qwen3", "cohere", "falcon_h1", "gemma4_text"))
def test_logits_equal_those_of_the_llm_also_after_saving(kind, tokenizer, tmp_path, bridge_encoder):
    llm = make_llm_of(kind, tokenizer, tmp_path / "llm")
    words = len(tokenizer)
    own = logits(llm, words)
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "llm")))
    torch.testing.assert_close(logits(model, words), own, atol=1e-5, rtol=1e-5)
    again, _ = load_llava(bridge_world.save(tmp_path / "llava", model, processor), device="cpu")
    torch.testing.assert_close(logits(again, words), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_llm(str(tmp_path / "llava")), words), own, atol=1e-5, rtol=1e-5)


def test_a_logit_cap_is_dropped_with_a_warning(tokenizer, tmp_path, bridge_encoder, capsys):
    llm = make_llm_of("gemma2", tokenizer, tmp_path / "llm", head_dim=8, final_logit_softcapping=5.0)
    model, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "llm")))
    assert "llm: gemma2 caps its logits, which LLaVAs do not: greedy answers are the same" in capsys.readouterr().err
    own, ours = logits(llm, len(tokenizer)), logits(model, len(tokenizer))
    torch.testing.assert_close(5 * torch.tanh(ours / 5), own, atol=1e-5, rtol=1e-5)
    assert model.config.text_config.final_logit_softcapping is None


@pytest.mark.parametrize(
    ("kind", "more"),
    [("qwen3", lambda logits: logits**2), ("qwen3", lambda logits: logits / 2), ("cohere", lambda logits: logits**2)],
    ids=["square", "half", "square besides a factor"],
)
def test_an_llm_of_another_kind_is_rejected(kind: str, more: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Factors, too, whose names are not known: those would stay in the config, and be taken twice one day."""
    llm = make_llm_of(kind, tokenizer, tmp_path / "llm")
    forward = llm.forward

    def doing_more(**fields: Any) -> Any:
        found = forward(**fields)
        found.logits = more(found.logits)
        return found

    llm.forward = doing_more
    with pytest.raises(UserError, match=f"llm: {kind} processes the output layer's result further"):
        extract_lm_head(llm)


@pytest.mark.parametrize(
    ("kind", "more", "match"),
    [
        ("mamba", {"state_size": 8}, "mamba has no key-value cache, which transformers' LLaVA requires"),
        # Gemma 4's E2B and E4B: an image has no token whose further embeddings each layer could take
        (
            "gemma4_text",
            {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320},
            "gemma4_text needs tokens in addition to their embeddings, but images in a",
        ),
    ],
)
def test_an_llm_that_fits_no_llava_is_rejected(kind, more, match, tokenizer, tmp_path, bridge_encoder):
    make_llm_of(kind, tokenizer, tmp_path / "llm", **more)
    with pytest.raises(UserError, match=f"^llm: {match}"):
        build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "llm")))


def test_a_hybrid_of_states_and_attention_trains_and_answers(tokenizer, tmp_path, bridge_encoder):
    """Granite 4's: answers in a batch, and those that share an image, are those given one by one."""
    make_llm_of("granitemoehybrid", tokenizer, tmp_path / "llm")
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "llm")))
    red, blue = Image.new("RGB", (40, 24), "red"), Image.new("RGB", (24, 40), "blue")
    shown, asked = [red, blue, red, None], ["What?", "What color is it, please?", "Is it a circle?", "Who?"]
    together = answer(model, processor, shown, asked, max_new_tokens=6)
    alone = [answer(model, processor, [image], [text], 6)[0] for image, text in zip(shown, asked, strict=True)]
    assert together == alone
    assert len(set(alone)) > 1
    tokens = torch.cat([torch.full((1, model.config.image_seq_length), model.config.image_token_index), TOKENS], 1)
    model.requires_grad_(True)
    batch = {"input_ids": tokens, "labels": torch.where(tokens > 29, -100, tokens)}
    loss = LlavaLoss(model)(**batch, pixel_values=torch.ones(1, 3, 32, 32))["loss"]
    loss.backward()
    assert loss.isfinite()
    learning = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    for part in ("vision_tower", "projector", "mamba", "self_attn", "block_sparse_moe", "lm_head"):
        assert any(part in name for name in learning), part


def test_weights_in_pytorchs_older_files(tokenizer: Any, tmp_path: Path) -> None:
    """As Vicuna's are; read without running what a pickle may hold."""
    llm = make_llm_of("qwen3", tokenizer, tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights \(expected \*.safetensors, or pytorch_model\*.bin\)"):
        load_llm(str(tmp_path / "llm"))
    torch.save(llm.state_dict(), tmp_path / "llm" / "pytorch_model.bin")
    torch.testing.assert_close(logits(load_llm(str(tmp_path / "llm")), 300), logits(llm, 300))


def test_a_llava_in_pytorchs_older_files_is_read_by_chat_as_by_training(bridge_llava: Path, tmp_path: Path) -> None:
    shutil.copytree(bridge_llava, tmp_path / "llava")
    weights: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "llava").glob("*.safetensors*"):
        weights |= load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
    for read in (load_llava, functools.partial(load_for_training, chat_template="auto")):
        with pytest.raises(UserError, match=r"has no weights \(expected \*.safetensors, or pytorch_model\*.bin\)"):
            read(str(tmp_path / "llava"))
    torch.save(weights, tmp_path / "llava" / "pytorch_model.bin")
    expected = logits(load_llava(bridge_llava, device="cpu")[0], 300)
    torch.testing.assert_close(logits(load_llava(tmp_path / "llava", device="cpu")[0], 300), expected)
    torch.testing.assert_close(logits(load_for_training(str(tmp_path / "llava"), "auto")[0], 300), expected)


MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8},
}


@pytest.mark.parametrize("kind", quick_of(MIXTURES, "mixtral"))
def test_experts_have_adapters_that_stock_peft_reads_and_merges(kind, tokenizer, tmp_path, bridge_encoder):
    make_llm_of(kind, tokenizer, tmp_path / "llm", **MIXTURES[kind])
    model, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "llm")))
    model.requires_grad_(False)
    bare, dropping = copy.deepcopy(model), copy.deepcopy(model)
    before = logits(model, 300)
    adapted = add_lora(model, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0))
    assert share_without_adapter(model.model.language_model) < 0.05
    model(input_ids=TOKENS).logits.square().mean().backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("experts" in name and weight.grad.any() for name, weight in trained.items())
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.1)
    expected = logits(model, 300)
    assert (expected - before).abs().max() > 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    stock = peft.PeftModel.from_pretrained(bare, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(stock, 300), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(adapted.merge_and_unload(), 300), expected, atol=1e-4, rtol=1e-4)
    add_lora(dropping, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.05))  # which PEFT has in linear layers alone
    assert share_without_adapter(dropping.model.language_model) > 0.6
