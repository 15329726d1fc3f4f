"""The bridge's loss and its packed rows against transformers' own, sample by sample."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import bridge_world
import numpy as np
import pytest
import torch
from bridge_world import SMALL_LLM
from clips_world import Largest
from fake_cuda import CUDA, to_fake_cuda
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaModel

from clips.errors import UserError
from clips.model import losses
from clips.model.compute import compile_modules
from clips.model.losses import linear_cross_entropy
from llava_bridge.data import read_samples
from llava_bridge.data.batches import ConversationCollator, ConversationDataset, pack_lengths
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.training.loss import LlavaLoss, chunked_cross_entropy
from llava_bridge.training.setup import (
    modules_to_compile,
    packed_length,
    recompute_layers,
    set_attention,
    supports_packing,
)
from llava_bridge.training.train_config import StageConfig

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "smollm3": {"pad_token_id": 0},
}


@pytest.fixture(scope="module")
def parts(bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """A LLaVA, its processor, and samples of several lengths: with an image, with two, with none."""
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm), seed=3))
    (source,) = bridge_world.source(bridge_talk)
    data = ConversationDataset(read_samples(source), make_conversation_encoder(model, processor), 128)
    return bridge_world.widen(model, 0.2), processor, [data[index] for index in range(5)]


def batch_of(items: list[dict[str, Any]], processor: Any, room: float | None = None) -> dict[str, torch.Tensor]:
    batch = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id, room)(items)
    batch.pop("invalid_samples")
    return batch


def learned(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradients of projector and LLM."""
    model.zero_grad()
    model.requires_grad_(True)
    loss = LlavaLoss(model)(**batch)["loss"]
    loss.backward()
    named = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss.item(), named


TEXT = {"input_ids": [1, 40, 41, 42], "labels": [-100, -100, 41, 42], "images": [], "invalid_samples": []}


def test_the_loss_and_its_gradients_are_those_of_transformers(parts: tuple[Any, Any, Any]) -> None:
    model, processor, items = parts
    batch = batch_of(items, processor)
    loss, gradients = learned(model, batch)
    model.zero_grad()
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    assert lengths.unique().numel() > 1
    mask = torch.arange(max(lengths)) < lengths[:, None]
    whole = model(**batch, attention_mask=mask.long()).loss
    whole.backward()
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    wanted = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)
    count = int((batch["labels"] != -100).sum())  # over all processes' tokens: the sum by their number
    shared = LlavaLoss(model)(**batch, num_items_in_batch=torch.tensor(3 * count))["loss"]
    assert 3 * shared.item() == pytest.approx(loss, rel=1e-5)


def test_a_batch_without_images_runs_the_projector_but_gives_it_no_gradient(parts: tuple[Any, Any, Any]) -> None:
    model, processor, _ = parts
    _, gradients = learned(model, batch_of([TEXT, TEXT], processor))
    projector = {name: value for name, value in gradients.items() if "multi_modal_projector" in name}
    assert len(projector) == 4
    assert not any(value.any() for value in projector.values())
    assert any(value.any() for name, value in gradients.items() if "language_model" in name)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("fit", ["squash", "anyres"])
def test_text_and_images_go_through_the_modules_in_the_same_order(
    fit: str, recomputed: bool, bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path
) -> None:
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm), image_aspect_ratio=fit))  # type: ignore[arg-type]
    (source,) = bridge_world.source(bridge_talk)
    shown = ConversationDataset(read_samples(source), make_conversation_encoder(model, processor), 512)[0]
    model.requires_grad_(True).train()
    if recomputed:
        recompute_layers(model)
    order: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    found = []
    for items in ([shown], [TEXT]):
        learned(model, batch_of(items, processor))
        found.append(order.copy())
        order.clear()
    assert found[1] == found[0]
    assert found[0].count("model.vision_tower.tower.visual.transformer.resblocks.0") == 1 + recomputed


def test_the_trial_of_packing_runs_on_the_device_of_the_llm() -> None:
    class Llm(torch.nn.Module):
        device, config = torch.device("meta"), SimpleNamespace(_attn_implementation="sdpa")

        def forward(self, **inputs: Any) -> SimpleNamespace:
            devices.append({value.device for value in inputs.values() if isinstance(value, torch.Tensor)})
            return SimpleNamespace(last_hidden_state=torch.zeros(1, inputs["input_ids"].shape[1], 2))

    devices: list[set[torch.device]] = []
    model = SimpleNamespace(model=SimpleNamespace(language_model=Llm()))
    supports_packing(model)
    assert devices == [{torch.device("meta")}] * 2


@pytest.mark.parametrize(("room", "rows"), [(60, 5), (128, 3), (10_000, 1)])
def test_packed_samples_learn_what_they_do_alone(parts: tuple[Any, Any, Any], room: int, rows: int) -> None:
    """Loss and gradients, which differ for samples that see the ones before them in their row."""
    model, processor, items = parts
    assert supports_packing(model)
    packed = batch_of(items, processor, room)
    assert len(packed["input_ids"]) == rows
    share = {"num_items_in_batch": len(packed["supervised"])}
    alone = [learned(model, batch_of([item], processor) | share) for item in items]
    loss, gradients = learned(model, packed)
    assert loss == pytest.approx(sum(each for each, _ in alone), abs=1e-5)
    for name, value in gradients.items():
        torch.testing.assert_close(value, sum(own[name] for _, own in alone), atol=1e-5, rtol=1e-4, msg=name)
    if rows == len(items):
        return
    del packed["position_ids"]
    mixed, wrong = learned(model, packed)
    assert mixed != pytest.approx(loss, abs=1e-3)
    assert max((wrong[name] - value).abs().max() for name, value in gradients.items()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_packing_keeps_samples_apart_in_llms_of_many_kinds(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL_LLM, **KINDS[kind], vocab_size=64)
    llm = bridge_world.widen(AutoModelForCausalLM.from_config(config).eval(), 0.3)
    dice = np.random.default_rng(1)
    items = [
        {
            "input_ids": (ids := dice.integers(3, 64, length).tolist()),
            "labels": ids,
            "images": [],
            "invalid_samples": [],
        }
        for length in (30, 7, 19, 24, 3)
    ]
    packed = ConversationCollator(None, 0, 50)(items)
    rows = pack_lengths([len(item["input_ids"]) for item in items], 50)
    with torch.no_grad():
        given = {name: packed[name] for name in ("input_ids", "position_ids")}
        hidden = llm.base_model(**given, use_cache=False).last_hidden_state
        for row, members in enumerate(rows):
            start = 0
            for index in members:
                tokens = torch.tensor([items[index]["input_ids"]])
                alone = llm.base_model(input_ids=tokens).last_hidden_state[0]
                torch.testing.assert_close(hidden[row, start : start + len(alone)], alone, atol=1e-4, rtol=1e-3)
                start += len(alone)


class Mixes(torch.nn.Module):
    """An LLM whose state runs on from sample to sample."""

    device = torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="sdpa")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=input_ids.float().cumsum(1)[..., None])


def test_an_llm_that_mixes_packed_samples_is_rejected() -> None:
    llava = SimpleNamespace(
        model=SimpleNamespace(language_model=Mixes()),
        config=SimpleNamespace(text_config=SimpleNamespace(model_type="mixes")),
    )
    with pytest.raises(UserError, match=r"instruct\.packing: expected false, since this LLM \(mixes\) mixes samples"):
        packed_length(llava, 100, "instruct", StageConfig(packing=True))
    assert packed_length(llava, 100, "instruct", StageConfig()) is None


@pytest.mark.parametrize("name", ["flash_test", "kernels-test/flash-attn2"])  # a package, a kernel of the Hub
def test_the_trial_of_packing_does_not_ask_flash_attention(name: str) -> None:
    from transformers import AttentionInterface

    def flash(*_: Any, **__: Any) -> None:
        raise RuntimeError("FlashAttention only supports CUDA, fp16 and bf16")

    AttentionInterface.register(name, flash)
    llm = LlamaModel(LlamaConfig(**SMALL_LLM, vocab_size=64))
    llm.config._attn_implementation = name
    llava = SimpleNamespace(model=SimpleNamespace(language_model=llm), config=SimpleNamespace(text_config=llm.config))
    assert packed_length(llava, 100, "instruct", StageConfig(packing=True)) == math.inf  # one row, however long
    assert llm.config._attn_implementation == name
    with pytest.raises(RuntimeError, match="FlashAttention"):
        llm(input_ids=torch.arange(3)[None])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("installed", [True, False])
def test_flash_attention_is_used_in_bf16_where_it_is_installed(installed: bool, precision: Any, monkeypatch) -> None:
    llm = LlamaModel(LlamaConfig(**SMALL_LLM, vocab_size=64))
    monkeypatch.setattr("llava_bridge.training.setup.is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(llm, "set_attn_implementation", asked := Mock())
    for wanted in (None, "eager"):
        config: Any = SimpleNamespace(attn_implementation=wanted, precision=precision)
        set_attention(llm, config)
    expected = ["flash_attention_2"] if installed and precision == "bf16" else []
    assert [call.args[0] for call in asked.call_args_list] == [*expected, "eager"]


def test_flash_attention_gets_the_bounds_of_samples(parts, monkeypatch) -> None:
    """One row, whose attention reads the bounds of samples only, gives the loss and gradients of padded rows."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def flash(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **options: Any) -> Any:
        ends, longest = options["cu_seq_lens_q"], options["max_length_q"]
        assert ends.dtype == torch.int32
        assert ends.tolist() == options["cu_seq_lens_k"].tolist()
        assert longest == options["max_length_k"] == max(ends.diff())
        pieces = []
        for start, end in itertools.pairwise(ends.tolist()):
            sample = [each[:, :, start:end] for each in (query, key, value)]
            pieces.append(sdpa_attention_forward(module, *sample, None, is_causal=True))
        return torch.cat([piece[0] for piece in pieces], dim=1), None

    model, processor, items = parts
    one = learned(model, batch_of(items, processor))
    AttentionInterface.register("flash_pieces", flash)
    monkeypatch.setattr(model.config.text_config, "_attn_implementation", "flash_pieces")
    row = batch_of(items, processor, math.inf)
    assert len(row["input_ids"]) == 1
    other = learned(model, row)
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    for name, value in one[1].items():
        torch.testing.assert_close(other[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_packing_by_hand() -> None:
    assert pack_lengths([5, 9, 2, 4, 12], 10) == [[4], [1], [0], [3, 2]]
    assert pack_lengths([5, 5, 5, 5], 12) == [[0, 2], [1, 3]]  # even, not 12 and 8
    assert pack_lengths([3], 2) == [[0]]
    lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
    rows = pack_lengths(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 64
    fullest = max(sum(lengths[index] for index in row) for row in rows)
    assert sum(lengths) / (fullest * len(rows)) > 0.9


def test_a_packed_batch_by_hand() -> None:
    first = {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "images": ["a"], "invalid_samples": []}
    second = {"input_ids": [8, 9], "labels": [-100, 9], "images": ["b", "c"], "invalid_samples": [("x", "torn")]}
    third = {"input_ids": [4, 4, 4, 4], "labels": [-100] * 3 + [4], "images": [], "invalid_samples": []}

    def names(pictures: list[str], return_tensors: str) -> dict[str, Any]:
        return {"pixel_values": pictures}

    batch = ConversationCollator(names, 0, 5)([second, first, third])
    assert batch["input_ids"].tolist() == [[4, 4, 4, 4, 0], [5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, -100], [-100, -100, 7, -100, 9]]
    assert batch["pixel_values"] == ["a", "b", "c"]  # in the order in which the rows mention them
    assert batch["invalid_samples"] == [("x", "torn")]
    assert "attention_mask" not in batch


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="no liger_kernel (the extra kernels)")
def test_ligers_kernel_computes_the_same_loss() -> None:
    """On the CPU, by Triton's interpreter, which must be chosen before Triton is imported."""
    code = """
import torch
from clips.model.losses import linear_cross_entropy
from llava_bridge.training.loss import liger_cross_entropy
torch.manual_seed(0)
for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
    hidden, weight = (torch.randn(rows, 16, dtype=dtype, requires_grad=True) for rows in (13, 50))
    labels, both = torch.randint(0, 50, (13,)), []
    for loss in (liger_cross_entropy, linear_cross_entropy):
        hidden.grad = weight.grad = None
        value = loss(hidden, weight, labels)
        (value / 7).backward()
        assert value.dtype == torch.float32
        both.append((value, hidden.grad, weight.grad))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, atol=close, rtol=close)
print("equal")
"""
    assert "equal" in bridge_world.python(code, TRITON_INTERPRET="1")


def test_a_gpu_computes_the_loss_in_larger_chunks() -> None:
    """Each adds to the weights' gradient once; Qwen 3 has 151,936 tokens."""
    hidden, head = torch.randn(400, 128), torch.nn.Linear(128, 151_936, bias=False)
    labels, chunks = torch.zeros(400, dtype=torch.long), losses.ChunkCrossEntropy()
    rows: list[int] = []
    chunks.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    linear_cross_entropy(hidden, head.weight, labels, cross_entropy=chunks)
    assert rows == [110, 110, 110, 70]
    with to_fake_cuda(head):
        linear_cross_entropy(hidden.to(CUDA), head.weight, labels.to(CUDA), cross_entropy=chunks)
    assert rows[4:] == [400]


def test_ligers_kernel_is_used_on_a_gpu_where_it_is_installed(monkeypatch) -> None:
    used: list[torch.Size] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "found")
    monkeypatch.setattr("llava_bridge.training.loss.liger_cross_entropy", lambda hidden, *_: used.append(hidden.shape))
    hidden, labels, head = torch.randn(7, 8), torch.arange(7), torch.nn.Linear(8, 11, bias=False)
    chunked_cross_entropy(hidden, head, labels)
    assert used == []
    with to_fake_cuda(head):
        chunked_cross_entropy(hidden.to(CUDA), head, labels.to(CUDA))
    assert used == [(7, 8)]


def test_an_output_layer_with_a_bias_and_one_in_bf16() -> None:
    torch.manual_seed(0)
    hidden, labels = torch.randn(7, 8, requires_grad=True), torch.arange(7)
    head = torch.nn.Linear(8, 11)
    wanted = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="sum")
    torch.testing.assert_close(chunked_cross_entropy(hidden, head, labels), wanted)
    one = torch.autograd.grad(chunked_cross_entropy(hidden, head, labels), [hidden, head.weight, head.bias])
    for got, want in zip(one, torch.autograd.grad(wanted, [hidden, head.weight, head.bias]), strict=True):
        torch.testing.assert_close(got, want)
    half = torch.nn.Linear(8, 11, bias=False).bfloat16()
    loss = chunked_cross_entropy(hidden.bfloat16(), half, labels)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, [half.weight])
    assert gradient.dtype == torch.bfloat16


def test_the_full_logits_are_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", 10_000)
    hidden = torch.randn(200, 4, requires_grad=True)
    head = torch.nn.Linear(4, 1000, bias=False)
    with Largest() as seen:
        chunked_cross_entropy(hidden, head, torch.arange(200)).backward()
    assert seen.numbers <= 10_000 < 200 * 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(("recomputed", "room"), [(False, None), (True, None), (False, 10_000)])
def test_batches_of_any_length_have_the_graphs_of_the_first_steps(recomputed, room, parts, monkeypatch):
    eager, processor, items = copy.deepcopy(parts)
    eager.train()
    if recomputed:
        recompute_layers(eager)
    compiled = copy.deepcopy(eager)
    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compile_layer(layer, backend="aot_eager"))
    compile_modules(modules_to_compile(compiled))
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    torch._dynamo.reset()  # else graphs of earlier tests count
    before, graphs, lengths = counters["stats"]["unique_graphs"], [], set()
    for step in range(16):
        texts = [{**TEXT, **{key: TEXT[key] * size for key in ("input_ids", "labels")}} for size in (1, step + 2)]
        batch = batch_of([*(items[: 1 + step % 2] if step % 4 else []), *texts], processor, room)
        lengths.add(batch["input_ids"].shape)
        (loss, gradients), (expected, wanted) = learned(compiled, batch), learned(eager, batch)
        assert loss == pytest.approx(expected, abs=1e-5)
        assert gradients.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert len(lengths) > 8
    assert 5 <= graphs[5] == graphs[-1] < 30
