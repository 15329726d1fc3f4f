"""``pointing_hit`` and ``clips-bench similarity-map``: towers by identities, maps by images whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import bench_world as world
import clips_world
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import adaptive_avg_pool2d, gelu, linear

from benchmarks.results.results import Result, read_items
from benchmarks.tasks.data.phrase_boxes import load_benchmark_phrases
from benchmarks.tasks.encoders.patch_embeddings import patch_embeddings
from benchmarks.tasks.encoders.pointing import VisibleRegion, pointing_auc, pointing_hit
from benchmarks.tasks.encoders.similarity_map_command import SimilarityMapConfig, run_similarity_map
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.errors import UserError
from clips.model.towers import build_towers

TEXT = {"width": 16, "heads": 2, "layers": 1, "context_length": 8, "vocab_size": 50}
VIT = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def towers(**vision: object):
    torch.manual_seed(0)
    custom = {"custom_text": True} if "timm_model_name" in vision else {}
    return build_towers({"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT, **custom}).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "vision",
    [
        {**VIT, "pool_type": "avg"},
        {"image_size": 64, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"},
    ],
    ids=["vit", "timm"],
)
def test_the_mean_of_patches_is_the_image_vector_with_mean_pooling(vision):
    model = towers(**vision)
    pixels = torch.randn(2, 3, vision["image_size"], vision["image_size"])
    places = patch_embeddings(model, pixels)
    assert places.shape[-1] == 12
    assert places.shape[1] * places.shape[2] > 1
    torch.testing.assert_close(places.mean(dim=(1, 2)), model.encode_image(pixels), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_resnets_places_are_what_its_attention_pools():
    model = towers(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=32, patch_size=None)
    pool = model.visual.attnpool
    pool.q_proj.weight.zero_()
    pool.q_proj.bias.zero_()  # all keys are alike: the pooled vector is the mean of all values
    pixels = torch.randn(2, 3, 64, 64)
    features = model.visual.forward_intermediates(pixels, indices=1)["image_intermediates"][0]
    whole = pool.c_proj(pool.v_proj(features.mean(dim=(2, 3)) + pool.positional_embedding[0]))
    places = patch_embeddings(model, pixels)
    assert places.shape == (2, 2, 2, 12)
    values = torch.cat([whole[:, None], places.flatten(1, 2)], dim=1)
    torch.testing.assert_close(values.mean(dim=1), model.encode_image(pixels), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_class_tokens_places_take_the_value_path_of_the_last_block():
    visual = (model := towers(**VIT, pool_type="tok")).visual
    pixels = torch.randn(2, 3, 32, 32)
    first, last = visual.transformer.resblocks
    x = first(visual._embeds(pixels))[:, 1:]
    value = linear(last.ln_1(x), last.attn.in_proj_weight[32:], last.attn.in_proj_bias[32:])
    x = x + last.attn.out_proj(value)
    hidden = linear(last.ln_2(x), last.mlp.c_fc.weight, last.mlp.c_fc.bias)
    x = x + linear(gelu(hidden), last.mlp.c_proj.weight, last.mlp.c_proj.bias)
    expected = visual.ln_post(x) @ visual.proj
    torch.testing.assert_close(patch_embeddings(model, pixels).flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_pooling_has_patches_and_an_unknown_tower_is_rejected():
    model = towers(**VIT, attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2)
    places = patch_embeddings(model, torch.randn(2, 3, 32, 32))
    assert places.shape == (2, 4, 4, 12)
    assert places.isfinite().all()
    with pytest.raises(UserError, match="no patch embeddings"):
        patch_embeddings(SimpleNamespace(visual=torch.nn.Identity()), torch.randn(1, 3, 8, 8))


class ColorTower:
    """Sees the mean color of each of ``side`` × ``side`` places and understands the names of colors."""

    def __init__(self, side: int = 4) -> None:
        self.visual, self.trunk, self.side = self, self, side
        self.image_size, self.preprocess_cfg = 64, {"size": 64, "resize_mode": "shortest"}

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool2d(pixels, self.side) + 1e-3

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(pixels))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.eye(3)[tokens[:, 0]]


def _preprocess(image: Image.Image) -> torch.Tensor:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BOX)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Put a tower in the place of the encoder."""

    def put(tower: ColorTower) -> Path:
        how = {"input_resolution": 64, "input_resize": "shortest", "input_interpolation": "box"}
        tokenizer = lambda texts: torch.tensor([[list(COLORS).index(text)] for text in texts])  # noqa: E731
        directory = world.use_encoder(monkeypatch, tmp_path, world.dual_encoder(tower, tokenizer, _preprocess, **how))
        (directory / "color").write_text(str(tower.side))
        return directory

    return put


@pytest.fixture
def phrases(tmp_path) -> Path:
    """Eight images of 128×64 with a square of each color in the middle 64×64, each in a cell of its own."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(8):
        image = Image.new("RGB", (128, 64))
        for cell, (name, color) in zip(generator.permutation(16)[:3], COLORS.items(), strict=True):
            row, column = divmod(int(cell), 4)
            left, top = 32 + 16 * column, 16 * row
            ImageDraw.Draw(image).rectangle((left, top, left + 15, top + 15), fill=color)
            lines.append({"image": f"{number}.png", "phrase": name, "box": [left, top, 16, 16]})
        image.save(tmp_path / f"{number}.png")
    return world.write_lines(tmp_path / "phrases.jsonl", lines)


def evaluate(data: Path, encoder: Path, row: str = "row", **settings: object) -> Result:
    benchmark = BenchmarkConfig(name="pointing", data=str(data), **settings)
    return world.measure(encoder.parent / "results", benchmark, row=row, encoder=encoder)


def test_a_tower_that_sees_colors_points_at_them(phrases, use):
    result = evaluate(phrases, use(ColorTower()))
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values["pointing"] == 1.0
    assert values["auc"] > 0.9
    assert values["chance"] == pytest.approx(1 / 16)
    assert values["pointing_any"] < 0.5
    assert result.protocol["input_patch_grid"] == "4 x 4"
    items = read_items(result)
    first = json.loads(phrases.read_text().splitlines()[0])
    middle = [(first["box"][0] + 8) / 1.28, (first["box"][1] + 8) / 0.64]
    assert items["prediction"][0] == f"{middle[0]:.0f} % from the left, {middle[1]:.0f} % from the top"
    assert items["map"].notna().sum() == 8  # one of each image
    assert items["thumbnail"].notna().sum() == 8

    whole = evaluate(phrases, use(ColorTower(side=1)), "blind")  # it has one place, which it must point at
    assert whole.metrics["pointing"].value == whole.metrics["chance"].value
    assert whole.metrics["auc"].value == 0.5


def test_a_metric_without_a_value_is_missing_and_the_others_are_reported(phrases, use):
    """Boxes of whole images leave no outside to compare with."""
    line = json.loads(phrases.read_text(encoding="utf-8").splitlines()[0])
    with Image.open(phrases.parent / line["image"]) as picture:
        line["box"] = [0, 0, *picture.size]
    phrases.write_text(json.dumps(line) + "\n", encoding="utf-8")
    result = evaluate(phrases, use(ColorTower()))
    assert result.metrics["pointing"].value == 1.0
    assert "auc" not in result.metrics
    assert result.missing_metrics["auc"] == "no item has a value"


def test_points_and_areas_by_hand():
    found = np.array([[1.0, 2.0], [3.0, 3.0]])
    assert pointing_hit(found, np.array([[False, False], [True, False]])) == 0.5  # two places are equally similar
    assert pointing_hit(found, np.array([[True, True], [False, False]])) == 0.0
    assert pointing_auc(found, np.array([[False, False], [True, True]])) == 1.0
    assert pointing_auc(found, np.array([[False, True], [False, True]])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert np.isnan(pointing_auc(found, np.ones((2, 2), bool)))


def test_the_crop_of_a_wide_image():
    assert VisibleRegion.of({"input_resize": "squash"}, 200, 100) == VisibleRegion(0, 0, 1, 1)
    assert VisibleRegion.of({"input_resize": "shortest"}, 200, 100) == VisibleRegion(0.25, 0, 0.75, 1)
    assert VisibleRegion.of({"input_resize": "longest"}, 200, 100) == VisibleRegion(0, -0.5, 1, 1.5)
    inside = VisibleRegion(0.25, 0, 0.75, 1).inside(
        (0.3, 0.0, 0.4, 0.3), 2, 2
    )  # middles at 0.375 and 0.625, 0.25 and 0.75
    assert inside.tolist() == [[True, False], [False, False]]


def test_scenes_give_phrases_that_distinguish_one_object(tmp_path):
    def thing(kind: str, color: str | None) -> dict[str, object]:
        return {"kind": kind, "color": color, "box": [256, 512, 256, 256]}

    scenes = [
        [thing("car", "red"), thing("car", "blue"), thing("dog", None)],
        [thing("cup", "red"), thing("cup", "red")],
        [],
    ]
    samples = {
        f"{number:09d}": {
            "png": clips_world.draw_image(number),
            "json": json.dumps({"scene": {"objects": each}}).encode(),
        }
        for number, each in enumerate(scenes)
    }
    clips_world.write_shard(tmp_path / "scenes" / "shard-00000.tar", samples)
    found = load_benchmark_phrases(BenchmarkConfig(name="pointing", data=str(tmp_path / "scenes")))
    assert [phrase.text for phrase in found.phrases] == ["red car", "blue car", "dog"]
    assert found.phrases[0].within(64, 64) == (0.25, 0.5, 0.5, 0.75)
    assert found.open(found.images[0]).size == (40, 32)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "0.png", "phrase": "red", "box": [1, 2, 3]}, r"line 1: box: expected left, top, width and height"),
        ({"image": "0.png", "phrase": "red", "box": [120, 0, 30, 20]}, r"is not inside this image of 128x64"),
        ({"image": "0.png", "box": [1, 2, 3, 4]}, r"line 1: .*phrase"),
    ],
)
def test_a_broken_line_is_named(phrases, use, line, message):
    phrases.write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        evaluate(phrases, use(ColorTower()))


def test_look_writes_an_image_that_is_bright_where_the_phrase_is(phrases, use, capsys):
    line = json.loads(phrases.read_text().splitlines()[0])
    output = phrases.parent / "map.png"
    picture = phrases.parent / "0.png"
    settings = {"encoder": str(use(ColorTower())), "image": str(picture), "output": str(output)}
    run_similarity_map(SimilarityMapConfig(phrase="red", **settings))
    left, top = line["box"][:2]
    said = capsys.readouterr().err + capsys.readouterr().out
    assert f"brightest {(left + 8) / 1.28:.0f} % from the left" in said
    shown = np.array(Image.open(output).convert("RGB"))
    assert shown.shape == (64, 128, 3)
    assert shown[top + 8, left + 8, 0] > 240  # where it is as bright as it was
    assert shown.max(axis=(0, 1))[1] < 200  # the green square is dark
    with pytest.raises(UserError, match=r"image: gone\.png: expected an image \(No such file"):
        run_similarity_map(SimilarityMapConfig(phrase="red", **settings | {"image": "gone.png"}))
