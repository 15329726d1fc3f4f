"""Blind runs: the same questions without their image, and the gain of the image with its test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import bench_world as world
import numpy as np
import pandas as pd
import pytest
from bench_layouts import winoground
from PIL import Image
from report_material import items_table, put_result

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.results.baselines import BLIND_KINDS, IN_BLIND_RUN, add_blind_columns
from benchmarks.results.measure import measure
from benchmarks.results.noise import TrainingNoise
from benchmarks.results.protocol import ranked_together
from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.results.statistics import compare_with_zero, wilson_interval
from benchmarks.tasks.blind import blank_images, draw_sample, mean_color, other_images
from benchmarks.tasks.eval_model import LmmsModel
from benchmarks.tasks.evaluation import MetricSpec, blind_metrics, compute_metric
from benchmarks.tasks.mllm.items import image_hash_name
from benchmarks.tasks.registry import BenchmarkConfig, configure
from clips.errors import UserError
from llava_bridge import load_llava

PICTURES = 6
BLIND: Any = ("blank", "shuffled")

pytestmark = world.LMMS_EVAL_WARNS


def _config(places: Path, name: str, **settings: Any) -> BenchmarkConfig:
    without = {"exclude_metrics": ("nocaps_METEOR",)} if name == "nocaps_val" else {}
    settings = {"blind": BLIND, "blind_items": 0.5, "max_new_tokens": 6, **without, **settings}
    return configure(name=name, data=str(places / "hub"), **settings)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """A model that knows all images: it answers from what it sees, and "no" or "red" to a blank image.

    The list gets the number of every image that it sees.
    """
    numbers = {world.draw_image(number).tobytes(): number for number in range(PICTURES)}
    seen: list[int | None] = []

    def answer_batches(model: Any, processor: Any, images: Any, prompts: Any, **_: Any) -> Any:
        for place, (shown, prompt) in enumerate(zip(images, prompts, strict=True)):
            number = numbers.get(shown[0].tobytes())
            seen.append(number)
            color = "red" if number is None else world.color(number)
            if "Is there" in prompt:
                yield {place: "yes" if number is not None and color in prompt else "no"}
            else:
                yield {place: world.captions(number or 0)[0] if "caption" in prompt else color}

    monkeypatch.setattr("llava_bridge.inference.generate.iter_answer_batches", answer_batches)
    return seen


def test_answers_without_the_image_are_stored_with_their_items(places, tmp_path, looking):
    config = _config(places, "pope")
    found = world.measure(tmp_path, config, llava=places / "llava")
    items = read_items(found)
    drawn = items[items[IN_BLIND_RUN]]
    assert (len(items), len(drawn), drawn["image"].nunique()) == (12, 6, 3)  # whole images
    assert drawn["sighted:correct"].tolist() == drawn["correct"].tolist() == [1.0] * 6
    assert drawn["blank:prediction"].tolist() == ["no"] * 6
    assert drawn["blank:correct"].tolist() == [1.0, 0.0] * 3 if drawn["target"].iloc[0] == "no" else [0.0, 1.0] * 3
    blank, gain = (found.metrics[f"pope_accuracy_{name}"] for name in ("blank", "over_blank"))
    assert (blank.value, blank.n, gain.value, gain.n, gain.clusters) == (0.5, 6, 0.5, 6, 3)
    assert items.loc[~items[IN_BLIND_RUN], "blank:correct"].isna().all()
    assert looking.count(None) == 6
    shuffled = looking[-6:]
    own = [int(number) // 2 for number in drawn["item"]]
    assert all(other is not None and other != number for other, number in zip(shuffled, own, strict=True))
    assert len(set(zip(own, shuffled, strict=True))) == 3  # one other image for all questions about an image
    plain = world.measure(tmp_path / "plain", dataclasses.replace(config, blind=()), llava=places / "llava")
    assert {name: each for name, each in found.metrics.items() if not each.condition} == plain.metrics
    assert ranked_together(plain.protocol, found.protocol)
    assert plain.key != found.key
    notes = build_comparison(CompareConfig(first=str(plain.path), second=str(found.path))).texts
    (blind,) = (note for note in notes if "runs without the image, which do not change the score" in note)
    assert "items: not stated against 0.5" in blind
    assert any("evaluated under the same settings, and ranked together, on pope" in note for note in notes)


def test_captions_are_scored_on_the_same_items_alone(places, tmp_path, looking):
    """CIDEr's weights depend on the other items: the score with the image is computed again on those of the run."""
    found = world.measure(tmp_path, _config(places, "nocaps_val"), llava=places / "llava")
    items = read_items(found)
    drawn = items[items[IN_BLIND_RUN]]
    assert not np.allclose(drawn["sighted:cider"], drawn["cider"])
    shuffled, gain = (found.metrics[f"nocaps_CIDEr_{name}"] for name in ("shuffled", "over_shuffled"))
    assert shuffled.value == pytest.approx(drawn["shuffled:cider"].mean())
    assert gain.value == pytest.approx(drawn["sighted:cider"].mean() - shuffled.value)
    assert gain.value > 0


def test_pairs_and_several_images(places, tmp_path, looking):
    of_first = dataclasses.replace(_config(places, "mme"), name="first", task="mme", limit=8)
    configs = (_config(places, "mme"), _config(places, "mmmu_val", blind_items=1.0), of_first)
    mme, mmmu, first = world.measure(tmp_path, *configs, llava=places / "llava")
    assert (first.metrics["mme_total"].n, first.metrics["mme_total_blank"].n) == (4, 2)
    assert mme.metrics["mme_total_blank"].value == 100.0  # half of each pair is right, never both
    assert mme.metrics["mme_total_over_blank"].value == 300.0
    assert mmmu.metrics["mmmu_acc_over_shuffled"].n == 12


def test_a_real_model_gets_the_images_of_the_run(places, tmp_path):
    """The stored answers are those of the LLaVA to the blank image, in a batch or alone; a second run asks nothing."""
    from llava_bridge import answer

    config = _config(places, "gqa", blind_items=1.0)
    found = world.measure(tmp_path, config, llava=places / "llava")
    items = read_items(found)
    model, processor = load_llava(places / "llava", "cpu")
    blank = Image.new("RGB", (64, 64), mean_color(processor))
    prompts = [f"{text}\nAnswer the question using a single word or phrase." for text in items["question"]]
    assert answer(model, processor, [blank] * PICTURES, prompts, max_new_tokens=6) == items["blank:prediction"].tolist()
    again = configure(**{**dataclasses.asdict(config), "name": "again", "task": "gqa"})
    files = {path: path.read_bytes() for path in (tmp_path / ".cache").rglob("*.jsonl")}
    assert read_items(world.measure(tmp_path, again, llava=places / "llava")).equals(items)
    assert files == {path: path.read_bytes() for path in (tmp_path / ".cache").rglob("*.jsonl")}


@pytest.mark.parametrize("task", ["winoground_likelihood", "winoground_mcq", "choice_likelihood", "choice_mcq"])
def test_pairs_of_captions_without_their_image(places, tmp_path, task):
    if "winoground" in task:
        data = winoground(tmp_path / "data")
    else:
        world.write_images(tmp_path / "data", PICTURES)
        rows = [
            {"image": f"{n}.png", "caption": world.captions(n)[0], "negative": world.captions(n + 1)[0]}
            for n in range(PICTURES)
        ]
        data = world.write_lines(tmp_path / "data/pairs.jsonl", rows)
    config = configure(name="x", task=task, data=str(data), blind=BLIND, blind_items=0.5)
    found = world.measure(tmp_path / "results", config, llava=places / "llava")
    items = read_items(found)
    drawn = items[items[IN_BLIND_RUN]]
    assert len(drawn) == len(items) // 2
    assert drawn["sighted:score"].tolist() == drawn["score"].tolist()
    if task == "winoground_likelihood":  # equal images win by chance
        assert found.metrics["image_score_blank"].value == 0.25
    for kind in BLIND_KINDS:
        baseline = found.metrics[f"{found.primary[0]}_{kind}"]
        assert baseline.value == drawn[f"{kind}:score"].mean()
        gain = found.metrics[f"{found.primary[0]}_over_{kind}"]
        assert gain.value == drawn["sighted:score"].mean() - baseline.value


def test_the_sample_is_a_derangement_of_whole_images():
    names = [f"picture {number // 3}" for number in range(60)] + [None]
    sample = draw_sample(names, "data", 0.1)
    rows = sample.rows(names)
    assert len(rows) == 6  # two images of three items
    assert sample == draw_sample(names, "data", 0.1)
    assert sample.order != draw_sample(names, "other data", 0.1).order
    assert all(next(sample.others(name)) != name for name in sample.order)
    assert len({next(sample.others(name)) for name in sample.order}) == len(sample.order) == 20
    with pytest.raises(UserError, match="expected at least two different images in the data, got 1"):
        draw_sample(["one", "one"], "data", 0.5)


def test_no_question_sees_one_of_its_own_images():
    first, second, third = (world.draw_image(number) for number in range(3))
    assert [image_hash_name(image) for image in other_images([first, second], [[second], [second, third]])] == [
        image_hash_name(third)
    ] * 2
    with pytest.raises(UserError, match="expected an image that is not one of the question's"):
        other_images([first], [[first.copy()]])


def test_a_shuffled_run_needs_an_image_of_another_case(places, tmp_path):
    data = winoground(tmp_path / "data")
    config = configure(name="winoground_likelihood", data=str(data), blind=("shuffled",), limit=1)
    with pytest.raises(UserError, match="expected an image that is not one of the question's"):
        world.measure(tmp_path / "results", config, llava=places / "llava")


def test_a_blank_image_has_the_size_of_the_image_where_it_matters(places):
    _, processor = load_llava(places / "llava", "cpu")
    own = [Image.new("RGB", size) for size in ((30, 40), (90, 20))]
    assert len({image.size for image in blank_images(processor, own, "squash")}) == 1
    assert [image.size for image in blank_images(processor, own, "anyres 336x672")] == [(30, 40), (90, 20)]
    pixels = processor.image_processor(blank_images(processor, own, "squash"), return_tensors="pt")["pixel_values"]
    assert abs(pixels).max() < 0.02  # the mean color: no pixel differs from the mean of the preprocessing


def _items(sighted: list[float], blank: list[float]) -> pd.DataFrame:
    names = [str(number) for number in range(len(sighted) + 5)]
    items = pd.DataFrame({"item": names, "image": names, "correct": [1.0] * len(names)})
    rows = list(range(5, len(names)))
    add_blind_columns(items, rows, {"sighted": {"correct": sighted}, "blank": {"correct": blank}})
    return items


def test_the_gain_by_hand():
    """Fifteen questions of 40 need the image, and five are answered better without."""
    sighted = [1.0] * 15 + [0.0] * 5 + [1.0] * 10 + [0.0] * 10
    blank = [0.0] * 15 + [1.0] * 5 + [1.0] * 10 + [0.0] * 10
    items = _items(sighted, blank)
    metric = compute_metric(items, MetricSpec(label="accuracy", columns=("correct",)))
    found = blind_metrics(items, {"accuracy": metric})
    assert found.keys() == {"accuracy_blank", "accuracy_over_blank"}
    baseline, gain = found.values()
    assert (metric.n, baseline.n, baseline.value, gain.value) == (45, 40, 15 / 40, 10 / 40)
    assert (baseline.ci_low, baseline.ci_high) == pytest.approx(wilson_interval(15, 40), abs=0.01)
    differences = np.subtract(sighted, blank)
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(40))
    assert 2 < t < 2.6
    tested = compare_with_zero(measure(items, gain, most=1.0).evidence, TrainingNoise())
    assert 0.02 < tested.p_value < 0.05
    assert (gain.ci_low, gain.ci_high) == (tested.low, tested.high)
    assert 0 < tested.low < 0.25 < tested.high


def test_a_result_whose_gains_contradict_its_items_is_rejected(places, tmp_path, looking):
    world.measure(tmp_path, _config(places, "pope"), llava=places / "llava")
    path = result_path(tmp_path, "row", "pope")
    content = json.loads(path.read_text())
    for name, changes, said in (
        ("blank", {"value": 0.1}, r"metrics\.pope_accuracy_blank\.value: expected 0\.5, as its items give, got 0\.1"),
        ("over_blank", {"n": 7}, r"pope_accuracy_over_blank\.n: expected 6, as its items have, got 7"),
        (
            "over_blank",
            {"value": 0.4, "ci_low": 0.1, "ci_high": 0.9},
            r"over_blank\.value: expected 0\.5, as its items",
        ),
        ("over_blank", {"condition": "dark"}, r"condition: expected one of blank, .*, got 'dark'"),
    ):
        wrong = json.loads(json.dumps(content))
        wrong["metrics"][f"pope_accuracy_{name}"] |= changes
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=said):
            read_result(path)


def test_a_file_of_the_schema_before_has_the_same_metrics(places, tmp_path, looking):
    """Its metrics had their scores without the image inside; it is neither refused nor evaluated again."""
    config = _config(places, "pope")
    now = world.measure(tmp_path, config, llava=places / "llava")
    path = result_path(tmp_path, "row", "pope")
    content = json.loads(path.read_text())
    before = {name: each for name, each in content["metrics"].items() if not each["condition"]}
    for name, each in before.items():
        each["blind"] = {}
        for field in ("minus", "baseline_of", "gain_of", "condition"):
            del each[field]
        for kind in BLIND_KINDS:
            if gain := content["metrics"].get(f"{name}_over_{kind}"):
                value = content["metrics"][f"{name}_{kind}"]["value"]
                numbers = {"value": value, "sighted": value + gain["value"], "n": gain["n"], "p_value": 0.5}
                each["blind"][kind] = numbers | {"gain_low": gain["ci_low"], "gain_high": gain["ci_high"]}
    path.write_text(json.dumps(content | {"schema": 6, "metrics": before}))
    then = read_result(path)
    assert then.metrics.keys() == now.metrics.keys()
    for name, each in then.metrics.items():
        known = now.metrics[name]
        assert (each.value, each.n, each.columns, each.minus, each.baseline_of, each.gain_of, each.condition) == (
            pytest.approx(known.value), known.n, known.columns, known.minus, known.baseline_of, known.gain_of,
            known.condition,
        )  # fmt: skip
        if each.gain_of:
            assert (each.ci_low, each.ci_high) == (known.ci_low, known.ci_high)
    asked = len(looking)
    assert world.measure(tmp_path, config, llava=places / "llava").metrics == then.metrics
    assert len(looking) == asked


def test_a_metric_that_is_named_like_a_blind_run_is_one_of_its_own(tmp_path):
    """In files of the schema before, blind runs were no metrics, and a task may name its metrics as it likes."""
    path = put_result(tmp_path, "row", "gqa", items_table(0.5, benchmark="gqa"))
    content = json.loads(path.read_text())
    metric = content["metrics"]["exact_match"]
    for field in ("minus", "baseline_of", "gain_of", "condition"):
        del metric[field]
    metrics = {"exact_match": metric, "exact_match_blank": metric, "exact_match_unread_wrong": metric}
    path.write_text(json.dumps(content | {"schema": 6, "metrics": metrics}))
    found = read_result(path).metrics
    assert [each.condition for each in found.values()] == ["", "", "unread_wrong"]
    assert found["exact_match_unread_wrong"].baseline_of == "exact_match"


def test_models_that_have_no_blind_runs(places, tmp_path):
    with pytest.raises(UserError, match=r"benchmarks\.pope\.blind: expected 'llava:' instead of lmms"):
        world.measure(tmp_path, _config(places, "pope"), lmms=LmmsModel(model="llava_hf"))
