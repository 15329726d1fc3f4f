"""The recipes of this suite's newer objectives: what they contrast, predict and start from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_clips_losses import naive_sigmoid, naive_softmax, unit

from clips.encoder import write_encoder
from clips.errors import UserError
from clips.method.clips_model import ClipsModel, ModelConfig, build_model
from clips.method.objectives import compute_losses
from clips.method.recipes import Recipe, RecipeConfig
from clips.model.architectures import CONTRASTIVE_LOSSES, CaptionerConfig
from clips.model.tokenizer import ClipsTokenizer
from clips.typed_data import from_plain

TOKENIZER = ClipsTokenizer(16)
SMALL = CaptionerConfig(width=16, num_layers=1, max_length=20)


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
    assert "scale and bias of the logits keep their initial values" in capsys.readouterr().err
    assert built(before, pretrained=tmp_path).clip.logit_scale.item() == 4.0


# Several sentences ------------------------------------------------------------------------------------------------


SYNTHETIC = "A dog runs on grass. It is brown! A ball lies near. The sky is gray."


def prepared(config: RecipeConfig, *, web: str = "my dog", synthetic: str = SYNTHETIC, seed: int = 0) -> dict[str, str]:
    sample = Recipe(config).prepare(web, synthetic, np.random.default_rng(seed), TOKENIZER)
    return {name: TOKENIZER.decode(row) for name, row in sample.items() if row.ndim == 1}


def test_sentences_are_sampled_without_repetition():
    drawn = [prepared(RecipeConfig(name="sentences"), seed=seed) for seed in range(60)]
    assert {tuple(texts) for texts in drawn} == {("web", "sentences_1", "sentences_2", "sentences_3")}
    assert all(texts["web"] == "my dog" and len(set(texts.values())) == 4 for texts in drawn)
    first = [texts["sentences_1"] for texts in drawn]
    assert set(first) == {"a dog runs on grass", "it is brown", "a ball lies near", "the sky is gray"}
    assert max(first.count(text) for text in first) < 30


def test_a_caption_of_fewer_sentences_repeats_them_and_none_is_the_web_caption():
    config = RecipeConfig(name="sentences", num_sentences=5)
    repeated = list(prepared(config, synthetic="One cup. Two cups.").values())[1:]
    assert sorted(repeated.count(text) for text in set(repeated)) == [2, 3]
    assert set(prepared(config, synthetic="...").values()) == {"my dog"}


@pytest.mark.parametrize("loss", CONTRASTIVE_LOSSES)
def test_the_loss_of_several_texts_is_that_of_a_naive_loop(loss: str):
    recipe = Recipe(RecipeConfig(name="sentences", num_sentences=2, loss=loss))
    names = ("image", "web", "sentences_1", "sentences_2")
    outputs = {name: unit(4, 6, seed=seed) for seed, name in enumerate(names)}
    outputs |= {"logit_scale": torch.tensor(5.0), "logit_bias": torch.tensor(-1.0)}
    image, *texts = (outputs[name] for name in names)
    naive = {"softmax": naive_softmax, "sigmoid": naive_sigmoid}[loss]
    mean = sum(naive(image, [text], 5.0, -1.0) for text in texts) / 3
    assert compute_losses(recipe, outputs)["loss"].item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sentences", "num_sentences": 0}, "^num_sentences: expected an integer of at least 1 or null, got 0"),
    ],
)
def test_invalid_settings_name_their_field(fields: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        from_plain(RecipeConfig, fields)
