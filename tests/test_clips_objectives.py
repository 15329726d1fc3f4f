"""The recipes of this suite's newer objectives: what they contrast, predict and start from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from clips.encoder import write_encoder
from clips.method.clips_model import ClipsModel, ModelConfig, build_model
from clips.method.recipes import Recipe, RecipeConfig
from clips.model.architectures import CaptionerConfig

SMALL = CaptionerConfig(width=16, num_heads=2, num_layers=1, max_length=20)


def built(name: str, *, pretrained: Path | None = None, **settings: object) -> ClipsModel:
    model = ModelConfig(context_length=12, pretrained=None if pretrained is None else str(pretrained))
    return build_model(model, RecipeConfig(name=name, captioner=SMALL, **settings), seed=0)


# SigLIP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "positives", "captions"),
    [("siglip", ("web",), False), ("siglip_captions", ("web", "partial"), True)],
)
def test_siglip_starts_at_its_papers_scale_and_bias(name: str, positives: tuple[str, ...], captions: bool):
    model = built(name)
    assert model.clip.logit_scale.item() == pytest.approx(math.log(10))
    assert model.clip.logit_bias.item() == -10
    assert model.recipe.spec.positives == positives
    assert model.recipe.spec.loss == "sigmoid"
    assert (model.captioner is not None) == captions
    assert Recipe(RecipeConfig(name=name, loss="softmax")).spec.loss == "softmax"


@pytest.mark.parametrize(("before", "after"), [("clip", "siglip"), ("siglip", "clip")])
def test_another_type_of_loss_starts_with_its_own_scale_and_bias(tmp_path: Path, capsys, before: str, after: str):
    source = built(before)
    with torch.no_grad():
        source.clip.logit_scale.fill_(4.0)
    write_encoder(source, tmp_path)
    model, fresh = built(after, pretrained=tmp_path), built(after)
    assert model.clip.logit_scale.item() == fresh.clip.logit_scale.item() != 4.0
    assert (model.clip.logit_bias is None) == (after == "clip")
    assert torch.equal(model.clip.token_embedding.weight, source.clip.token_embedding.weight)
    assert "scale and bias of the logits start anew" in capsys.readouterr().err
    assert built(before, pretrained=tmp_path).clip.logit_scale.item() == 4.0
