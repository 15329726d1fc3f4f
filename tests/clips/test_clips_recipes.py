from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from clips.encoder import write_encoder
from clips.errors import UserError
from clips.method.clips_model import ModelConfig, build_model, compute_losses, cosine_margin
from clips.method.recipes import CaptionerConfig, Recipe, RecipeConfig
from clips.model.tokenizer import ClipsTokenizer
from clips.typed_data import from_plain

WEB, SYNTHETIC = "my dog pic", "A dog runs on grass. It is brown! A ball lies near."
TOKENIZER = ClipsTokenizer(16)


def prepare(config, web=WEB, synthetic=SYNTHETIC, seed=0):
    return Recipe(config).prepare(web, synthetic, np.random.default_rng(seed), TOKENIZER)


def test_clip_reads_the_web_caption_alone():
    sample = prepare(RecipeConfig(name="clip"))
    assert list(sample) == ["web"]
    assert torch.equal(sample["web"], TOKENIZER(WEB)[0])


def test_clips_draws_one_sentence_and_the_whole_caption_as_target():
    drawn = set()
    for seed in range(40):
        sample = prepare(RecipeConfig(), seed=seed)
        assert torch.equal(sample["web"], TOKENIZER(WEB)[0])
        assert torch.equal(sample["target"], TOKENIZER.encode_target(SYNTHETIC, 128)[0])
        drawn.add(TOKENIZER.decode(sample["partial"]))
    assert drawn == {"a dog runs on grass", "it is brown", "a ball lies near"}


def test_without_a_sentence_the_web_caption_stands_in():
    web = "My dog. 2nd try!"  # stands in whole, not cut into sentences
    for strategy in ("sub_caption", "block"):
        sample = prepare(RecipeConfig(caption_strategy=strategy, caption_tokens=2), web=web, synthetic=" ..! ")
        assert torch.equal(sample["partial"], TOKENIZER(web)[0])
        assert torch.equal(sample["target"], TOKENIZER.encode_target(web, 128)[0])


def test_a_caption_without_a_sentence_is_used_where_there_is_no_other():
    for strategy in ("sub_caption", "full"):
        sample = prepare(RecipeConfig(caption_strategy=strategy), web="", synthetic="?")
        assert torch.equal(sample["partial"], TOKENIZER("?")[0])
        assert torch.equal(sample["target"], TOKENIZER.encode_target("?", 128)[0])
    target = prepare(RecipeConfig(), web="", synthetic="...")["target"]
    assert torch.equal(target, TOKENIZER.encode_target("...", 128)[0])


def share_of_web(config, draws=600):
    web = TOKENIZER(WEB)[0]
    return np.mean([torch.equal(prepare(config, seed=seed)["mixed"], web) for seed in range(draws)])


@pytest.mark.parametrize(("name", "share"), [("recap", 0.8), ("veclip", 0.5), ("coca", 0.8)])
def test_mixing_recipes_draw_one_of_the_two_captions(name, share):
    config = RecipeConfig(name=name)
    assert share_of_web(config) == pytest.approx(share, abs=0.06)
    assert share_of_web(RecipeConfig(name=name, web_caption_prob=1.0), draws=20) == 1
    texts = {TOKENIZER.decode(prepare(config, seed=seed)["mixed"]) for seed in range(40)}
    assert texts == {TOKENIZER.decode(TOKENIZER(text)[0]) for text in (WEB, SYNTHETIC)}


@pytest.mark.parametrize(("web", "synthetic"), [(WEB, ""), ("", SYNTHETIC)])
def test_mixing_takes_the_only_caption_there_is(web, synthetic):
    for seed in range(20):
        sample = prepare(RecipeConfig(name="recap"), web=web, synthetic=synthetic, seed=seed)
        assert torch.equal(sample["mixed"], TOKENIZER(web or synthetic)[0])


def test_clipa_shortens_both_captions():
    config = RecipeConfig(name="clipa", caption_tokens=2)
    drawn = {TOKENIZER.decode(prepare(config, seed=seed)["mixed"]) for seed in range(80)}
    assert {"my dog", "dog pic", "a dog", "dog runs"} < drawn
    assert all(len(text.replace(".", " .").replace("!", " !").split()) == 2 for text in drawn)


@pytest.mark.parametrize("positives", [("mixed",), ("partial", "web")])
def test_coca_predicts_the_caption_that_it_contrasts(positives):
    """The first of several."""
    config = RecipeConfig(name="coca", positives=positives, captioner=CaptionerConfig(max_length=15))
    for seed in range(20):
        sample = prepare(config, seed=seed)
        assert TOKENIZER.decode(sample["target"][1:]) == TOKENIZER.decode(sample[positives[0]][1:])


def test_a_web_caption_of_which_nothing_would_be_left_is_whole():
    sample = prepare(RecipeConfig(name="clip", web_caption_strategy="sub_caption"), web="...!")
    assert torch.equal(sample["web"], TOKENIZER("...!")[0])


def decoded(config, synthetic, seed=0):
    sample = prepare(config, synthetic=synthetic, seed=seed)
    return {name: TOKENIZER.decode(row) for name, row in sample.items()}


def test_sentences_are_sampled_without_repetition():
    drawn = [decoded(RecipeConfig(name="sentences"), f"{SYNTHETIC} The sky is gray.", seed) for seed in range(60)]
    assert {tuple(texts) for texts in drawn} == {("web", "sentences_1", "sentences_2", "sentences_3")}
    assert all(texts["web"] == WEB and len(set(texts.values())) == 4 for texts in drawn)
    first = [texts["sentences_1"] for texts in drawn]
    assert set(first) == {"a dog runs on grass", "it is brown", "a ball lies near", "the sky is gray"}
    assert max(first.count(text) for text in first) < 30


def test_a_caption_of_fewer_sentences_repeats_them_and_none_is_the_web_caption():
    config = RecipeConfig(name="sentences", num_sentences=5)
    repeated = list(decoded(config, "One cup. Two cups.").values())[1:]
    assert sorted(repeated.count(text) for text in set(repeated)) == [2, 3]
    assert set(decoded(config, "...").values()) == {WEB}


def built(name, pretrained=None):
    model = ModelConfig(context_length=12, pretrained=pretrained and str(pretrained))
    captioner = CaptionerConfig(width=16, num_layers=1, max_length=20)
    return build_model(model, RecipeConfig(name=name, captioner=captioner), seed=0)


@pytest.mark.parametrize(
    ("name", "positives", "captions"), [("siglip", ("web",), False), ("siglip_captions", ("web", "partial"), True)]
)
def test_siglip_starts_at_its_papers_scale_and_bias(name, positives, captions):
    model = built(name)
    assert model.clip.logit_scale.item() == pytest.approx(math.log(10))
    assert model.clip.logit_bias.item() == -10
    assert (model.recipe.spec.positives, model.recipe.spec.loss) == (positives, "sigmoid")
    assert (model.captioner is not None) == captions
    assert Recipe(RecipeConfig(name=name, loss="softmax")).spec.loss == "softmax"


@pytest.mark.parametrize(("before", "after"), [("clip", "siglip"), ("siglip", "clip")])
def test_another_type_of_loss_starts_with_its_own_scale_and_bias(tmp_path, capsys, before, after):
    source = built(before)
    with torch.no_grad():
        source.clip.logit_scale.fill_(4.0)
    write_encoder(source, tmp_path)
    model, fresh = built(after, tmp_path), built(after)
    assert model.clip.logit_scale.item() == fresh.clip.logit_scale.item() != 4.0
    assert (model.clip.logit_bias is None) == (after == "clip")
    assert torch.equal(model.clip.token_embedding.weight, source.clip.token_embedding.weight)
    assert "scale and bias of the logits keep their initial values" in capsys.readouterr().err
    assert built(before, tmp_path).clip.logit_scale.item() == 4.0


def test_ablations_are_configs():
    partial_only = RecipeConfig(positives=("partial",), caption_loss_weight=0.0)
    assert list(prepare(partial_only)) == ["partial"]
    no_multi_positive = prepare(RecipeConfig(positives=("partial",)))
    assert list(no_multi_positive) == ["partial", "web", "target", "target_mask"]  # the captioner reads the web caption
    whole = prepare(RecipeConfig(caption_strategy="full", caption_loss_weight=0.0))
    assert torch.equal(whole["partial"], TOKENIZER(SYNTHETIC)[0])
    short_web = prepare(RecipeConfig(name="clip", web_caption_strategy="truncate", caption_tokens=1))
    assert TOKENIZER.decode(short_web["web"]) == "my"


def test_labels_count_up_to_the_end_token():
    sample = prepare(RecipeConfig(captioner=CaptionerConfig(max_length=8)), synthetic="red car")
    assert sample["target"].tolist() == [1, 2417, 2482, 2, 0, 0, 0, 0]
    assert sample["target_mask"].int().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_counted_positions_are_a_uniform_draw():
    config = RecipeConfig(captioner=CaptionerConfig(max_length=32, max_loss_tokens=3))
    everything = prepare(RecipeConfig(captioner=CaptionerConfig(max_length=32)))["target_mask"]
    masks = torch.stack([prepare(config, seed=seed)["target_mask"] for seed in range(300)])
    assert (masks.sum(dim=1) == 3).all()
    assert not (masks & ~everything).any()
    expected = 300 * 3 / int(everything.sum())
    assert (masks.sum(dim=0)[everything] > expected / 2).all()


@pytest.mark.parametrize("name", ["clips", "caption_only"])
def test_a_maximum_of_counted_positions_changes_only_samples_of_more(name):
    def sample(words, most):
        captioner = CaptionerConfig(max_length=16, max_loss_tokens=most)
        return prepare(RecipeConfig(name=name, captioner=captioner), synthetic="red " * words)

    for words, most in itertools.product(range(1, 9), range(1, 12)):
        full, limited = sample(words, None), sample(words, most)
        labels = words + 1  # with the end token
        assert int(limited["target_mask"].sum()) == min(labels, most)
        if labels <= most:
            assert all(torch.equal(limited[field], value) for field, value in full.items())


def test_each_use_of_an_image_reads_other_tokens_of_it():
    samples = [prepare(RecipeConfig(name="caption_only"), seed=seed) for seed in range(50)]
    assert len({int(sample["visual_seed"]) for sample in samples}) == 50


def test_total_is_the_weighted_sum():
    features = torch.eye(3)
    outputs = {"image": features, "web": features, "partial": features.roll(1, 0), "logit_scale": torch.tensor(2.0)}
    outputs |= {"caption_loss_sum": torch.tensor(10.0, requires_grad=True), "caption_tokens": torch.tensor(4)}
    losses = compute_losses(Recipe(RecipeConfig(caption_loss_weight=3.0)), outputs)
    assert losses["caption_loss"].item() == 2.5
    expected = losses["contrastive_loss"].item() + 3 * 2.5
    assert losses["loss"].item() == pytest.approx(expected)
    web_only = compute_losses(Recipe(RecipeConfig(name="clip")), outputs)["contrastive_loss"]
    assert losses["contrastive_loss"].item() > web_only.item()  # the partial captions are mismatched
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]


def test_the_cosine_gap_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    cosines = image @ text.t()
    own = cosines.diagonal().mean()
    others = (cosines.sum() - cosines.diagonal().sum()) / 6
    assert cosine_margin(image, text).item() == pytest.approx((own - others).item())
    assert cosine_margin(image[:1], text[:1]).item() == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "cilps"}, "did you mean 'clips'"),
        ({"caption_strategy": "subcaption"}, "did you mean 'sub_caption'"),
        ({"loss": "sigmod"}, "did you mean 'sigmoid'"),
        ({"positives": ["wed"]}, "did you mean 'web'"),
        ({"positives": ["web", "web"]}, r"^recipe\.positives: "),
    ],
)
def test_an_invalid_recipe_names_its_field(fields, told):
    with pytest.raises(UserError, match=told):
        from_plain(RecipeConfig, fields)
