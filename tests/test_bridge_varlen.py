"""Attention without masks: values and gradients of masked attention, on a fake GPU by torch's own operator."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import SMALL_LLM
from fake_cuda import CUDA, FakeCuda, pretend_driver
from test_bridge_objective import KINDS, batch_of, learned, parts
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from llava_bridge.model import varlen_attention
from llava_bridge.model.varlen_attention import NAME, can_replace_sdpa
from llava_bridge.training.setup import _packed_length, _replace_sdpa
from llava_bridge.training.stage_config import StageConfig
from llava_bridge.training.trainer import recompute_layers

assert parts  # a fixture
BOUNDS = (0, 3, 8, 13, 16)
ROWS, HEADS, TOKENS, CHANNELS = 2, 4, 8, 16


def layer() -> torch.nn.Module:
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    return module


def heads(**options: Any) -> Any:
    torch.manual_seed(0)
    return [torch.randn(ROWS, count, TOKENS, CHANNELS, **options) for count in (HEADS, 2, 2)]


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Any, window: int) -> torch.Tensor:
    """(R, T, H, C), by one dense mask of all rows."""
    samples = torch.bucketize(torch.arange(ROWS * TOKENS), torch.tensor(bounds[1:]), right=True)
    samples = samples.view(ROWS, 1, 1, TOKENS)
    near = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().triu(1 - window)
    mask = (samples.transpose(-1, -2) == samples) & near
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 2, 5])
@pytest.mark.parametrize("bounds", [BOUNDS, (0, 8, 16)])
def test_values_and_gradients_are_those_of_a_dense_mask(
    bounds: tuple[int, ...], window: int | None, dtype: torch.dtype
) -> None:
    ours = heads(requires_grad=True, dtype=dtype)
    theirs = [each.detach().float().requires_grad_() for each in ours]
    limits: Any = {"sliding_window": window}
    if bounds == BOUNDS:
        limits |= {"cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32), "max_length_q": 5}
    found, _ = varlen_attention.varlen_attention(layer(), *ours, None, **limits)
    expected = masked(*theirs, bounds, window or TOKENS)
    close: Any = {} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.02}  # bf16 has 8 significant bits
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, **close)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.float(), other.grad, **close)


@pytest.mark.parametrize(("tokens", "flash"), [(8, False), (varlen_attention._SHORT + 1, True)])
def test_short_samples_in_bf16_need_no_flash_kernel_on_a_cpu(tokens: int, flash: bool) -> None:
    query, key, value = (torch.randn(1, count, tokens, CHANNELS, dtype=torch.bfloat16) for count in (HEADS, 2, 2))
    with torch.profiler.profile() as profile:
        varlen_attention.varlen_attention(layer(), query, key, value, None)
    assert any("flash_attention" in event.name for event in profile.events()) == flash


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("grouped", [True, False])  # False: of torch 2.11
def test_a_gpu_gets_the_bounds_of_the_samples(window, grouped, monkeypatch) -> None:
    from torch.nn.attention import varlen

    asked: list[Any] = []
    own = varlen.varlen_attn

    def recent(*tensors: Any, enable_gqa: bool, **options: Any) -> Any:
        asked.append((tensors, options))
        return own(*tensors, enable_gqa=enable_gqa, **options)

    def earlier(*tensors: Any, window_size: Any, scale: Any) -> Any:
        asked.append((tensors, {"window_size": window_size}))
        return own(*tensors, window_size=window_size, scale=scale)

    pretend_driver(monkeypatch)
    monkeypatch.setattr(varlen, "varlen_attn", recent if grouped else earlier)
    with FakeCuda():
        query, key, value = (each.to(CUDA) for each in heads(dtype=torch.bfloat16))
        limits: Any = {"cu_seq_lens_q": torch.tensor(BOUNDS, dtype=torch.int32).to(CUDA), "max_length_q": 5}
        found, _ = varlen_attention.varlen_attention(
            layer(), query.float(), key, value, None, sliding_window=window, **limits
        )
    assert (found.shape, found.device, found.dtype) == ((ROWS, TOKENS, HEADS, CHANNELS), CUDA, torch.bfloat16)
    (((packed, keys, _, starts, _, longest, _), options),) = asked
    assert packed.shape == (ROWS * TOKENS, HEADS, CHANNELS)
    assert keys.shape[1] == (2 if grouped else HEADS)
    assert (len(starts), longest) == (len(BOUNDS), 5)
    assert options["window_size"] == (-1 if window is None else window - 1, 0)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.ones(HEADS)}, {"is_causal": False}]
)
def test_another_kind_of_attention_is_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attention varlen has no dropout"):
        varlen_attention.varlen_attention(layer(), *heads(), None, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_llms_of_many_kinds_compute_the_same_without_masks(kind: str, monkeypatch) -> None:
    """Packed in one row and padded on the right; Gemma 2 caps its products and keeps its own attention."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL_LLM, **KINDS[kind], vocab_size=64)
    whole = bridge_world.widen(AutoModelForCausalLM.from_config(config).eval(), 0.3)
    llm = whole.base_model
    lengths = (30, 7, 19)
    ids = [torch.randint(3, 64, (1, length)) for length in lengths]
    with torch.no_grad():
        alone = [llm(input_ids=each, use_cache=False).last_hidden_state[0] for each in ids]
        assert can_replace_sdpa(llm, bf16=False) == (kind != "gemma2")
        if kind == "gemma2":
            return
        _replace_sdpa(SimpleNamespace(model=SimpleNamespace(language_model=llm)))
        assert llm.config._attn_implementation == NAME
        monkeypatch.setattr("transformers.masking_utils.sdpa_mask", None)
        bounds = torch.tensor([0, 30, 37, 56], dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        limits: Any = {"cu_seq_lens_q": bounds, "max_length_q": 30}
        packed = llm(input_ids=torch.cat(ids, 1), position_ids=positions, use_cache=False, **limits)
        padded = torch.cat([F.pad(each, (0, 30 - each.shape[1])) for each in ids])
        mask = torch.arange(30) < torch.tensor(lengths)[:, None]
        rows = llm(input_ids=padded, attention_mask=mask.long(), use_cache=False).last_hidden_state
    torch.testing.assert_close(packed.last_hidden_state[0], torch.cat(alone), atol=1e-4, rtol=1e-3)
    for row, own in zip(rows, alone, strict=True):
        torch.testing.assert_close(row[: len(own)], own, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("recomputed", [False, True])
def test_losses_and_gradients_of_a_llava_stay_the_same(recomputed: bool, parts: Any) -> None:
    model, processor, items = copy.deepcopy(parts)
    model.train()
    expected = learned(model, batch_of(items, processor))
    _replace_sdpa(model)
    assert model.model.language_model.config._attn_implementation == NAME
    assert NAME not in model.config.to_json_string()
    assert _packed_length(model, 100, "instruct", StageConfig(packing=True)) == math.inf
    if recomputed:
        recompute_layers(model)
    for room in (None, math.inf):
        loss, gradients = learned(model, batch_of(items, processor, room))
        assert loss == pytest.approx(expected[0], abs=1e-5)
        for name, value in expected[1].items():
            torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_sdpa_is_replaced_where_the_kernel_exists(parts: Any, monkeypatch) -> None:
    llm = parts[0].model.language_model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert can_replace_sdpa(llm, bf16=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert can_replace_sdpa(llm, bf16=True)
    assert not can_replace_sdpa(llm, bf16=False)  # the kernel has no float32
    with monkeypatch.context() as old:
        old.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
        assert not can_replace_sdpa(llm, bf16=True)
    with monkeypatch.context() as old:
        old.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, *, is_causal: query)  # of torch 2.10
        assert not can_replace_sdpa(llm, bf16=True)
    for field, value in (("attention_dropout", 0.1), ("_attn_implementation_internal", "eager")):
        with monkeypatch.context() as other:
            other.setattr(llm.config, field, value)
            assert not can_replace_sdpa(llm, bf16=True)
