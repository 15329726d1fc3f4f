"""Compositional benchmarks: the layouts in which they come, one line for a fault, LLaVAs by likelihood and in words."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_world as world
import numpy as np
import pytest
from bench_layouts import aro, sugarcrepe, valse, winoground
from bench_reader import Reader
from PIL import Image

from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.tasks.compositional import caption_scores, llava_choice
from benchmarks.tasks.data.pair_sets import load_pair_set
from benchmarks.tasks.encoders import embedding
from benchmarks.tasks.eval_model import EvalModel
from benchmarks.tasks.output_cache import AnswerCache, NoCache
from benchmarks.tasks.registry import BenchmarkConfig, configure
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.errors import UserError
from llava_bridge.inference.loglikelihood import LogLikelihood


@pytest.mark.parametrize("folder", ["images", "."])
def test_images_are_next_to_the_lines_or_in_a_directory_of_this_name(folder: str, tmp_path: Path) -> None:
    for name in ("images", "other"):
        (tmp_path / name).mkdir()
    world.draw_image(1).save(tmp_path / folder / "1.png")
    row = {"image": "1.png", "caption": "a", "negative": "b", "kind": None}
    for lines in ([row], [{**row, "image": f"{folder}/1.png"}]):
        pairs = load_pair_set(str(world.write_lines(tmp_path / "pairs.jsonl", lines)), "jsonl")
        assert pairs.open(pairs.cases[0].images[0]).tobytes() == world.draw_image(1).tobytes()
        assert pairs.cases[0].kind == ""


def test_sugarcrepe(tmp_path):
    pairs = load_pair_set(str(sugarcrepe(tmp_path)), "sugarcrepe")
    assert [case.name for case in pairs.cases] == ["add_att/0", "add_att/7", "swap_att/3"]
    assert pairs.cases[0].captions == ("a red one", "a blue one")
    assert pairs.open(pairs.cases[1].images[0]).tobytes() == world.draw_image(1).tobytes()
    assert len(pairs.images) == 2
    assert pairs.averaged == {case.kind for case in pairs.cases} == {"add_att", "swap_att"}
    (one,) = load_pair_set(str(tmp_path / "swap_att.json"), "sugarcrepe").cases
    assert one.name == "swap_att/3"
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(UserError, match=r"images/1\.png: no such image \(set image_root"):
        _ = load_pair_set(str(tmp_path), "sugarcrepe").hash


def test_aro_crops_the_box_and_excludes_kinds_from_the_mean(tmp_path):
    relations = [{"relation_name": name} for name in ("on", "near", "behind")]
    pairs = load_pair_set(str(aro(tmp_path / "r", relations)), "aro_relation")
    part = pairs.open(pairs.cases[1].images[0])
    assert part.tobytes() == world.draw_image(1).crop((4, 8, 24, 38)).tobytes()
    assert pairs.averaged == {"on", "behind"}  # what is near is near both ways
    attributes = [{"attributes": ["red", "round"]}] * 25 + [{"attributes": ["old", "wet"]}] * 24
    pairs = load_pair_set(str(aro(tmp_path / "a", attributes)), "aro_attribution")
    assert pairs.averaged == {"red_round"}


def test_valse_takes_valid_items_from_the_dataset_directory(tmp_path):
    pairs = load_pair_set(str(valse(tmp_path)), "valse")
    assert [case.name for case in pairs.cases] == ["existence/a", "existence/c"]
    assert pairs.cases[1].images[0].reference == "SWiG/1.png"
    assert pairs.open(pairs.cases[1].images[0]).tobytes() == world.draw_image(1).tobytes()


def test_winoground_as_files_and_as_the_hubs_parquet(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    files = load_pair_set(str(winoground(tmp_path / "files")), "winoground")
    rows = [json.loads(line) for line in (tmp_path / "files/examples.jsonl").read_text().splitlines()]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for side in ("image_0", "image_1"):
        columns[side] = [(tmp_path / "files/images" / f"{name}.png").read_bytes() for name in columns[side]]
    world.write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", columns)
    hub = load_pair_set(str(tmp_path / "hub"), "winoground")
    assert [case.captions for case in hub.cases] == [case.captions for case in files.cases]
    assert hub.hash == files.hash
    assert hub.open(hub.cases[1].images[1]).tobytes() == world.draw_image(3).tobytes()


def test_an_image_under_one_or_two_names_is_not_mixed_up(tmp_path, monkeypatch):
    """Vectors are kept by what images show: a set with a copy of a file has one more, though its hash is the same."""
    world.write_images(tmp_path, 2)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    configs = {}
    for name, pictures in (("copied", ("0", "copy", "1")), ("once", ("0", "0", "1"))):
        rows = [
            {"image": f"{picture}.png", "caption": f"thing0 {number}", "negative": "thing1"}
            for number, picture in enumerate(pictures)
        ]
        file = world.write_lines(tmp_path / f"{name}.jsonl", rows)
        configs[name] = configure(name=name, task="choice", data=str(file))
    copied, once = (load_pair_set(config.data, "jsonl") for config in configs.values())
    assert copied.hash == once.hash
    encoder = Reader(2).use(monkeypatch, tmp_path)
    for results, names in (("fresh", ["once"]), ("both", ["copied", "once"])):
        world.measure(tmp_path / results, *[configs[name] for name in names], encoder=encoder)
        found = read_result(result_path(tmp_path / results, "row", "once"))
        assert read_items(found)["score"].tolist() == [1, 1, 0], results


def test_real_pairs(shared):
    pairs = load_pair_set(str(shared / "data/coco_mini/sugarcrepe.jsonl"), "jsonl")
    assert len(pairs.cases) == 478
    assert len(pairs.averaged) == 7
    assert pairs.open(pairs.cases[0].images[0]).width > 100


@pytest.mark.parametrize(
    ("format", "content", "said"),
    [
        ("sugarcrepe", '{"0": {"filename": "0.png", "caption": "x"}}', r"x\.json: 0: negative_caption: expected a"),
        ("valse", '{"a": {"caption": "x", "foil": "y", "image_file": "z", "mturk": {"caption": "2"}}}', "mturk"),
        ("aro_relation", '[{"image_path": "a", "true_caption": "x", "false_caption": "y"}]', "0: expected numbers"),
        ("jsonl", '{"image": "a", "caption": "x", "negative": []}', "line 1: negative: expected a"),
        ("winoground", '{"image_0": "a", "image_1": "b", "caption_0": "x"}', "line 1: expected the key 'caption_1'"),
    ],
)
def test_a_fault_is_one_line(tmp_path, format, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_pair_set(str(tmp_path / "x.json"), format)


def number_of(image: Image.Image) -> int:
    return next(number for number in range(4) if world.draw_image(number).tobytes() == image.tobytes())


def _row(batch_size: int = 3, **parts: Any) -> Any:
    config = RunConfig(model_name="row", output="unused", encoder="e",
                       benchmarks=[configure(name="choice", data="d")], batch_size=batch_size)  # fmt: skip
    row = EvalModel(config)
    for name, value in parts.items():
        row.__dict__[name] = value
    return row


def _llava(monkeypatch: pytest.MonkeyPatch, value: Any) -> Any:
    """A row whose LLaVA's log-likelihood is ``value(number of the image, prompt, text)``; tokens are its words."""

    def likelihoods(model, processor, images, prompts, texts, batch_size, *, end):
        found = [
            value(None if image is None else number_of(image), prompt, text)
            for image, prompt, text in zip(images, prompts, texts, strict=True)
        ]
        return [LogLikelihood(total=each, tokens=len(text.split()), greedy=False)
                for each, text in zip(found, texts, strict=True)]  # fmt: skip

    monkeypatch.setattr("llava_bridge.inference.loglikelihood.loglikelihoods", likelihoods)
    monkeypatch.setattr(llava_choice, "llava_protocol", lambda *_: {})
    return _row(llava=(SimpleNamespace(), SimpleNamespace()), answer_cache=lambda *_: AnswerCache(None))


def _config(data: Path, way: str = "", **settings: Any) -> BenchmarkConfig:
    return configure(name=f"winoground{way}", data=str(data), **settings)


def _values(outcome: Any) -> dict[str, float]:
    return {name: metric.value for name, metric in outcome.metrics.items()}


def _knows(number: int | None, prompt: str, text: str) -> float:
    """Finds its own color likely, but for image 3, which it takes for image 2; long texts are less likely."""
    seen = 2 if number == 3 else number
    fits = seen is not None and world.color(seen) in text
    return 3.0 * fits - 0.1 * len(text.split())


def test_winoground_by_similarity_and_by_likelihood_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "embedding_cache", lambda *_, **__: NoCache())
    import torch

    data = winoground(tmp_path)
    numbers = {f"a {world.color(number)} square": number for number in range(4)}
    model = SimpleNamespace(
        encode_image=lambda pixels: torch.eye(4)[[min(int(each[0, 0, 0]), 2) for each in pixels]],
        encode_text=lambda tokens: torch.eye(4)[tokens[:, 0]],
    )
    encoder = world.dual_encoder(
        model,
        lambda texts: torch.tensor([[numbers[text]] for text in texts]),
        lambda image: torch.full((3, 2, 2), number_of(image), dtype=torch.float32),
    )
    seen = caption_scores.evaluate(_row(encoder=encoder), _config(data))
    likely = llava_choice.evaluate_likelihood(_llava(monkeypatch, _knows), _config(data, "_likelihood"))
    # case 0 is won; in case 1 both images prefer the first caption, and each caption finds both images alike
    for outcome in (seen, likely):
        assert _values(outcome) == pytest.approx(
            {
                "text_score": 1 / 2,
                "image_score": (1 + 1 / 4) / 2,
                "group_score": 1 / 2,
                "text_score_of_kinds": 1 / 2,
                "text_score_Object": 1,
                "text_score_Relation": 0,
            }
        )
        assert outcome.primary == ("text_score", "image_score", "group_score")
        assert outcome.items["prediction"].tolist()[1] == "1. a blue square 2. a blue square"
        assert outcome.items["target"].tolist()[0] == "1. a red square 2. a green square"
        both = Image.open(io.BytesIO(outcome.items["thumbnail"][0]))
        assert both.size == (128, 64)
        for side in range(2):  # both images next to each other, except for JPEG's changes to noise
            half = np.asarray(both.crop((64 * side, 0, 64 * side + 64, 64)), float)
            assert np.abs(half - np.asarray(world.draw_image(side), float)).mean() < 12
        assert outcome.items["item"].is_unique


def test_the_primary_metric_of_aro_is_the_mean_over_kinds(tmp_path, monkeypatch):
    """Three of one relation are won; lost are one of another, and one that goes both ways, which is left out."""
    data = aro(tmp_path, [{"relation_name": name} for name in ("on", "on", "on", "behind", "near")])
    rows = json.loads(data.read_text())
    for row in rows[3:]:
        row["true_caption"], row["false_caption"] = row["false_caption"], row["true_caption"]
    data.write_text(json.dumps(rows))
    monkeypatch.setattr(f"{__name__}.number_of", lambda image: 0)
    row = _llava(monkeypatch, lambda number, prompt, text: float(text == "a on b"))
    outcome = llava_choice.evaluate_likelihood(row, configure(name="aro_relation_likelihood", data=str(data)))
    assert outcome.primary == ("accuracy_of_kinds",)
    assert _values(outcome)["accuracy_of_kinds"] == pytest.approx((1 + 0) / 2)
    assert _values(outcome)["accuracy"] == pytest.approx(3 / 5)


def test_likelihood_by_length_and_without_the_image(tmp_path, monkeypatch):
    world.write_images(tmp_path, 1)
    right, wrong = "a red square that is long and red", "no"
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": "0.png", "caption": right, "negative": wrong}))

    def value(number, prompt, text):
        assert prompt == "Say it."
        return -2.0 * len(text.split()) + (1.5 if number == 0 and text == right else 0)

    row, data = _llava(monkeypatch, value), tmp_path / "pairs.jsonl"
    found = {
        how: llava_choice.evaluate_likelihood(
            row, configure(name="choice_likelihood", data=str(data), likelihood_score=how, prompt="Say it.")
        )
        for how in ("sum", "mean", "mutual_info")
    }
    assert [_values(found[how])["accuracy"] for how in ("sum", "mean", "mutual_info")] == [0, 1, 1]
    assert found["mutual_info"].items["margin"].item() == pytest.approx(1.5)
    assert len({outcome.protocol["score"] for outcome in found.values()}) == 3


def test_a_preference_for_a_letter_does_not_change_prompted_answers(tmp_path, monkeypatch):
    data = winoground(tmp_path)

    def likes_a(number, prompt, letter):
        first = prompt.split("A. ")[1].split("\n")[0]
        right_is_a = world.color(number) in first
        knows = 0.0 if number in (2, 3) else 1.0  # of case 1 it knows nothing
        return (knows if (letter == "A") == right_is_a else 0.0) + (5.0 if letter == "A" else 0.0)

    outcome = llava_choice.evaluate_choice(_llava(monkeypatch, likes_a), _config(data, "_mcq"))
    assert _values(outcome) == pytest.approx(
        {
            "text_score": (1 + 1 / 4) / 2,
            "text_score_of_kinds": (1 + 1 / 4) / 2,
            "text_score_Object": 1,
            "text_score_Relation": 1 / 4,
            "said_a": 1,
        }
    )
    assert set(outcome.missing_metrics) == {"image_score", "group_score"}


def test_a_score_that_is_no_number_is_rejected(tmp_path, monkeypatch):
    row = _llava(monkeypatch, lambda number, *_: np.nan if number == 3 else 0.0)
    with pytest.raises(UserError, match=r": 1: the model returns a score that is not finite"):
        llava_choice.evaluate_likelihood(row, _config(winoground(tmp_path), "_likelihood"))


@world.LMMS_EVAL_WARNS
@pytest.mark.parametrize("way", ["_likelihood", "_mcq"])
def test_a_real_llava(places, tmp_path, way):
    """An untrained one: the numbers are those of its own likelihoods, and stated is what they depend on."""
    benchmark = configure(name=f"sugarcrepe{way}", data=str(sugarcrepe(tmp_path / "data")))
    result = world.measure(tmp_path / "results", benchmark, llava=places / "llava", batch_size=2)
    assert result.metrics["accuracy"].n == 3
    assert {"prompt", "score", "data_hash", "precision", "input_template", "ties"} <= set(result.protocol)
    margins = read_items(result)["margin"]
    assert (margins != 0).all()
    assert read_items(result)["score"].tolist() == (margins > 0).astype(float).tolist()
