"""``recaption``: what a captioner writes, measured against the synthetic captions that it was to learn."""

from __future__ import annotations

import json
from pathlib import Path

import bench_world
import clips_world
import pytest
import torch

from benchmarks.report.load_results import MissingValue, read_source
from benchmarks.results.protocol import SCORER_HASH
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.encoders import recaption
from benchmarks.tasks.mllm import caption_metrics
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
    benchmark = configure(**{"name": "recaption", "data": str(places / "test"), **settings})
    return bench_world.measure(results, benchmark, row=row, encoder=places / row)


def _saying(monkeypatch, texts: list[str], of_other_images: list[str]) -> None:
    """The captioner says these, one after the other."""
    rest = iter(ClipsTokenizer().encode_target([*texts, *of_other_images], 40).tolist())
    monkeypatch.setattr(captioning, "generate", lambda _, images, __: [next(rest) for _ in images])


def test_scores_of_captioners_that_look_and_that_do_not(places, tmp_path, monkeypatch):
    expected = [clips_world.captions(number)["synthetic_caption"] for number in range(8)]
    given = [clips_world.captions(number)["web_caption"] for number in range(8)]
    of_next = [*expected[1:], expected[0]]
    _saying(monkeypatch, expected, of_next)
    perfect = evaluate(places, tmp_path / "perfect")
    assert perfect.metrics["CIDEr"].value == pytest.approx(10.0)
    assert perfect.metrics["Bleu_4"].value == pytest.approx(1.0)
    assert perfect.metrics["ROUGE_L"].value == pytest.approx(1.0)
    assert perfect.metrics["CIDEr_other_image"].value < 5
    gain = perfect.metrics["CIDEr_over_other_image"]
    assert gain.value == pytest.approx(10.0 - perfect.metrics["CIDEr_other_image"].value)
    assert 0 < gain.ci_low < gain.value < gain.ci_high
    assert (perfect.protocol["images"], perfect.protocol["excluded"]) == (8, 2)
    items = read_items(perfect)
    assert items["given"].tolist() == given
    assert items["target"].tolist() == expected

    _saying(monkeypatch, given, given)
    blind = evaluate(places, tmp_path / "blind")  # it repeats its web caption, which is about its own image
    assert blind.metrics["CIDEr"].value > 0
    assert blind.metrics["CIDEr_other_image"].value == blind.metrics["CIDEr"].value
    gain = blind.metrics["CIDEr_over_other_image"]
    assert (gain.value, gain.ci_low) == (0, None)  # no two images differ


def test_the_other_image_is_the_next_one_with_other_pixels(places, tmp_path, monkeypatch):
    images = (0, 0, 1, 0)
    samples = [
        {"split": "test", "image": f"{number}.png", "web_caption": f"web {row}", "synthetic_caption": f"A dog {row}."}
        for row, number in enumerate(images)
    ]
    for number in set(images):
        (places / f"{number}.png").write_bytes(clips_world.draw_image(number))
    table = places / "twice.jsonl"
    table.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    encoder = load_encoder(places / "clips")
    pixels = [encoder.preprocess(decode_image(clips_world.draw_image(number))) for number in (0, 1)]
    tokens = encoder.tokenizer([sample["web_caption"] for sample in samples])
    asked: list[tuple[int, int]] = []

    def write(_: object, __: object, shown: torch.Tensor, texts: torch.Tensor) -> list[str]:
        for image, text in zip(shown, texts, strict=True):
            (number,) = (k for k in (0, 1) if torch.equal(pixels[k], image))
            (row,) = (k for k in range(4) if torch.equal(tokens[k], text))
            asked.append((number, row))
        return [f"A dog {row}." if images[row] == number else "cats" for number, row in asked[-len(shown) :]]

    monkeypatch.setattr(captioning, "caption_images", write)
    settings = {"data": str(table), "format": "table", "image_root": str(places)}
    found = evaluate(places, tmp_path / "results", **settings).metrics
    assert asked == [(0, 0), (0, 1), (1, 2), (0, 3), (1, 0), (1, 1), (0, 2), (1, 3)]
    assert found["CIDEr"].value > 1
    assert found["CIDEr_other_image"].value < 0.5
    alone = evaluate(places, tmp_path / "alone", limit=2, **settings)
    assert alone.missing_metrics["CIDEr_over_other_image"] == "all samples have the same image"
    assert "CIDEr" in alone.metrics


def test_one_image_has_no_cider(places, tmp_path):
    result = evaluate(places, tmp_path, limit=1)
    reasons = [text for name, text in result.missing_metrics.items() if name == "CIDEr"]
    assert reasons == ["CIDEr weighs words by the images that have them: of one image it is 0 for any caption"]
    assert result.metrics.keys() & {"CIDEr", "CIDEr_other_image", "CIDEr_over_other_image", "ROUGE_L"} == {"ROUGE_L"}


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


def test_a_second_run_keeps_the_result_of_the_same_scorer(places, tmp_path, capsys, monkeypatch):
    first = evaluate(places, tmp_path)
    assert first.protocol[SCORER_HASH] == caption_metrics.caption_scorer_hash()
    assert evaluate(places, tmp_path).created == first.created
    assert "recaption: done already" in capsys.readouterr().err
    monkeypatch.setattr(recaption, "caption_scorer_hash", lambda: "another tokenizer")
    assert evaluate(places, tmp_path).protocol[SCORER_HASH] == "another tokenizer"


def test_without_a_captioner_the_result_has_a_reason(places, tmp_path):
    result = evaluate(places, tmp_path, "clip")
    assert (result.status, dict(result.metrics)) == ("ok", {})
    gap = read_source(tmp_path).outcomes["clip", "recaption"]
    assert isinstance(gap, MissingValue)
    assert (gap.kind, gap.reason) == ("not applicable", "this encoder has no captioner (its recipe trains none)")
