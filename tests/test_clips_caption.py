"""``clips caption``: words from a trained captioner."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import clips_world
import pytest
import torch

from clips.caption import CaptionConfig, run_caption
from clips.errors import UserError
from clips.model.captioner import Captioner, CaptionerDims
from clips.model.generation import generate
from clips.model.tokenizer import BOS, EOS, PAD
from clips.train import train

SHAPE = CaptionerDims(image_width=6, text_width=4, width=16, layers=1, heads=2, length=7, vocabulary=40)


def captioner(**fields: object) -> Captioner:
    torch.manual_seed(1)
    return Captioner(dataclasses.replace(SHAPE, **fields)).eval()


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 5, 6, generator=generator), torch.randn(1, 3, 4, generator=generator)


def score(model: Captioner, words: list[int]) -> float:
    """Mean log-probability of a caption's words and its end, fed to the captioner in one go."""
    image, text = tokens()
    row = torch.tensor([[BOS, *words, EOS]])
    logits = model.logits(image, text, row[:, :-1])
    logits[..., [PAD, BOS]] = -torch.inf
    found = logits.log_softmax(-1)[0].gather(1, row[0, 1:, None])
    return float(found.mean())


@torch.no_grad()
def test_learnable_tokens_give_the_likeliest_word_each():
    model, (image, text) = captioner(), tokens()
    expected = model.logits(image, text)[0].argmax(-1).tolist()
    expected = expected[: expected.index(EOS)] if EOS in expected else expected
    assert generate(model, image, text) == [token for token in expected if token not in {PAD, BOS}]
    with pytest.raises(UserError, match="num_beams: expected 1"):
        generate(model, image, text, beams=2)


@torch.no_grad()
def test_teacher_forcing_feeds_its_own_words():
    model, (image, text) = captioner(teacher_forced=True), tokens()
    said = generate(model, image, text)
    row = [BOS]
    for _ in range(SHAPE.length - 1):
        logits = model.logits(image, text, torch.tensor([row]))[0, -1]
        logits[[PAD, BOS]] = -torch.inf
        row.append(int(logits.argmax()))
        if row[-1] == EOS:
            break
    assert said == [token for token in row[1:] if token != EOS]


@torch.no_grad()
def test_more_beams_find_a_caption_at_least_as_likely():
    model, (image, text) = captioner(teacher_forced=True), tokens()
    model.head.weight[EOS] += 0.5 * model.head.weight.mean(0)
    wide = [generate(model, image, text, beams=beams) for beams in (1, 4, 12)]
    scores = [score(model, words) for words in wide if len(words) < SHAPE.length - 1]
    assert scores == sorted(scores)


def test_the_command_prints_words_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = clips_world.write_shards(tmp_path / "data")
    (tmp_path / "photo.png").write_bytes(clips_world.picture(3))
    for name in ("clips", "coca", "clip"):
        recipe = {"name": name, "captioner": {"max_length": 12, "num_layers": 1}}
        train(clips_world.train_config(data, tmp_path / name, recipe=recipe, max_steps=2))
    capsys.readouterr()
    for name in ("clips", "coca"):
        files = {"image": str(tmp_path / "photo.png"), "html_output": str(tmp_path / "p.html")}
        run_caption(CaptionConfig(encoder=str(tmp_path / name), web_caption="<b>", **files))
        said = capsys.readouterr().out.strip()
        html = (tmp_path / "p.html").read_text(encoding="utf-8")
        assert "base64" in html
        assert "&lt;b&gt;" in html
        assert isinstance(said, str)
    with pytest.raises(UserError, match="a recipe with a captioner"):
        run_caption(CaptionConfig(image=str(tmp_path / "photo.png"), encoder=str(tmp_path / "clip")))
    with pytest.raises(UserError, match=r"gone\.png: expected a picture"):
        run_caption(CaptionConfig(image="gone.png", encoder=str(tmp_path / "clips")))
