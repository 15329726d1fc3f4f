"""Initial weights of a process; frozen weights stay equal: in bf16, in batches with text, in the cache on disk."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from clips.core.cache import TensorShards
from clips.core.run_log import RunLog
from llava_bridge.data import read_samples
from llava_bridge.data.batches import ConversationCollator, ConversationDataset
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.training import launch
from llava_bridge.training import stage as one_stage
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import detached_frozen_encoder, enable_feature_cache, recompute_layers, split_parts
from llava_bridge.training.stage import fit_bf16
from llava_bridge.training.train_config import LoraConfig, StageConfig
from llava_bridge.training.trainer import FlushCallback


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_frozen_llm_is_bit_for_bit_as_it_was_after_bf16(stored, tmp_path, bridge_parts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = AutoModelForCausalLM.from_pretrained(bridge_parts.llm).to(stored)
    bridge_world.save(tmp_path / "llm", llm, AutoTokenizer.from_pretrained(bridge_parts.llm))
    parts = bridge_parts._replace(llm=tmp_path / "llm")
    stage = bridge_world.align_stage(bridge_parts.talk, max_steps=2)
    fields: dict[str, Any] = {"stages": ["align"], "align": stage, "precision": "bf16"}
    bridge_world.train(bridge_world.instruct_file(tmp_path, "run", parts, {}, **fields))
    before, found = (
        {name.partition("layers.")[2]: value for name, value in weights.items() if f"{of}.layers." in name}
        for of, weights in (
            ("model", llm.state_dict()),
            ("language_model.model", bridge_world.weights(tmp_path / "run")),
        )
    )
    assert found.keys() == before.keys()
    for name, value in found.items():
        assert torch.equal(value.float(), before[name].float()), name
    assert {value.dtype for value in found.values()} == {stored}
    stated = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stated["dtype"] == stated["text_config"]["dtype"] == str(stored).removeprefix("torch.")
    assert stated["vision_config"]["dtype"] == "float32"


def test_parts_that_are_bf16_and_parts_that_are_not() -> None:
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    assert not fit_bf16(layer.parameters())
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(weight.bfloat16())
    assert fit_bf16(layer.parameters())
    assert not fit_bf16([*layer.parameters(), torch.tensor(1 + 2**-8)])


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", ["TRUNK", "RESNET"])
def test_batch_norms_that_learn_are_not_shown_the_blank(kind, recomputed, tmp_path, bridge_llm):
    bridge_world.make_encoder(tmp_path / "trunk", getattr(bridge_world, kind))
    model, _ = build_llava(LlavaParts(encoder=str(tmp_path / "trunk"), llm=str(bridge_llm)))
    model.requires_grad_(True).train()
    if recomputed:
        recompute_layers(model)
    before = {name: value.clone() for name, value in model.model.vision_tower.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    text = torch.tensor([[1, 40, 41, 42]])
    LlavaLoss(model)(input_ids=text, labels=text)["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in model.model.vision_tower.named_buffers())
    assert all(module.training for module in model.model.vision_tower.modules())
    assert all(weight.grad is not None for weight in model.model.multi_modal_projector.parameters())


def test_a_detached_encoder_is_called_and_reattached(bridge_encoder, bridge_llm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm)))
    setup: Any = SimpleNamespace(model=model, parts=split_parts(model), square_images=False)
    names = list(model.state_dict())
    pixels = torch.zeros(1, 3, 32, 32)
    before = torch.cat(tuple(model.get_image_features(pixels).pooler_output))
    with detached_frozen_encoder(setup):
        assert not any("vision_tower" in name for name, _ in model.named_parameters())
        model.to(torch.bfloat16)
        assert model.model.vision_tower.dtype == torch.float32
        model.float()
    assert list(model.state_dict()) == names
    after = torch.cat(tuple(model.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(after, before, atol=0.05, rtol=0.05)
    model.requires_grad_(True)
    with detached_frozen_encoder(setup):  # it learns
        assert list(model.state_dict()) == names


def make_setup(parts: bridge_world.Parts, samples: int | None = None, **fields: Any) -> Any:
    """Of a stage, with the first ``samples`` of the talk."""
    model, processor = build_llava(LlavaParts(encoder=str(parts.encoder), llm=str(parts.llm), **fields))
    talk = read_samples(*bridge_world.source(parts.talk))[:samples]
    data = ConversationDataset(talk, make_conversation_encoder(model, processor), 2000)
    collator = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id)
    return SimpleNamespace(model=model, collator=collator, dataset=data)


@pytest.mark.parametrize("tiles", [False, True])
def test_a_step_with_cached_features_reads_no_file_and_no_pixels(tiles, bridge_parts, tmp_path, monkeypatch, capsys):
    """The loader's workers hash the pixels and read; losses are those of computed features, bit for bit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    setup = make_setup(bridge_parts, **({"image_aspect_ratio": "anyres"} if tiles else {}))
    model, data, tower = setup.model, setup.dataset, setup.model.model.vision_tower

    def losses() -> list[float]:
        loader = DataLoader(data, batch_size=3, collate_fn=setup.collator, num_workers=2)
        batches = [{name: value for name, value in batch.items() if name != "invalid_samples"} for batch in loader]
        with monkeypatch.context() as step:
            if "cached_features" in batches[0]:
                step.setattr(TensorShards, "get", None)
            step.setattr("llava_bridge.training.setup.tensor_digest", None)
            return [LlavaLoss(model)(**batch)["loss"].item() for batch in batches]

    plain = losses()
    enable_feature_cache(setup, torch.float32, "align")
    needed = len(data) * tower.feature_bytes(torch.float32) / 1e9
    assert f", {needed:.2f} GB for one image or tile of each sample; " in capsys.readouterr().err
    assert losses() == plain
    assert {each.nbytes for each in tower.feature_shards.collected.values()} == {tower.feature_bytes(torch.float32)}
    assert len(tower.feature_shards.collected) == len(bridge_world.COLORS) * (3 if tiles else 1)
    tower.feature_shards.flush()
    monkeypatch.setattr(tower, "compute_states", None)
    assert losses() == plain


@pytest.mark.parametrize("workers", [0, 1])
def test_the_second_pass_over_the_data_does_not_run_the_encoder(workers, bridge_parts, tmp_path, monkeypatch):
    """With a shard that is not full, of which the loader's workers know nothing before it is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    samples = len(bridge_world.COLORS)
    setup = make_setup(bridge_parts, samples)
    enable_feature_cache(setup, torch.float32, "align")
    tower = setup.model.model.vision_tower
    compute, computed, losses = tower.compute_states, [], []
    monkeypatch.setattr(tower, "compute_states", lambda *inputs: computed.append(len(inputs[0])) or compute(*inputs))
    twice = Subset(setup.dataset, [*range(samples), *range(samples)])
    for batch in DataLoader(twice, batch_size=2, collate_fn=setup.collator, num_workers=workers):
        del batch["invalid_samples"]
        losses.append(LlavaLoss(setup.model)(**batch)["loss"].item())
    assert computed == [2] * (samples // 2)
    assert losses[:2] == losses[2:]
    flush = FlushCallback(tower.feature_shards, steps=2)
    for step, files in ((1, 0), (2, 1)):
        flush.on_step_end(None, SimpleNamespace(global_step=step), None)
        assert len(list(tower.feature_shards.directory.glob("*"))) == files
    tower.feature_shards.add("another", torch.ones(2))
    flush.on_save(None, None, None)
    assert len(list(tower.feature_shards.directory.glob("*"))) == 2


def test_only_the_images_of_a_batch_that_the_cache_lacks_are_computed(bridge_parts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, _ = build_llava(LlavaParts(encoder=str(bridge_parts.encoder), llm=str(bridge_parts.llm)))
    tower: Any = model.model.vision_tower
    layer = model.config.vision_feature_layer
    pixels = torch.randn(3, 3, tower.config.image_size, tower.config.image_size)
    wanted = tower(pixels, output_hidden_states=True).hidden_states[layer]
    tower.cache_features(layer, torch.float32)
    compute, computed = tower.compute_states, []
    monkeypatch.setattr(tower, "compute_states", lambda *inputs: computed.append(len(inputs[0])) or compute(*inputs))
    for rows in ([1], [0, 1, 2], [2, 0]):
        with tower.with_features(None, [f"key{row}" for row in rows]):
            states = tower(pixels[rows], output_hidden_states=[layer]).hidden_states[layer]
        torch.testing.assert_close(states, wanted[rows])
    assert computed == [1, 2]


def test_each_process_uses_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    asked: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda dist_backend, **_: asked.append(dist_backend))
    launch.init_process_group()
    assert asked == [3, "nccl"]  # the device first, or all would join with the first GPU


@pytest.mark.parametrize("drawn_before", [0, 7])
def test_adapters_are_initialized_from_the_seed_alone(drawn_before, tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def set_up(*_: Any, **__: Any) -> None:
        torch.rand(drawn_before)  # a projector is new, or read from the stage before

    def choose_what_learns(*_: Any) -> None:
        raise Begun(torch.rand(1).item())

    monkeypatch.setattr(one_stage, "setup_stage", set_up)
    monkeypatch.setattr(one_stage, "check_same_everywhere", lambda *_: None)
    monkeypatch.setattr(one_stage, "set_trainable_parts", choose_what_learns)
    stage = StageConfig(lora=LoraConfig())
    config = SimpleNamespace(seed=5, precision="fp32", stage=lambda _: stage)
    inputs: Any = SimpleNamespace(config=config, work=tmp_path)
    with pytest.raises(Begun) as begun:
        one_stage.train_stage(inputs, "instruct", stop=None, run_log=RunLog(tmp_path))  # type: ignore[arg-type]
    torch.manual_seed(5)
    assert begun.value.args == (torch.rand(1).item(),)


def test_merged_adapters_add_alpha_over_r_times_their_product() -> None:
    """The formula of LoRA (arXiv 2106.09685, section 4.1)."""
    from llava_bridge.training.lora import add_lora
    from llava_bridge.training.train_config import LoraConfig

    model = torch.nn.ModuleDict({"language_model": torch.nn.Sequential(torch.nn.Linear(6, 5))})
    before = model["language_model"][0].weight.detach().clone()
    adapted = add_lora(model, LoraConfig(r=2, lora_alpha=6, lora_dropout=0.0))
    down, up = (weight for name, weight in adapted.named_parameters() if "lora_" in name)
    torch.nn.init.normal_(up)
    wanted = before + 6 / 2 * (up @ down).detach()
    torch.testing.assert_close(adapted.merge_and_unload()["language_model"][0].weight.detach(), wanted)
