"""The linear probe: what it must learn, how its strength is chosen, encoders without a text tower."""

from __future__ import annotations

from pathlib import Path

import bench_classes as classes
import bench_world as world
import numpy as np
import pytest

from benchmarks.report.report import build_report
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.encoders import embedding, linear_probe
from benchmarks.tasks.encoders.linear_probe import C_VALUES, select_c, validation_mask
from benchmarks.tasks.eval_model import EvalModel
from benchmarks.tasks.registry import configure
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.errors import UserError


def _data(root: Path, *, train: int = 40) -> Path:
    classes.write_wds(root, train, split="train", start=100)
    return classes.write_wds(root, 12)


def _run(tmp_path: Path, encoder: Path | str, data: Path, **settings) -> Result:
    benchmark = configure(**{"name": "probe", "task": "linear_probe", "data": str(data)} | settings)
    return world.measure(tmp_path / "results", benchmark, encoder=encoder)


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that loads as an encoder whose red looks green."""
    return world.use_encoder(monkeypatch, tmp_path, classes.Colorist({"red": "green"}).as_encoder())


def test_it_learns_what_can_be_learned(tmp_path, encoder):
    result = _run(tmp_path, encoder, _data(tmp_path / "data"))
    # red and green look alike and are equally frequent in train: their scores tie
    assert result.metrics["acc1"].value == pytest.approx(3 / 4)
    assert result.metrics["mean_per_class_recall"].value == pytest.approx(3 / 4)
    assert result.metrics["C"].value in C_VALUES
    assert result.metrics["C"].ci_low is None
    assert (result.protocol["images"], result.protocol["train_images"]) == (12, 40)
    items = read_items(result)
    blue = items["target"].isin(["blue", "white"])
    assert (items.loc[blue, "prediction"] == items.loc[blue, "target"]).all()


def test_a_weak_classifier_is_no_tie(tmp_path, encoder):
    """With so few images every C classifies alike, and the smallest is selected: log probabilities hardly differ."""
    result = _run(tmp_path, encoder, _data(tmp_path / "data", train=24))
    assert result.metrics["C"].value == C_VALUES[0]
    assert result.metrics["acc1"].value == pytest.approx(3 / 4)


def test_the_final_probe_is_trained_on_all_of_train(tmp_path, encoder, monkeypatch):
    learned = []
    original = linear_probe.fit_classifier

    def fit(features, *others):
        learned.append(len(features))
        return original(features, *others)

    monkeypatch.setattr(linear_probe, "fit_classifier", fit)
    _run(tmp_path, encoder, _data(tmp_path / "data"), limit=6)  # of the test images
    assert set(learned[:-1]) == {32}  # two of ten of each class held out
    assert learned[-1] == 40


def test_another_train_split_is_another_protocol(tmp_path, encoder):
    data = _data(tmp_path / "data")
    first = _run(tmp_path, encoder, data)
    classes.write_wds(data, 24, split="few", start=200)
    second = _run(tmp_path, encoder, data, train_split="few")
    assert second.fingerprint != first.fingerprint
    assert second.key != first.key


@pytest.mark.parametrize("peak", [0, 37, 96])
def test_the_search_finds_the_best_of_all_where_there_is_one_peak(monkeypatch, peak):
    """Wherever the single peak is, also where only the finest step reaches it; and few are asked."""
    asked = []

    class Peaked:
        def __init__(self, place: int) -> None:
            self.place = place

        def predict(self, features: np.ndarray) -> np.ndarray:
            right = np.arange(len(features)) >= abs(self.place - peak)
            return np.where(right, 0, -1)

    def fit(features, targets, strength):
        asked.append(strength)
        return Peaked(int(np.flatnonzero(strength == C_VALUES)[0]))

    monkeypatch.setattr(linear_probe, "fit_classifier", fit)
    targets = np.zeros(500, int)
    targets[:4] = 1  # too few for any to be held out
    assert select_c(np.zeros((500, 2)), targets) == C_VALUES[peak]
    assert len(asked) == len(set(asked)) < 20


@pytest.mark.parametrize(("images", "held_out"), [(1, 0), (2, 1), (4, 2), (5, 1)])
def test_few_images_a_class(images, held_out, tmp_path, encoder):
    targets = np.repeat(np.arange(4), images)
    found = _run(tmp_path, encoder, _data(tmp_path / "data", train=4 * images))
    assert found.metrics["acc1"].value == pytest.approx(3 / 4)
    said = found.protocol["selected_C"]
    if held_out:
        assert f"on 1 in {images // held_out} images" in said
    else:
        assert (found.metrics["C"].value, said) == (1.0, "1, because train has one image per class")
    features = np.eye(4)[targets]
    assert select_c(features, targets) in {1.0, *C_VALUES}


def test_one_in_five_of_each_class_is_held_out():
    targets = np.array([0] * 20 + [1] * 9 + [2] * 4)
    held = validation_mask(targets)
    assert [int(held[targets == number].sum()) for number in range(3)] == [4, 1, 0]
    assert held.tolist() == validation_mask(targets).tolist()
    places = np.flatnonzero(validation_mask(np.zeros(1000, int)))
    assert len({*np.diff(places)}) > 5  # at random: the files of a class may have an order


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_split": "test"}, "train_split: expected a different one than 'split', got 'test' for both"),
        ({"train_split": "one"}, "contains no image of class 1"),
    ],
)
def test_invalid_splits(tmp_path, encoder, settings, said):
    data = _data(tmp_path / "data")
    classes.write_wds(data, 1, split="one", shards=1)
    with pytest.raises(UserError, match=said):
        _run(tmp_path, encoder, data, **settings)


def test_splits_with_other_directories_are_other_classes_though_one_list_fits_both(tmp_path, encoder):
    for split, first in (("train", 100), ("test", 0)):
        for number in range(first, first + 40):
            folder = tmp_path / "data" / split / world.color(number)
            folder.mkdir(parents=True, exist_ok=True)
            world.draw_image(number).save(folder / f"{number}.png")
    (tmp_path / "data/classnames.txt").write_text("A\nB\nC\nD\n")
    assert _run(tmp_path, encoder, tmp_path / "data").metrics["acc1"].value == pytest.approx(3 / 4)
    (tmp_path / "data/train/blue").rename(tmp_path / "data/train/sky")  # now behind red, where green is in test
    with pytest.raises(UserError, match=r"'train' and 'test' have different classes \(only one of them has 'sky'\)"):
        _run(tmp_path, encoder, tmp_path / "data")


def test_test_images_that_the_probe_has_learned_are_counted(tmp_path, encoder, capsys):
    """Byte by byte, under another name."""
    data = _data(tmp_path / "data")
    clean = _run(tmp_path, encoder, data)
    assert not {linear_probe.IN_TRAIN, linear_probe.UNSEEN_ACCURACY} & clean.metrics.keys()
    classes.write_wds(data, 6, start=100)  # of its two shards the first stays
    members = {
        f"t{number:07d}.{kind}": content
        for number in range(6)
        for kind, content in (("png", world.png(world.draw_image(number))), ("cls", str(number % 4).encode()))
    }
    world.write_tar(data / "test/1.tar", members)
    (data / "test/nshards.txt").write_text("2\n")
    result = _run(tmp_path, encoder, data)
    items = read_items(result)
    seen = items["in_train"] == 1
    assert sorted(items.loc[seen, "item"]) == [f"0.tar/s0000{number}.png" for number in (100, 102, 104)]
    assert result.metrics[linear_probe.IN_TRAIN].value == pytest.approx(3 / 9)
    assert result.metrics[linear_probe.UNSEEN_ACCURACY].value == pytest.approx(items.loc[~seen, "acc1"].mean())
    assert result.metrics[linear_probe.UNSEEN_ACCURACY].n == 6
    said = "3 of 9 test images are byte by byte in"
    assert f"probe: {said} 'train', which the probe learns; acc@1 66.7" in capsys.readouterr().err
    report = build_report(tmp_path / "results")
    unseen = 100 * result.metrics[linear_probe.UNSEEN_ACCURACY].value
    text = f"probe: {said} the training split of the probe. Without them acc@1 is: {unseen:.1f} (row)."
    assert text in report.texts


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_timm_trunk_has_no_text_tower_and_needs_none(tmp_path):
    data = _data(tmp_path / "data", train=24)
    result = _run(tmp_path, "timm:resnet10t@random", data)
    assert result.protocol["input_features"] == "mean of the tokens of the last feature map"
    assert result.protocol["input_library"].startswith("timm ")
    assert result.metrics["acc1"].n == 12
    with pytest.raises(UserError, match="has no text tower"):
        _run(tmp_path, "timm:resnet10t@random", data, task="classification")


def test_the_class_token_is_the_embedding_where_there_is_one(tmp_path):
    """The tower of a transformers CLIP: the vector of an image is the first token of the last hidden state."""
    import original_world
    import torch

    tower = original_world.write_tower(original_world.Parts(), tmp_path / "clip")
    config = {"output": "unused", "benchmarks": [configure(name="linear_probe", data="d")]}
    row = EvalModel(RunConfig(model_name="row", encoder=f"transformers:{tower}", **config))
    picture = original_world.draw_image()
    pixels = row.tower.preprocess(picture)[None]
    states = list(row.tower.model.tower.states(pixels.to(row.device), row.tower.model.tower.depth))
    expected = torch.nn.functional.normalize(states[-1][:, 0], dim=-1).cpu()
    torch.testing.assert_close(embedding.embed_images(row.tower, lambda _: picture, ["one"], 1), expected)
    own = row.record("tower")["hash"]
    assert (
        own != EvalModel(RunConfig(model_name="row", encoder="timm:resnet10t@random", **config)).record("tower")["hash"]
    )
    assert len(own) == 64
