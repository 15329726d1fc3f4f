"""Muon: which parameters it updates, by how much, and when it does not."""

from __future__ import annotations

import re
from pathlib import Path

import clips_world
import pytest
import torch

from clips.errors import UserError
from clips.method.clips_model import ClipsModel, ModelConfig, build_model
from clips.method.muon import MuonAdamW
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.method.recipes import RecipeConfig
from clips.model.architectures import CaptionerConfig
from clips.planning.memory import Layout, MemoryModel

CAPTIONER = CaptionerConfig(width=32, num_heads=2, num_layers=2, max_length=12)
MUON = OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.0)


def built() -> ClipsModel:
    model = build_model(ModelConfig(context_length=12), RecipeConfig(name="clips", captioner=CAPTIONER), 0)
    for seed, value in enumerate(model.parameters()):
        value.grad = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    return model


def stepped(model: ClipsModel, config: OptimizerConfig) -> dict[str, torch.Tensor]:
    """The change of each trained parameter by one step."""
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    optimizer = build_optimizer(model, config, model.no_decay_names())
    optimizer.found_inf = optimizer.grad_scale = None
    optimizer.step()
    return {name: value.detach() - before[name] for name, value in model.named_parameters() if name in before}


def muon_names(model: ClipsModel) -> set[str]:
    optimizer = build_optimizer(model, MUON, model.no_decay_names())
    assert isinstance(optimizer, MuonAdamW)
    assert len(optimizer.param_groups) == 3
    inside = {value for group in optimizer.muon.param_groups for value in group["params"]}
    others = {value for group in optimizer.adamw.param_groups for value in group["params"]}
    assert not inside & others
    assert inside | others == {value for value in model.parameters() if value.requires_grad}
    return {name for name, value in model.named_parameters() if value in inside}


def test_muon_updates_the_matrices_of_the_layers_and_nothing_else():
    names = muon_names(built())
    ends = {re.sub(r".*blocks\.\d+\.", "", name) for name in names}
    assert ends == {
        *("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
        *("query.weight", "key_value.weight", "out.weight", "mlp_in.weight", "mlp_out.weight"),
    }
    assert any(name.startswith("clip.visual.") for name in names)
    assert any(name.startswith("clip.transformer.") for name in names)
    assert sum(name.startswith("captioner.blocks.") for name in names) == 2 * 5


def test_a_tower_of_one_layer_has_matrices_and_a_model_without_any_is_rejected():
    """Without an error a convolutional trunk and a text tower of one layer were trained by AdamW."""
    recipe = RecipeConfig(name="clip")
    model = build_model(ModelConfig(architecture="clips-efficientnet", context_length=12), recipe, 0)
    assert {name.partition("resblocks.0.")[0] for name in muon_names(model)} == {"clip.transformer."}
    locked = ModelConfig(architecture="clips-efficientnet", context_length=12, lock_text=True)
    model = build_model(locked, recipe, 0)
    with pytest.raises(UserError, match=r"^optimizer\.name: expected adamw: no layer"):
        build_optimizer(model, MUON, model.no_decay_names())


def test_a_muon_update_is_nearly_orthogonal_and_the_rest_is_adamws():
    model = built()
    names, changes, plain = (
        muon_names(model),
        stepped(built(), MUON),
        stepped(built(), OptimizerConfig(learning_rate=0.01, weight_decay=0.0)),
    )
    for name, change in changes.items():
        if name in names:
            values = torch.linalg.svdvals(change) / (0.01 * 0.2 * max(change.shape) ** 0.5)
            assert values.max() < 1.4, name
            assert (values > 0.5).float().mean() > 0.95, name  # five iterations do not reach the smallest ones
        else:
            assert torch.equal(change, plain[name]), name


def test_a_step_that_is_not_finite_changes_nothing():
    model = built()
    optimizer = build_optimizer(model, MUON, model.no_decay_names())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not torch.equal(model.clip.visual.transformer.resblocks[0].mlp.c_fc.weight, before[_FIRST])
    optimizer.zero_grad()
    assert all(value.grad is None for value in model.parameters() if value.requires_grad)


_FIRST = "clip.visual.transformer.resblocks.0.mlp.c_fc.weight"


@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero3"])
def test_sharded_training_with_muon_is_rejected(tmp_path: Path, strategy: str):
    fields = {"optimizer": {"name": "muon"}, "distributed": {"strategy": strategy}}
    with pytest.raises(UserError, match=rf"optimizer\.name: expected adamw with distributed\.strategy: {strategy}"):
        clips_world.train_config(tmp_path, tmp_path / "run", **fields)


def test_the_plan_counts_one_moment_for_each_matrix(tmp_path: Path):
    layout = Layout(parallel="ddp", count=1, checkpointing=0)
    sizes = {
        name: MemoryModel(clips_world.train_config(tmp_path, tmp_path / "run", optimizer={"name": name}))
        for name in ("adamw", "muon")
    }
    adamw, muon = (model.parts(layout, local=4, at_once=4)["optimizer"] for model in sizes.values())
    model = sizes["muon"].model
    matrices = muon_names(model)
    assert adamw - muon == 4 * sum(value.numel() for name, value in model.named_parameters() if name in matrices)
