"""``recaption``: what a captioner writes, measured against the synthetic captions that it was to learn."""

from __future__ import annotations

from pathlib import Path

import bench_world
import clips_world
import pytest
import torch

from benchmarks.report.load_results import MissingValue, read_source
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.registry import configure
from clips.data import decode_image
from clips.encoder import load_captioner, load_encoder
from clips.model import captioner as captioning
from clips.model.captioner import Captioner, CaptionerDims
from clips.model.tokenizer import ClipsTokenizer
from clips.train import train


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """``test`` with eight images and encoders without training, ``clips`` with a captioner and ``clip`` without."""
    root = tmp_path_factory.mktemp("recaption")
    data = clips_world.write_shards(root / "data", (8,))
    broken = {"000000009": {"png": b"no picture", "json": b"{}"}, "000000010": {"png": clips_world.draw_image(1)}}
    clips_world.write_shard(root / "test" / "shard-00001.tar", broken)
    (root / "test" / "shard-00000.tar").symlink_to(data / "shard-00000.tar")
    for name in ("clips", "clip"):
        train(clips_world.train_config(data, root / name, recipe={"name": name}, max_steps=0))
    return root


def evaluate(places: Path, results: Path, row: str = "clips", **settings: object) -> Result:
    benchmark = configure(name="recaption", data=str(places / "test"), **settings)
    return bench_world.measure(results, benchmark, row=row, encoder=places / row)


def _saying(monkeypatch, texts: list[str]) -> None:
    """The captioner says these, one after the other."""
    rest = iter(ClipsTokenizer().encode_target(texts, 40).tolist())
    monkeypatch.setattr(captioning, "generate", lambda _, images, __: [next(rest) for _ in images])


def test_scores_of_a_perfect_and_of_a_constant_captioner(places, tmp_path, monkeypatch):
    expected = [clips_world.captions(number)["synthetic_caption"] for number in range(8)]
    _saying(monkeypatch, expected)
    perfect = evaluate(places, tmp_path / "perfect")
    assert perfect.metrics["CIDEr"].value == pytest.approx(10.0)
    assert perfect.metrics["Bleu_4"].value == pytest.approx(1.0)
    assert perfect.metrics["ROUGE_L"].value == pytest.approx(1.0)
    assert perfect.metrics["CIDEr_of_others"].value < 5
    gain = perfect.metrics["CIDEr_gain"]
    assert gain.value == pytest.approx(10.0 - perfect.metrics["CIDEr_of_others"].value)
    assert 0 < gain.ci_low < gain.value < gain.ci_high
    assert (perfect.protocol["images"], perfect.protocol["excluded"]) == (8, 2)
    items = read_items(perfect)
    assert items["given"].tolist() == [clips_world.captions(number)["web_caption"] for number in range(8)]
    assert items["target"].tolist() == expected

    _saying(monkeypatch, [expected[0]] * 8)
    same = evaluate(places, tmp_path / "same")
    assert same.metrics["CIDEr"].value == pytest.approx(same.metrics["CIDEr_of_others"].value)
    assert same.metrics["CIDEr"].value < 5
    gain = same.metrics["CIDEr_gain"]  # a caption for all images is no better for its own
    assert gain.ci_low <= 0 <= gain.ci_high


def test_captions_equal_those_of_the_encoder_alone(places, tmp_path):
    result = evaluate(places, tmp_path / "results", limit=3)
    assert result.protocol["images"] == 3
    encoder, captioner = load_encoder(places / "clips"), load_captioner(places / "clips")
    for row in read_items(result).itertuples():
        image = encoder.preprocess(decode_image(clips_world.draw_image(int(row.Index))))
        texts = encoder.tokenizer([row.given])
        assert [row.prediction] == captioning.caption_images(encoder.model, captioner, image[None], texts)
        assert row.prediction


@pytest.mark.parametrize("forced", [False, True])
def test_batched_captions_equal_single_ones(forced):
    torch.manual_seed(2)
    shape = CaptionerDims(image_width=6, text_width=4, width=16, layers=1, heads=2, length=7, vocabulary=40)
    captioner = Captioner(CaptionerDims(**{**vars(shape), "teacher_forced": forced})).eval()
    images, texts = torch.randn(3, 5, 6), torch.randn(3, 3, 4)
    with torch.no_grad():
        captioner.blocks[0].out.weight *= 50  # so that images and words count
        one_by_one = [captioning.generate(captioner, images[n : n + 1], texts[n : n + 1])[0] for n in range(3)]
        assert captioning.generate(captioner, images, texts) == one_by_one
    assert len({tuple(each) for each in one_by_one}) > 1


def test_without_a_captioner_the_result_has_a_reason(places, tmp_path):
    result = evaluate(places, tmp_path, "clip")
    assert (result.status, dict(result.metrics)) == ("ok", {})
    gap = read_source(tmp_path).outcomes["clip", "recaption"]
    assert isinstance(gap, MissingValue)
    assert (gap.kind, gap.reason) == ("not applicable", "this encoder has no captioner (its recipe trains none)")
