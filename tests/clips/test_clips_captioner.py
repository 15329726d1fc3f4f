"""The captioner: mask, loss, and the words that it generates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import clips_world
import numpy as np
import pytest
import torch
from clips_world import trained
from open_clip.transformer import TextTransformer
from torch.nn import functional as F

from clips.data import decode_image
from clips.encoder import load_captioner, load_encoder
from clips.errors import UserError
from clips.model.captioner import (
    Captioner,
    CaptionerDims,
    caption_images,
    combination_attention,
    generate,
    lower_right_mask,
    shift_labels,
)
from clips.model.tokenizer import BOS, EOS, PAD, ClipsTokenizer
from clips.model.towers import encode_image, encode_text

SHAPE = CaptionerDims(image_width=12, text_width=8, width=16, layers=2, heads=2, length=6, vocabulary=50)


def captioner_of(seed=0, **fields):
    torch.manual_seed(seed)
    return Captioner(dataclasses.replace(SHAPE, **fields))


@pytest.fixture
def captioner():
    return captioner_of()


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 5, 12, generator=generator), torch.randn(4, 3, 8, generator=generator)


@pytest.mark.parametrize("rows", [5, 3])
def test_attention_under_the_combination_mask(rows):
    """Of all positions, and of the learnable tokens only; gradients included."""
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    query, key, value = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64, requires_grad=True).unbind()
    query = query[:, :, -rows:]
    found = combination_attention(query, key, value, lower_right_mask(3, 5, query.device))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[-rows:])
    torch.testing.assert_close(found, expected)
    for left, right in zip(
        torch.autograd.grad(found.square().sum(), [query, key, value], retain_graph=True),
        torch.autograd.grad(expected.square().sum(), [query, key, value]),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_logits_are_the_authors(shared):
    with np.load(shared / "reference/authors_captioner.npz") as file:
        stored = {key: torch.from_numpy(file[key]) for key in file.files}
    captioner = Captioner(authors_shape(stored))
    captioner.load_state_dict(authors_weights(stored))
    logits = captioner.logits(stored["image_tokens"], stored["web_tokens"])
    torch.testing.assert_close(logits, stored["logits"], atol=1e-4, rtol=0)
    assert logits.std() > 0.1

    counted = stored["label_mask"] > 0
    target = F.pad(stored["labels"].long(), (1, 0))[:, :-1]  # as rows that begin with a begin token
    assert not counted[:, -1].any()
    summed = captioner(stored["image_tokens"], stored["web_tokens"], target, counted)
    assert (summed / counted.sum()).item() == pytest.approx(stored["caption_loss"].item(), abs=1e-4)


def authors_shape(stored):
    return CaptionerDims(
        image_width=stored["image_tokens"].shape[2],
        text_width=stored["web_tokens"].shape[2],
        width=stored["param/learnable_tokens"].shape[1],
        layers=len({key.split("/")[2] for key in stored if key.startswith("param/Transformer/")}),
        heads=int(stored["heads"]),
        length=stored["param/learnable_tokens"].shape[0],
        vocabulary=stored["logits"].shape[2],
    )


def authors_weights(stored):
    """The authors' flax parameters under our names; flax kernels are input × output."""
    param = {key.removeprefix("param/"): value for key, value in stored.items() if key.startswith("param/")}
    weights = {
        "learnable_tokens": param["learnable_tokens"],
        "image_projection.weight": param["image_projection_layer/kernel"].T,
        "text_projection.weight": param["text_projection_layer/kernel"].T,
        "head.norm.weight": param["decoder_norm/scale"],
        "head.norm.bias": param["decoder_norm/bias"],
        "head.weight": param["head/kernel"].T,
    }
    for layer in range(authors_shape(stored).layers):
        theirs, ours = f"Transformer/encoderblock_{layer}/", f"blocks.{layer}."
        attention = theirs + "MultiHeadDotProductAttention_0/"
        for index in (0, 1):
            weights[f"{ours}norm_{index + 1}.weight"] = param[f"{theirs}LayerNorm_{index}/scale"]
            weights[f"{ours}norm_{index + 1}.bias"] = param[f"{theirs}LayerNorm_{index}/bias"]
        linears = {
            "query": [attention + "query"],
            "key_value": [attention + "key", attention + "value"],
            "out": [attention + "out"],
            "mlp_in": [theirs + "MlpBlock_0/Dense_0"],
            "mlp_out": [theirs + "MlpBlock_0/Dense_1"],
        }
        for name, sources in linears.items():
            weights[f"{ours}{name}.weight"] = torch.cat([param[f"{source}/kernel"].T for source in sources])
            weights[f"{ours}{name}.bias"] = torch.cat([param[f"{source}/bias"] for source in sources])
    return weights


@pytest.mark.parametrize("layers", [1, 8])
def test_weights_begin_as_those_of_open_clips_text_tower(layers):
    ours = captioner_of(width=128, heads=4, layers=layers, length=32, vocabulary=300)
    tower = TextTransformer(context_length=32, vocab_size=300, width=128, heads=4, layers=layers)
    for block, theirs in zip(ours.blocks, tower.transformer.resblocks, strict=True):
        for mine, weight in (
            (block.query.weight, theirs.attn.in_proj_weight),
            (block.key_value.weight, theirs.attn.in_proj_weight),
            (block.out.weight, theirs.attn.out_proj.weight),
            (block.mlp_in.weight, theirs.mlp.c_fc.weight),
            (block.mlp_out.weight, theirs.mlp.c_proj.weight),
        ):
            assert mine.std().item() == pytest.approx(weight.std().item(), rel=0.05)
    assert ours.learnable_tokens.std().item() == pytest.approx(1, rel=0.05)
    assert ours.head.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert ours.image_projection.weight.std().item() == pytest.approx(SHAPE.image_width**-0.5, rel=0.1)
    assert ours.text_projection.weight.std().item() == pytest.approx(SHAPE.text_width**-0.5, rel=0.1)
    assert not any(value.any() for name, value in ours.named_parameters() if name.endswith("bias"))


def test_learnable_tokens_see_only_earlier_ones(captioner, tokens):
    before = captioner.logits(*tokens)
    with torch.no_grad():
        captioner.learnable_tokens[3] *= -1
    changed = (captioner.logits(*tokens) - before).abs().amax(dim=(0, 2)) > 1e-4
    assert changed.tolist() == [False, False, False, True, True, True]


def test_every_learnable_token_sees_the_whole_prefix(captioner, tokens):
    image, text = (part.clone().requires_grad_() for part in tokens)
    for place in range(SHAPE.length):
        gradients = torch.autograd.grad(captioner.decode(image, text)[:, place].square().sum(), [image, text])
        assert all((gradient.abs().amax(dim=-1) > 0).all() for gradient in gradients)


def test_leaving_out_later_tokens_changes_nothing(captioner, tokens):
    torch.testing.assert_close(captioner.decode(*tokens, length=4), captioner.decode(*tokens)[:, :4])


def test_loss_is_the_cross_entropy_of_the_logits_at_the_shifted_targets(captioner, tokens):
    target = torch.tensor([[1, 7, 8, 9, 2, 0], [1, 5, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0], [1, 3, 4, 2, 0, 0]])
    assert shift_labels(target)[0].tolist() == [7, 8, 9, 2, 0, 0]
    counted = shift_labels(target) != 0
    expected = 0.0
    log_p = captioner.logits(*tokens).log_softmax(dim=-1)
    for sample, row in enumerate(target.tolist()):
        for place in range(5):
            if row[place + 1] != 0:  # token i predicts target token i + 1
                expected -= log_p[sample, place, row[place + 1]].item()
    assert captioner(*tokens, target, counted).item() == pytest.approx(expected, rel=1e-5)
    assert captioner(*tokens, target, torch.zeros_like(counted)).item() == 0


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_decoding_in_groups_of_like_length_gives_the_loss_and_gradients_of_all_at_once(teacher_forced):
    captioner = captioner_of(teacher_forced=teacher_forced)
    lengths = [index * 5 % 7 for index in range(40)]  # 0 to 6 tokens of 6, in no order
    target = torch.tensor([[1 + place if place < length else 0 for place in range(6)] for length in lengths])
    counted = (shift_labels(target) != 0) & (torch.arange(6) != 1)
    image = torch.randn(40, 5, 12, requires_grad=True)
    text = torch.randn(40, 3, 8, requires_grad=True)
    wanted = [image, text, *captioner.parameters()]
    log_p = captioner.logits(image, text, target if teacher_forced else None).log_softmax(dim=-1)
    plain = -log_p.gather(2, shift_labels(target)[..., None])[..., 0][counted].sum()
    ours = captioner(image, text, target, counted)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, wanted) for loss in (ours, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_logits_are_float32_under_autocast(captioner, tokens):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = captioner.logits(*tokens)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, captioner.logits(*tokens), atol=0.2, rtol=0.1)


def test_a_teacher_forced_captioner_knows_the_words_so_far_and_no_later_ones():
    captioner = captioner_of(text_width=None, teacher_forced=True)
    image, target = torch.randn(2, 3, 12), torch.randint(3, 50, (2, 6))
    plain = captioner.logits(image, None, target)
    assert plain.shape == (2, 6, 50)
    changed = target.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 50
    moved = (captioner.logits(image, None, changed) - plain).abs().amax(dim=(0, 2))
    assert moved[:3].max() == 0
    assert moved[3:].min() > 1e-4
    torch.testing.assert_close(captioner.logits(image, None, target[:, :4]), plain[:, :4], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_learnable_tokens_give_the_most_probable_word_each(captioner, tokens):
    model, (image, text) = captioner.eval(), (part[:1] for part in tokens)
    expected = model.logits(image, text)[0].argmax(-1).tolist()
    expected = expected[: expected.index(EOS)] if EOS in expected else expected
    assert generate(model, image, text) == [[token for token in expected if token not in {PAD, BOS}]]


@torch.no_grad()
def test_words_after_the_end_token_are_not_said(captioner, tokens, monkeypatch):
    model, (image, text) = captioner.eval(), (part[:1] for part in tokens)
    row = torch.tensor([BOS, 7, PAD, 8, EOS, 9] + [5] * SHAPE.length)[: SHAPE.length]
    monkeypatch.setattr(model.head, "forward", lambda hidden: torch.eye(50)[row])
    assert generate(model, image, text) == [[7, 8]]


@torch.no_grad()
def test_teacher_forcing_feeds_its_own_words(tokens):
    model, (image, text) = captioner_of(1, teacher_forced=True).eval(), (part[:1] for part in tokens)
    (said,) = generate(model, image, text)
    row = [BOS]
    for _ in range(SHAPE.length - 1):
        logits = model.logits(image, text, torch.tensor([row]))[0, -1]
        logits[[PAD, BOS]] = -torch.inf
        row.append(int(logits.argmax()))
        if row[-1] == EOS:
            break
    assert said == [token for token in row[1:] if token != EOS]


@torch.no_grad()
def test_teacher_forcing_says_no_pad_or_begin_token(tokens, monkeypatch):
    model = captioner_of(teacher_forced=True).eval()
    likely = torch.zeros(50)
    likely[[PAD, BOS, 7]] = torch.tensor([3.0, 2.0, 1.0])
    monkeypatch.setattr(model.head, "forward", lambda hidden: likely.expand(*hidden.shape[:-1], 50).clone())
    assert generate(model, *tokens) == [[7] * (SHAPE.length - 1)] * len(tokens[0])


def test_captions_of_an_encoders_captioner(tmp_path: Path):
    data = clips_world.write_shards(tmp_path / "data")
    for name in ("clips", "coca", "clip"):
        recipe = {"name": name, "captioner": {"max_length": 12, "num_layers": 1, "width": 32}}
        trained(data, tmp_path / name, recipe=recipe, max_steps=1)
    for name, given in (("clips", ["a dog", "<b>"]), ("coca", None)):
        encoder, captioner = load_encoder(tmp_path / name), load_captioner(tmp_path / name)
        images = torch.stack([encoder.preprocess(decode_image(clips_world.draw_image(n))) for n in (3, 4)])
        texts = given and encoder.tokenizer(given)
        found = caption_images(encoder.model, captioner, images, texts)
        with torch.no_grad():
            tokens = encode_image(encoder.model, images)[1]
            words = generate(captioner, tokens, None if texts is None else encode_text(encoder.model, texts)[1])
        assert found == [ClipsTokenizer().decode(each) for each in words]
        assert len(found) == 2
    with pytest.raises(UserError, match="a recipe with a captioner"):
        load_captioner(tmp_path / "clip")
