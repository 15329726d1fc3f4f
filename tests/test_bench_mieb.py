"""MIEB through mteb: scores are those of mteb itself with its own models of open_clip and transformers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import bench_world as world
import numpy as np
import pytest
import torch
from PIL import Image
from test_bench_transformers_encoder import CONFIGS, write_model

from benchmarks import cli
from benchmarks.results.item_scores import ItemScores, comparable
from benchmarks.results.results import read_items, read_result, read_results, result_path
from benchmarks.study.schema import parse_study
from benchmarks.tasks.encoders.mieb import data_hash
from benchmarks.tasks.mllm import download
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig
from clips.commandline.commands import dispatch
from clips.encoder import write_encoder
from clips.errors import UserError
from clips.method.clips_model import ModelConfig, build_model
from clips.method.recipes import RecipeConfig

mteb = pytest.importorskip("mteb", reason="the extra mteb is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = ["car", "dog", "grass"]
COUNT = 24


def image(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 48), Image.Resampling.BICUBIC)


def text(number: int) -> str:
    return f"a {['red', 'green', 'blue'][number % 3]} {CLASSES[number // 3 % 3]} on {CLASSES[number // 9 % 3]}"


def images(count: int = COUNT, start: int = 0) -> list[Image.Image]:
    return [image(number) for number in range(start, start + count)]


def texts(count: int = COUNT) -> list[str]:
    return [text(number) for number in range(count)]


def write(root: Path, name: str, splits: dict[str, dict[str, list[Any]]]) -> None:
    """A dataset in the Hub's structure: ``config/split`` → columns."""
    import datasets

    configs: dict[str, list[str]] = {}
    for place, columns in splits.items():
        config, split = place.split("/")
        table = datasets.Dataset.from_dict(columns)
        for column, values in columns.items():
            if isinstance(values[0], Image.Image):
                table = table.cast_column(column, datasets.Image())
        if "label" in columns:
            table = table.cast_column("label", datasets.ClassLabel(names=CLASSES))
        (root / name / config).mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / name / config / f"{split}-00000-of-00001.parquet")
        configs.setdefault(config, []).append(split)
    lines = ["---", "configs:"]
    for config, names in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - {{split: {split}, path: {config}/{split}-*}}" for split in names]
    (root / name / "README.md").write_text("\n".join([*lines, "---", ""]))


def with_labels(count: int = COUNT, start: int = 0) -> dict[str, list[Any]]:
    return {"image": images(count, start), "label": [number % len(CLASSES) for number in range(count)]}


def pairs(start: int) -> dict[str, list[Any]]:
    scores = [float(number * 7 % 11) / 2 for number in range(COUNT)]
    return {"sentence1": images(start=start), "sentence2": images(start=start + 5), "score": scores}


def searched(queries: dict[str, list[Any]], corpus: dict[str, list[Any]], right: list[tuple[int, int, int]]) -> Any:
    """Queries, documents, and triples of query, document and relevance, as mteb stores retrieval."""
    number, found, score = (list(each) for each in zip(*right, strict=True))
    return {
        "queries/test": {"id": [f"q{each}" for each in range(len(next(iter(queries.values()))))], **queries},
        "corpus/test": {"id": [f"d{each}" for each in range(len(next(iter(corpus.values()))))], **corpus},
        "qrels/test": {
            "query-id": [f"q{each}" for each in number],
            "corpus-id": [f"d{each}" for each in found],
            "score": score,
        },
    }


def write_all(root: Path) -> Path:
    """The data of a task of each type."""
    same = [(number, number, 1) for number in range(COUNT)]
    write(root, "mteb/stl10", {"default/test": with_labels()})
    write(root, "mteb/dtd", {"default/train": with_labels(60, 50), "default/test": with_labels()})
    write(root, "mteb/imagenet-dog-15", {"default/test": with_labels()})
    four = {"image_0": images(), "image_1": images(start=40), "caption_0": texts(), "caption_1": texts()[::-1]}
    write(root, "facebook/winoground", {"default/test": four})
    three = {"image": images(12) * 2, "true_caption": texts(), "false_caption": texts()[::-1]}
    write(root, "mteb/ARO-Visual-Relation", {"default/test": three})
    write(root, "mteb/rendered-sts13", {"default/test": pairs(0)})
    languages = mteb.get_task("VisualSTS17Multilingual").metadata.tasks[0].hf_subsets
    rendered = {f"{name}/test": pairs(number) for number, name in enumerate(languages)}
    write(root, "Pixel-Linguist/rendered-sts17", rendered)
    grouped = [(number, other, 1) for number in range(COUNT) for other in range(COUNT) if (number - other) % 8 == 0]
    write(root, "mteb/cub200_retrieval", searched({"image": images()}, {"image": images()}, grouped))
    asked = {"image": images(12) * 2, "text": texts()}
    write(root, "mteb/vqa-2", searched(asked, {"text": texts()[::-1]}, same))
    chosen = [(number, (number + step) % COUNT, int(step == 0)) for number in range(COUNT) for step in range(4)]
    write(root, "mteb/blink-it2i-multi", searched(asked, {"image": images()}, chosen))
    found = {"query-id": list(range(COUNT)), "query": texts()}
    pages = {"corpus-id": list(range(COUNT)), "image": images()}
    right = {"query-id": list(range(COUNT)), "corpus-id": list(range(COUNT)), "score": [1] * COUNT}
    tables = {"queries/test": found, "corpus/test": pages, "qrels/test": right}
    write(root, "mteb/shiftproject_test_beir", tables)
    captions = [[text(number), text(number + 5)] for number in range(COUNT)]
    shown = {"image_id": [str(number) for number in range(COUNT)], "image": images(), "captions": captions}
    less = {name: values[:20] for name, values in shown.items()}  # of one language
    written = {f"default/{name}": shown for name in mteb.get_task("WITT2IRetrieval").hf_subsets}
    write(root, "mteb/wit", {**written, next(iter(written)): less})
    return root


TASKS = {
    "STL10ZeroShot": "accuracy",
    "DTD": "accuracy",
    "ImageNetDog15Clustering": "nmi",
    "Winoground": "accuracy",
    "AROVisualRelation": "text_acc",
    "STS13VisualSTS": "cosine_spearman",
    "VisualSTS17Multilingual": "cosine_spearman",
    "CUB200I2IRetrieval": "hit_rate_at_1",
    "VQA2IT2TRetrieval": "ndcg_at_10",
    "BLINKIT2IMultiChoice": "accuracy",
    "VidoreShiftProjectRetrieval": "ndcg_at_5",
    "WITT2IRetrieval": "ndcg_at_10",
}
"""A task of each type in MIEB(lite) → its main score."""


def tasks_of(name: str) -> list[str]:
    return [*TASKS][:6] if name == "clip" else [*TASKS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("mieb"))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name → the encoder, untrained: one of open_clip, one of transformers."""
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "clips").mkdir()
    model = build_model(ModelConfig(context_length=12, image_size=32), RecipeConfig(name="clip"), seed=3)
    with torch.no_grad():
        for value in model.clip.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    write_encoder(model, folder / "clips")
    return {"clips": str(folder / "clips"), "clip": f"transformers:{write_model(CONFIGS['clip'](), folder / 'clip')}"}


def own_model(name: str, encoder: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """mteb's own model of these weights."""
    if name == "clip":
        from mteb.models.model_implementations.clip_models import CLIPModel

        model = CLIPModel(encoder.removeprefix("transformers:"), None, device="cpu")
    else:
        import open_clip
        from mteb.models.model_implementations.openclip_models import openclip_loader

        for function in ("create_model_and_transforms", "get_tokenizer"):  # a directory instead of a name on the Hub
            load = getattr(open_clip, function)
            given = lambda path, load=load, **more: load(path.replace("hf-hub:", "local-dir:"), **more)  # noqa: E731
            monkeypatch.setattr(open_clip, function, given)
        model = openclip_loader(encoder, revision="", device="cpu")
    model.mteb_model_meta = mteb.models.ModelMeta.create_empty({"modalities": ["image", "text"]})
    return model


@pytest.fixture(scope="module")
def results(data: Path, encoders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One encoder on all tasks, the other on some."""
    output = tmp_path_factory.mktemp("results")
    for name, encoder in encoders.items():
        listed = [BenchmarkConfig(name=task, task=f"mieb:{task}", data=str(data)) for task in tasks_of(name)]
        run_benchmarks(RunConfig(model_name=name, output=str(output), encoder=encoder, benchmarks=listed))
    return output


@pytest.mark.parametrize("name", ["clips", "clip"])
def test_scores_are_mtebs_own(
    name: str, results: Path, data: Path, encoders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {result.benchmark: result for result in read_results(results) if result.model_name == name}
    model = own_model(name, encoders[name], monkeypatch)
    monkeypatch.chdir(data)  # where the Hub's names are directories
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    quiet: dict[str, Any] = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    for task in tasks_of(name):
        main = TASKS[task]
        own = mteb.evaluate(model, mteb.get_task(task), encode_kwargs={"batch_size": 16}, **quiet).task_results[0]
        result = found[task]
        assert list(result.primary) == [main]
        for metric, value in result.metrics.items():
            expected = own.get_score(getter=lambda scores, metric=metric: scores[metric])
            assert value.value == pytest.approx(expected, abs=1e-5), (task, metric)
        numbers = {name for name, value in own.scores["test"][0].items() if isinstance(value, float)}
        listed = {*result.metrics, *result.missing_metrics}  # the average precision of three classes is NaN
        assert listed == {name for name in numbers if not re.match("nauc|main_score|.*_std", name)}
        assert (result.metrics[main].ci_low is None) == (task == "ImageNetDog15Clustering"), task
        assert result.protocol["scorer"] == f"mteb {mteb.__version__}"
        assert result.protocol["embedding"] == "the model's output, not normalized"  # of the key of cached vectors, too


def test_items_have_images_as_clusters_and_are_paired(results: Path, tmp_path: Path) -> None:
    found = {(result.model_name, result.benchmark): result for result in read_results(results)}
    clusters = {task: found["clips", task].metrics[main].clusters for task, main in TASKS.items()}
    assert clusters == dict.fromkeys(TASKS, COUNT) | dict.fromkeys(
        ["AROVisualRelation", "VQA2IT2TRetrieval", "BLINKIT2IMultiChoice"],
        12,  # images, each with two texts
    )
    assert found["clips", "STL10ZeroShot"].metrics["accuracy"].chance_levels["chance"] == pytest.approx(1 / 3)
    metrics = found["clips", "AROVisualRelation"].metrics
    assert {name: value.chance_levels.get("chance") for name, value in metrics.items()} == {
        "text_acc": 0.5, "image_acc": 0.0, "accuracy": None,
    }  # fmt: skip
    assert metrics["image_acc"].value == 0  # one image cannot match two texts
    items = read_items(found["clips", "WITT2IRetrieval"])
    assert items["item"].is_unique
    assert set(items["direction"]) == {"t2i"}
    assert items["category"].nunique() == len(mteb.get_task("WITT2IRetrieval").hf_subsets)
    scores = ItemScores()
    for task in tasks_of("clip"):
        pair = [scores.of_model([found[name, task]], TASKS[task]) for name in ("clips", "clip")]
        assert comparable(*pair) == (task != "ImageNetDog15Clustering"), task
    assert dispatch("clips-bench", "", cli.COMMANDS, ["report", str(results), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "VisualSTS17Multilingual" in page


def test_an_encoder_without_a_text_tower_takes_the_tasks_of_images(data: Path, tmp_path: Path) -> None:
    image_only = BenchmarkConfig(name="DTD", task="mieb:DTD", data=str(data))
    tower = "timm:test_vit@random"
    result = world.measure(tmp_path, image_only, encoder=tower)
    assert 0 < result.metrics["accuracy"].value < 1
    with pytest.raises(UserError, match="no text tower"):
        world.measure(tmp_path, BenchmarkConfig(name="a", task="mieb:Winoground", data=str(data)), encoder=tower)


def test_the_group_is_mtebs_list_in_runs_and_studies(
    data: Path, encoders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lite = [task.metadata.name for task in mteb.get_benchmark("MIEB(lite)").tasks]
    study = {"name": "s", "encoders": {"a": encoders["clips"]}, "llms": {}}
    listed = {"mieb": {"data": "$later"}, "DTD": {"data": "y"}}
    benchmarks = parse_study({**study, "benchmarks": listed}).benchmarks
    assert list(benchmarks) == lite
    assert benchmarks["Winoground"] == {"data": "$later", "task": "mieb:Winoground"}
    assert benchmarks["DTD"] == {"data": "y"}  # an entry of its own replaces the group's
    with pytest.raises(
        UserError, match=r"benchmarks\.mieb\.data: x: expected directories of the tasks of 'mieb' \(mteb/"
    ):
        parse_study({**study, "benchmarks": {"mieb": {"data": "x"}}})
    (tmp_path / "part/mteb").mkdir(parents=True)
    (tmp_path / "part/mteb/dtd").symlink_to(data / "mteb/dtd")
    every = RunConfig(model_name="a", output=str(tmp_path), encoder=encoders["clips"],
                      benchmarks=[BenchmarkConfig(name="mieb", data=str(tmp_path / "part"))])  # fmt: skip
    run_benchmarks(every)
    assert [result.benchmark for result in read_results(tmp_path)] == ["DTD"]
    assert "1 of the 51 tasks of 'mieb'; missing: Country211, EuroSAT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "mieb:DTDs"}, "mieb:DTDs: "),
        ({"task": "mieb:STS12"}, "'STS12': expected one of images"),
        ({"task": "mieb:VOC2007.v2"}, "'VOC2007.v2': expected one label for each image, it has several"),
        ({"task": "mieb:DTD", "templates": "simple"}, "takes no such setting"),
        ({"task": "mieb:DTD", "limit": 3}, "evaluated completely"),
        ({"task": "mieb:EuroSAT"}, "expected the data of mieb:EuroSAT in mteb/eurosat-rgb/ below it"),
    ],
)
def test_wrong_settings_are_one_line(
    settings: dict[str, Any], message: str, data: Path, encoders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        world.measure(tmp_path, BenchmarkConfig(name="a", data=str(data), **settings), encoder=encoders["clips"])
    assert "\n" not in str(error.value)


def test_broken_data_of_an_aggregate_leave_other_entries_alone(
    data: Path, encoders: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "Pixel-Linguist/rendered-sts17"
    shutil.copytree(data / "Pixel-Linguist/rendered-sts17", broken)
    for file in broken.rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    listed = [BenchmarkConfig(name=root.name, task="mieb:VisualSTS17Multilingual", data=str(root))
              for root in (tmp_path, data)]  # fmt: skip
    with pytest.raises(UserError, match=r"failed: [^,]*cannot be read as the data of VisualSTS17Multilingual[^,]*$"):
        world.measure(tmp_path, *listed, encoder=encoders["clips"])
    assert read_result(result_path(tmp_path, "row", data.name)).status == "ok"


def test_another_version_of_mteb_is_another_key(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BenchmarkConfig(name="DTD", task="mieb:DTD", data=str(data))
    before = data_hash(config)
    monkeypatch.setattr(mteb, "__version__", "0")
    assert data_hash(config) != before


def test_broken_data_are_named(data: Path, encoders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(data / "mteb/dtd", tmp_path / "mteb/dtd")
    file = tmp_path / "mteb/dtd/default/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as the data of DTD") as error:
        world.measure(
            tmp_path, BenchmarkConfig(name="a", task="mieb:DTD", data=str(tmp_path)), encoder=encoders["clips"]
        )
    assert str(file) in str(error.value)


def test_downloads_are_at_mtebs_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stop(name: str, revision: str) -> None:
        asked.append((name, revision))
        raise UserError("no network")

    monkeypatch.setattr(download, "_dataset_info", stop)
    with pytest.raises(UserError, match="no network"):
        download.run_download(download.DownloadConfig(tasks="mieb", output=str(tmp_path)))
    first = mteb.get_benchmark("MIEB(lite)").tasks[0].metadata.dataset
    assert asked == [(first["path"], first["revision"])]
