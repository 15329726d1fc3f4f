"""Alignment and correspondence: values by naive formulas, known cases, features of real towers and language models."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import bench_world as world
import bridge_world as bridge
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from benchmarks.results.results import read_items
from benchmarks.tasks.data.phrase_boxes import Phrase
from benchmarks.tasks.encoders import image_tower
from benchmarks.tasks.encoders.alignment import embed_captions
from benchmarks.tasks.encoders.correspondence import pair_objects
from benchmarks.tasks.encoders.feature_similarity import (
    centered_distances,
    debiased_cka,
    distance_interval,
    gromov_wasserstein,
    neighbor_overlap,
)
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.errors import UserError


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def related(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, 3))
    return unit(first), unit(np.hstack([first, first[:, :1]]) + noise * rng.normal(size=(count, 4)))


def rotated(features: np.ndarray) -> np.ndarray:
    return features @ np.linalg.qr(np.random.default_rng(1).normal(size=(features.shape[1],) * 2))[0]


def naive_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al. 2012, equation 5, word for word."""
    k, l = (each @ each.T * (1 - np.eye(len(each))) for each in (first, second))  # noqa: E741
    n, one = len(k), np.ones(len(k))
    inner = np.trace(k @ l) + one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ l @ one
    return float(inner / (n * (n - 3)))


def naive_cka(first: np.ndarray, second: np.ndarray) -> float:
    return naive_hsic(first, second) / np.sqrt(naive_hsic(first, first) * naive_hsic(second, second))


def naive_overlap(first: np.ndarray, second: np.ndarray, k: int) -> float:
    shared = 0
    for item in range(len(first)):
        others = [other for other in range(len(first)) if other != item]
        one, two = (set(sorted(others, key=lambda j, x=x: -x[item] @ x[j])[:k]) for x in (first, second))
        shared += len(one & two)
    return shared / k / len(first)


@pytest.mark.parametrize("kind", ["cka", "neighbors"])
def test_values_and_influence_are_those_of_the_naive_jackknife(kind):
    first, second = related(25, 0.4)
    naive = naive_cka if kind == "cka" else lambda x, y: naive_overlap(x, y, 4)
    found = debiased_cka(first, second) if kind == "cka" else neighbor_overlap(first, second, 4)[1]
    whole = naive(first, second)
    without = np.array([naive(*(np.delete(each, item, 0) for each in (first, second))) for item in range(25)])
    assert found.mean() == pytest.approx(whole)
    np.testing.assert_allclose(found, whole + 24 * (without.mean() - without), atol=1e-10)
    if kind == "neighbors":
        assert neighbor_overlap(first, second, 4)[0].mean() == pytest.approx(whole)


def test_equal_features_are_perfectly_aligned_and_a_rotation_changes_nothing():
    first, second = related(40, 0.5)
    np.testing.assert_allclose(debiased_cka(first, rotated(first)), 1.0)
    np.testing.assert_allclose(neighbor_overlap(first, rotated(first), 5), 1.0)
    distances = [centered_distances(each) for each in (first, second, rotated(second))]
    order = np.random.default_rng(2).permutation(40)
    assert gromov_wasserstein(distances[0], distances[0]) == pytest.approx(0, abs=1e-7)
    assert gromov_wasserstein(distances[0], distances[0][np.ix_(order, order)]) == pytest.approx(0, abs=1e-7)
    assert gromov_wasserstein(distances[0], distances[1]) > 0.02
    assert gromov_wasserstein(distances[0], distances[1]) == pytest.approx(gromov_wasserstein(*distances[::2]))
    np.testing.assert_allclose(debiased_cka(first, second), debiased_cka(first, 3 * rotated(second)))


def test_independent_features_are_at_chance():
    rng = np.random.default_rng(0)
    first, second = unit(rng.normal(size=(400, 30))), unit(rng.normal(size=(400, 60)))
    assert abs(debiased_cka(first, second).mean()) < 0.02  # without the correction it would be 0.12
    assert neighbor_overlap(first, second, 10)[0].mean() == pytest.approx(10 / 399, abs=0.01)
    constant = np.full((400, 4), 0.5)
    assert np.isnan(debiased_cka(constant, second)).all()
    assert neighbor_overlap(constant, constant, 10)[0].mean() == pytest.approx(10 / 399, abs=0.01)  # ties


def test_the_distance_is_the_minimum_over_all_pairings_or_close_to_it():
    exact, found = [], []
    for seed in range(12):
        first, second = (centered_distances(each) for each in related(6, 0.3, seed))
        pairings = (np.array(order) for order in itertools.permutations(range(6)))
        exact.append(min(float(((first - second[np.ix_(each, each)]) ** 2).mean()) for each in pairings) ** 0.5)
        found.append(gromov_wasserstein(first, second))
        low, high = distance_interval(first, second)
        assert low <= found[-1] <= high
    differences = np.array(found) - exact
    assert differences.min() > -1e-9
    assert (differences < 1e-9).mean() >= 0.5


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return bridge.make_llm(tmp_path / "llm")


def alignment(data: Path, **settings: object) -> BenchmarkConfig:
    return BenchmarkConfig(name="alignment", data=str(data), **{"num_neighbors": 3} | settings)


def test_caption_features_are_the_mean_state_of_the_text_alone(llm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["The shape is red.", "What color is it? It is blue, or green.", "red"]
    (found,) = embed_captions(str(llm), texts, [[0, 1, 2]], "cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(llm), AutoModelForCausalLM.from_pretrained(llm)
    for text, vector in zip(texts, found, strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens, output_hidden_states=True).hidden_states[-1][0]
        plain = [place not in tokenizer.all_special_ids for place in tokens.input_ids[0].tolist()]
        expected = torch.nn.functional.normalize(states[plain].mean(0), dim=0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [bridge.VIT, bridge.RESNET], ids=["vit", "resnet"])
def test_image_features_are_those_that_a_llava_reads(tmp_path, llm, model):
    from llava_bridge.inference.generate import load_llava

    bridge.make_encoder(tmp_path / "encoder", model)
    llava = bridge.make_llava(tmp_path / "llava", tmp_path / "encoder", llm)
    image = world.draw_image(3)
    tower = image_tower.load_image_tower(str(tmp_path / "encoder"), "cpu", "auto", for_llava=True)
    seen, processor = load_llava(llava, "cpu")
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(tower.preprocess(image)[None], pixels)
    with torch.no_grad():
        states = seen.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = states[seen.config.vision_feature_layer][:, int(tower.model.tower.class_token) :]
        torch.testing.assert_close(tower.model.encode_patches(pixels).flatten(1, 2), expected)
        torch.testing.assert_close(tower.model.encode_image(pixels), expected.mean(1))
    assert tower.preprocessing["input_features"].endswith(f"hidden state -2 of {tower.model.tower.depth}")


def test_an_encoder_is_evaluated_and_the_language_model_counts(tmp_path, llm):
    bridge.make_encoder(tmp_path / "encoder", bridge.VIT)
    data, run = world.write_shards(tmp_path / "data", 14), {"encoder": tmp_path / "encoder"}
    result = world.measure(tmp_path / "results", alignment(data, text_model=str(llm)), **run)
    assert (result.status, result.benchmark_type, result.primary) == (
        "ok", "alignment", ["cka", "mutual_knn", "gromov_wasserstein"]
    )  # fmt: skip
    items, metrics = read_items(result), result.metrics
    assert metrics["mutual_knn"].value == pytest.approx(items["score"].mean())
    assert metrics["mutual_knn"].chance_levels == {"chance": pytest.approx(3 / 13)}
    assert metrics["cka"].ci_low < metrics["cka"].value < metrics["cka"].ci_high
    distance = metrics["gromov_wasserstein"]
    assert (distance.higher_is_better, distance.ci_method) == (False, "jackknife")
    assert distance.ci_low <= distance.value <= distance.ci_high
    few = world.measure(tmp_path / "few", alignment(data, text_model=str(llm), limit=9), **run)
    assert (few.protocol["images"], few.protocol["full_size"]) == (9, 14)

    weights = load_file(llm / "model.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, llm / "model.safetensors", {"format": "pt"})
    from benchmarks.tasks.encoders import alignment as module

    module._text_model_hash.cache_clear()
    other = world.measure(tmp_path / "results", alignment(data, text_model=str(llm)), **run)
    assert other.key != result.key
    assert other.fingerprint != result.fingerprint
    assert other.metrics["cka"].value != metrics["cka"].value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "benchmarks.text_model: expected a causal language model"),
        ({"text_model": "encoder"}, "benchmarks.text_model: "),
        ({"text_model": "llm", "num_neighbors": 13}, "expected at least 15 images for alignment, got 14"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, llm, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    bridge.make_encoder(tmp_path / "encoder", bridge.VIT)
    data = world.write_shards(tmp_path / "data", 14)
    with pytest.raises(UserError, match=message):
        world.measure(tmp_path / "results", alignment(data, **settings), encoder=tmp_path / "encoder")


def test_objects_are_paired_with_the_next_image_of_their_phrase():
    def phrase(image: str, text: str) -> Phrase:
        return Phrase(image, text, (0, 0, 1, 1), normalized=True)

    phrases = [phrase("a", "dog"), phrase("b", "dog"), phrase("c", "dog"), phrase("a", "cup"), phrase("a", "dog")]
    pairs = pair_objects(phrases)
    assert sorted(first for first, _ in pairs) == sorted(second for _, second in pairs) == [0, 1, 2]
    assert all(first != second for first, second in pairs)


@pytest.mark.parametrize("sees_colors", [True, False])
def test_objects_correspond_if_their_patches_look_alike(tmp_path, monkeypatch, sees_colors):
    """Images of 4 × 4 cells with a square of each color in a cell of its own."""
    rng, lines = np.random.default_rng(0), []
    for number in range(8):
        image = Image.new("RGB", (64, 64), (90, 90, 90))
        for cell, (name, color) in zip(rng.permutation(16)[:3], list(world.COLORS.items())[:3], strict=True):
            row, column = divmod(int(cell), 4)
            box = (16 * column, 16 * row, 16 * column + 15, 16 * row + 15)
            ImageDraw.Draw(image).rectangle(box, fill=color)
            lines.append({"image": f"{number}.png", "phrase": name, "box": [16 * column, 16 * row, 16, 16]})
        image.save(tmp_path / f"{number}.png")
    data = world.write_lines(tmp_path / "phrases.jsonl", lines)

    def encode_patches(pixels: torch.Tensor) -> torch.Tensor:
        cells = pixels[:, 8::16, 8::16].float() - 128
        return cells if sees_colors else torch.ones_like(cells)

    tower = world.dual_encoder(SimpleNamespace(encode_patches=encode_patches), None, input_resize="squash")
    monkeypatch.setattr(image_tower, "load_image_tower", lambda *_, **__: tower)
    encoder = world.use_encoder(monkeypatch, tmp_path, tower)
    config = BenchmarkConfig(name="correspondence", data=str(data))
    result = world.measure(tmp_path / "results", config, encoder=encoder)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values["chance"] == pytest.approx(1 / 16)
    assert values["correspondence"] == pytest.approx(1 if sees_colors else 1 / 16)
    assert values["other_object"] == pytest.approx(0 if sees_colors else 1 / 16)
    assert result.protocol["pairs"] == len(read_items(result)) == 24
    assert result.protocol["input_patch_grid"] == "4 x 4"

    single = BenchmarkConfig(name="correspondence", data=str(world.write_lines(tmp_path / "one.jsonl", lines[:1])))
    with pytest.raises(UserError, match="expected a phrase that occurs in two images"):
        world.measure(tmp_path / "other", single, encoder=encoder)


def test_a_wrong_number_of_neighbors_is_rejected():
    with pytest.raises(UserError, match=r"benchmarks\.num_neighbors: expected at least 1, got 0"):
        BenchmarkConfig(name="alignment", data=".", num_neighbors=0)
