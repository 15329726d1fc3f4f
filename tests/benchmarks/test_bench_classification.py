"""Zero-shot classification: numbers known beforehand, open_clip's class vectors, every layout, one line for a fault."""

from __future__ import annotations

from pathlib import Path

import bench_classes as classes
import bench_world as world
import numpy as np
import pytest
import torch
from bench_layouts import detected
from PIL import Image

from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.results import Result
from benchmarks.tasks.data.classification_sets import load_classification_set
from benchmarks.tasks.encoders import embedding
from benchmarks.tasks.encoders.classification import class_embeddings, class_prompts, class_ranks
from benchmarks.tasks.registry import configure
from clips.errors import UserError


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Evaluate a colorist; returns the result."""

    def ask(encoder: classes.Colorist, data: Path, **settings) -> Result:
        directory = world.use_encoder(monkeypatch, tmp_path, encoder.as_encoder())
        benchmark = configure(**{"name": "colors", "task": "classification", "data": str(data)} | settings)
        return world.measure(tmp_path / "results", benchmark, encoder=directory)

    return ask


def test_accuracy_and_mean_per_class_recall_by_hand(tmp_path, ask):
    data = classes.write_wds(tmp_path / "data", 10)  # three red, three green, two blue, two white
    result = ask(classes.Colorist({"red": "green"}), data)
    assert result.metrics["acc1"].value == pytest.approx(7 / 10)
    assert result.metrics["mean_per_class_recall"].value == pytest.approx(3 / 4)
    assert result.metrics["acc1"].ci_low < 0.7 < result.metrics["acc1"].ci_high
    # every class is all right or all wrong: nothing tells how another draw of its images would come out
    assert result.metrics["mean_per_class_recall"].ci_low is None
    assert result.missing_metrics == {"acc5": "there are only 4 classes"}
    items = world.check_formulas(result)
    assert (items["prediction"] == items["target"]).tolist() == (items["score"] == 1).tolist()
    assert items.loc[items["target"] == "red", "prediction"].tolist() == ["green"] * 3
    assert items["thumbnail"].notna().all()


def test_a_constant_model_scores_chance(tmp_path, ask):
    result = ask(classes.Colorist(blind=True), classes.write_wds(tmp_path / "data"))
    expected = dict.fromkeys(("acc1", "mean_per_class_recall"), 1 / 4)
    assert {name: metric.value for name, metric in result.metrics.items()} == pytest.approx(expected)


def test_top_five_against_sorting(monkeypatch):
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(40, 9)), generator.integers(0, 9, 40)
    scores[0] = 1.0  # all alike: any five of nine
    ranks = class_ranks(iter([scores[:17], scores[17:]]), targets)
    order = np.argsort(-scores, axis=1)
    for k in (1, 5):
        expected = (order[:, :k] == targets[:, None]).any(axis=1).astype(float)
        expected[0] = k / 9
        np.testing.assert_allclose(ranks.hit(k), expected)


def test_class_vectors_are_open_clips(monkeypatch):
    import bridge_world
    import open_clip

    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = bridge_world.open_clip_model({**bridge_world.VIT, "text_cfg": text})
    tokenizer = open_clip.SimpleTokenizer()
    encoder = world.dual_encoder(model, tokenizer)
    names = ["tench", "great white shark", "cock"]
    for ours, theirs in (
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        (("a {c}.", "no {} here"), ["a {}.", "no {} here"]),
    ):
        expected = open_clip.build_zero_shot_classifier(model, tokenizer, names, theirs).T
        found = class_embeddings(lambda texts: embedding.embed_texts(encoder, texts, 4), ours, names)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(class_prompts("openai_imagenet", "x")) == 80


def test_templates_are_those_of_the_config_and_in_the_protocol(tmp_path, ask):
    data = classes.write_wds(tmp_path / "data")
    beside = ask(classes.Colorist(), data)
    assert beside.protocol["prompt"] == "a {} square. | there is a {} thing"
    given = ask(classes.Colorist(), data, templates=("{} paint",))
    assert given.protocol["prompt"] == "{} paint"
    assert given.fingerprint != beside.fingerprint
    assert given.key != beside.key


def test_every_layout_has_the_same_images(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    table = classes.table()
    wds = load_classification_set(str(classes.write_wds(tmp_path / "wds")))
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "dict")
    (tmp_path / "parquet/data").mkdir(parents=True)
    table.to_parquet(tmp_path / "parquet/data/test-00000-of-00001.parquet")
    for layout, split in (("saved", "taken whole"), ("dict", "test"), ("parquet", "test")):
        found = load_classification_set(str(tmp_path / layout))
        assert found.split == split
        assert detected(tmp_path / layout, "classes") == {"datasets"}
        assert list(found.classes) == list(wds.classes)
        assert found.targets.tolist() == [number % 4 for number in range(12)]
        assert found.open(5).tobytes() == world.draw_image(5).tobytes()
    with pytest.raises(UserError, match=r"parquet: .*split \"train\""):
        load_classification_set(str(tmp_path / "parquet"), split="train")
    folders = load_classification_set(str(classes.write_folders(tmp_path / "folders")))
    assert detected(tmp_path / "wds", "classes") == {"webdataset"}
    assert detected(tmp_path / "folders", "classes") == {"folders"}
    assert folders.classes == [f"a {name} thing" for name in sorted(classes.CLASSES)]
    assert folders.open(0).tobytes() == world.draw_image(10).tobytes()  # a blue one, 10.png before 2.png
    (tmp_path / "folders/classnames.txt").write_text("B\nG\nR\nW\n")
    assert load_classification_set(str(tmp_path / "folders")).classes == ["B", "G", "R", "W"]
    few = load_classification_set(str(tmp_path / "folders"), limit=4)
    assert few.targets.tolist() == [0, 1, 2, 3]  # spread over all, not the first class alone
    assert few.open(3).tobytes() == folders.open(11).tobytes()


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen"]  # fmt: skip


def _reader() -> object:
    """An encoder that knows these fourteen names: the gray of an image and the last word of a text are its class."""

    class Reader:
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.eye(len(NAMES))[pixels[:, 0, 0, 0].long()]

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.eye(len(NAMES))[tokens[:, 0]]

    how = {"input_resolution": 8, "input_resize": "squash", "input_interpolation": "bilinear"}
    return world.dual_encoder(
        Reader(), lambda texts: torch.tensor([[NAMES.index(text.rpartition(" ")[2])] for text in texts]), **how
    )


def _gray(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, number, number))


def _numbered(root: Path, directories: list[str]) -> Path:
    for number, name in enumerate(directories):
        (root / name).mkdir(parents=True)
        _gray(number).save(root / name / "0.png")
    return root


@pytest.fixture
def accuracy(tmp_path, monkeypatch):
    def accuracy(data: Path, **settings) -> float:
        directory = world.use_encoder(monkeypatch, tmp_path, _reader())
        benchmark = configure(
            **{"name": "numbers", "task": "classification", "data": str(data), "templates": ("a {}",)} | settings
        )
        return world.measure(tmp_path / "results", benchmark, encoder=directory).metrics["acc1"].value

    return accuracy


@pytest.mark.parametrize("directory", ["{}", "{:02d}"])
def test_numbered_directories_are_in_the_order_of_their_numbers(tmp_path, accuracy, directory):
    """As ImageNetV2's: sorted as text, 10 comes before 2, and most images get another's name from the list."""
    data = _numbered(tmp_path / "data", [directory.format(number) for number in range(14)])
    expected = "are called by numbers, such as 0?0; expected their names in classnames.txt next to it, one line per"
    with pytest.raises(UserError, match=expected):
        accuracy(data)
    assert len(load_classification_set(str(data)).images) == 14  # a probe needs no names
    (data / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    assert accuracy(data) == 1.0


def test_a_list_of_the_directories_names_may_have_any_order(tmp_path, accuracy):
    data = _numbered(tmp_path / "data", NAMES)
    (data / "classnames.txt").write_text("\n".join(NAMES))  # the directories' order is that of the alphabet
    assert accuracy(data) == 1.0


def test_a_list_for_numbers_behind_a_word_may_have_two_orders(tmp_path, accuracy):
    """Of people, who count, and of torchvision's `ImageFolder`, which sorts by the alphabet."""
    data = _numbered(tmp_path / "data", [f"class_{number}" for number in range(14)])
    (data / "classnames.txt").write_text("\n".join(NAMES))
    with pytest.raises(
        UserError, match=r"classnames\.txt: its lines may be in the order of the numbers or of the alpha"
    ):
        accuracy(data)


@pytest.mark.parametrize("names", ["numbers", "ids"])
def test_a_dataset_whose_classes_are_called_by_numbers_or_ids_needs_names(tmp_path, accuracy, names):
    """As the `datasets` of a Hub repository are, in the order of the alphabet."""
    import datasets

    own = [str(number) if names == "numbers" else f"n{number:08d}" for number in range(14)]
    label = datasets.ClassLabel(names=sorted(own))
    images = [{"bytes": world.png(_gray(number)), "path": None} for number in range(14)]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = {"image": images, "label": [label.str2int(name) for name in own]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "data")
    with pytest.raises(UserError, match=f"are called by {'numbers' if names == 'numbers' else 'WordNet ids'}, such as"):
        accuracy(tmp_path / "data")
    (tmp_path / "data/classnames.txt").write_text("\n".join(NAMES) + "\n")
    assert accuracy(tmp_path / "data") == 1.0


def test_a_thousand_wordnet_ids_are_imagenets(tmp_path):
    import datasets
    from open_clip import IMAGENET_CLASSNAMES

    label = datasets.ClassLabel(names=[f"n{number:08d}" for number in range(1000)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    images = [{"bytes": world.png(_gray(0)), "path": None}] * 1000
    datasets.Dataset.from_dict({"image": images, "label": [*range(1000)]}, features=features).save_to_disk(tmp_path)
    assert list(load_classification_set(str(tmp_path), prompted=True).classes) == list(IMAGENET_CLASSNAMES)


def test_a_class_may_have_an_empty_name(tmp_path, ask):
    """As CLIP_benchmark's list for CLEVR's distances has one in the middle."""
    data = classes.write_wds(tmp_path / "data")
    _rename(data / "classnames.txt", "green\n", "\n")
    result = ask(classes.Colorist(), data)
    assert load_classification_set(str(data)).classes == ["red", "", "blue", "white"]
    assert result.metrics["acc1"].value == 1.0  # a text without a name is nearer to a green square than other names


def test_templates_of_a_file_need_a_slot_as_those_of_the_config_do(tmp_path, ask):
    data = classes.write_wds(tmp_path / "data")
    (data / "zeroshot_classification_templates.txt").write_text("a {} square\na photo\n")
    expected = r"data/test: zeroshot_classification_templates\.txt: expected \{\} where the class goes, got 'a photo'"
    with pytest.raises(UserError, match=expected):
        ask(classes.Colorist(), data)
    assert ask(classes.Colorist(), data, templates=("a {}",)).metrics["acc1"].value == 1.0


def _rename(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("breakage", "said"),
    [
        (lambda d: _rename(d / "classnames.txt", "white\n", ""), r"s0000003\.png: has class 3, but there are 3"),
        (lambda d: (d / "classnames.txt").write_text("a\nb\nc\nd\ne\nf"), "no image of class 4, 'e'"),
        (lambda d: (d / "test/1.tar").unlink(), r"expected 2 shards, as nshards\.txt says, found 1"),
    ],
)
def test_a_fault_in_the_data_is_one_line(tmp_path, ask, breakage, said):
    data = classes.write_wds(tmp_path / "data")
    breakage(data)
    with pytest.raises(UserError, match=said) as error:
        ask(classes.Colorist(), data)
    assert len(str(error.value).splitlines()) == 1


def test_mean_of_group_means_against_a_loop():
    generator = np.random.default_rng(1)
    groups = np.array([None if number % 7 == 0 else f"g{number % 5}" for number in range(40)], object)
    values = generator.normal(size=40)
    values[3] = np.nan
    weights = generator.integers(0, 2, (6, 40)).astype(float)
    weights[0, [number for number in range(40) if groups[number] == "g2"]] = 0  # a draw without a group
    expected = []
    for row in weights:
        means = []
        for group in ("g0", "g1", "g2", "g3", "g4"):
            chosen = (groups == group) & ~np.isnan(values)
            if row[chosen].sum():
                means.append((row[chosen] * values[chosen]).sum() / row[chosen].sum())
        expected.append(np.mean(means))
    columns = {"value": values, "group": groups}
    found = []
    for row in weights > 0:
        drawn = {name: column[row] for name, column in columns.items()}
        found.append(AGGREGATIONS["mean_of_group_means"].value(drawn, ("value", "group")))
    np.testing.assert_allclose(found, expected)
