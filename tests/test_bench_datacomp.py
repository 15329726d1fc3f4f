"""DataComp's tasks: each layout of its data in miniature, its metrics against scikit-learn, its published averages."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path

import bench_classes as classes
import bench_world as world
import datasets
import numpy as np
import pandas as pd
import pytest
from report_material import put_result
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score

from benchmarks.report.html_page import render_page
from benchmarks.report.report import build_report
from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.study.build_steps import build_plan
from benchmarks.study.schema import parse_study
from benchmarks.tasks.data.classification_sets import load_classification_set
from benchmarks.tasks.datacomp import TASKS
from benchmarks.tasks.encoders.winogavil import Cue, expected_jaccard
from benchmarks.tasks.registry import BENCHMARKS, expand_group
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig
from clips.errors import UserError

PUBLISHED = """0.5245 0.6332 0.8758 0.8983 0.6423 0.2320 0.2335 0.1720 0.4436 0.5044 0.1953 0.8400 0.3258 0.4229 0.5592
0.3155 0.4775 0.6933 0.2743 0.4839 0.4431 0.6670 0.8700 0.7640 0.6224 0.5865 0.5362 0.5963 0.9713 0.6248 0.3159 0.6884
0.4028 0.4125 0.0732 0.6061 0.1676 0.5386 0.8217"""
"""The row of OpenAI's ViT-B-32 in open_clip's docs/openclip_results.csv: the average, then 38 columns."""
THORN = {  # of nlphuji/winogavil
    "candidates": ["tea", "marshmallow", "pile", "splinter", "relic", "rose", "product", "heater", "hanger", "children",
                   "furniture", "heroin"],
    "cue": "thorn", "associations": ["splinter", "rose"], "score_fool_the_ai": 67, "num_associations": 2,
    "num_candidates": 12, "solvers_jaccard_mean": 1.0, "solvers_jaccard_std": 0.0, "ID": 2709,
}  # fmt: skip
PAIRS = [(["red", "green", "white", "blue", "sun"], "Green", [0, 1]), ([*"abcdefghij"], "blue", [2, 6])]


def put_npy(root: Path, groups: list[int], *, without: str = "") -> None:
    """Add an ``.npy`` to each image: its group, the year, and its class, as FMoW's; leave out a class."""
    for shard in sorted((root / "test").glob("*.tar")):
        members = {}
        with world.tarfile.open(shard) as tar:
            for member in tar.getnames():
                members[member] = tar.extractfile(member).read()
                if member.endswith(".cls"):
                    stream = io.BytesIO()
                    np.save(stream, np.array([groups[int(member[1:-4])], 2016, int(members[member])]))
                    members[member.replace(".cls", ".npy")] = stream.getvalue()
        left_out = {member[:-4] for member, content in members.items() if content.decode("latin-1") == without}
        world.write_tar(shard, {name: content for name, content in members.items() if name[:-4] not in left_out})


def write_cache(root: Path, name: str, rows: list[dict], image: str) -> None:
    """What ``datasets.load_dataset("nlphuji/NAME", cache_dir=ROOT/hf_cache)`` leaves: Arrow, images by their paths."""
    cell = datasets.List(datasets.Image()) if isinstance(rows[0][image], list) else datasets.Image()
    features = datasets.Features.from_dict(datasets.Dataset.from_list(rows).features.to_dict()) | {image: cell}

    class Builder(datasets.GeneratorBasedBuilder):
        def _info(self):
            return datasets.DatasetInfo(features=datasets.Features(features))

        def _split_generators(self, _):
            return [datasets.SplitGenerator(name="test")]

        def _generate_examples(self):
            yield from enumerate(rows)

    builder = Builder(cache_dir=str(root / "hf_cache"), dataset_name=name, repo_id=f"nlphuji/{name}", hash="51e1265f")
    builder.download_and_prepare()


def write_datacomp(root: Path) -> Path:
    """A directory of DataComp's download_evalsets.py with six of the tasks."""
    for task in ("vtab-caltech101", "wilds-iwildcam", "wilds-fmow", "dollar_street"):
        data = classes.write_wds(root / f"wds_{task}_test")
        if task != "vtab-caltech101":
            put_npy(data, [number // 5 for number in range(12)], without="1" if task == "wilds-iwildcam" else "")
            (data / "classnames.txt").write_text("\n".join([*classes.CLASSES, "a", "b", "c", "d"]) + "\n")
    extracted = world.write_images(root / "hf_cache/downloads/extracted/93f1", 24)
    images = [str(extracted / f"{number}.png") for number in range(24)]
    captions = [[*world.captions(n), *(f"more {n} {other}" for other in range(3))] for n in range(12)]
    rows = [{"image": images[n], "caption": captions[n], "filename": f"{n}.png"} for n in range(12)]
    write_cache(root, "flickr_1k_test_image_text_retrieval", rows, "image")
    associations = [
        THORN | {"candidates": names, "cue": cue, "associations": [names[place] for place in right]}
        for names, cue, right in PAIRS
    ]
    rows = [row | {"candidate_images": images[: len(row["candidates"])]} for row in [*associations, THORN]]
    write_cache(root, "winogavil", rows, "candidate_images")
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Evaluate all tasks of the directory; name → result."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "other")
    datasets.disable_progress_bars()
    encoder = world.use_encoder(monkeypatch, tmp_path, classes.Colorist({"red": "green"}).as_encoder())
    data = write_datacomp(tmp_path / "data")
    group = BenchmarkConfig(name="datacomp", data=str(data))
    run_benchmarks(RunConfig(model_name="m", output=str(tmp_path / "r"), benchmarks=[group], encoder=str(encoder)))
    columns = expand_group("datacomp", {"data": str(data)}, "field")
    return {column.removeprefix("datacomp_"): read_result(result_path(tmp_path / "r", "m", column))
            for column in columns}  # fmt: skip


def test_each_layout_and_metric_against_naive_computation(run):
    assert list(run) == ["caltech101", "flickr_1k", "winogavil", "iwildcam", "fmow", "dollar_street"]
    scores = {name: result.metrics[result.primary[0]] for name, result in run.items()}
    items = {name: read_items(result) for name, result in run.items()}
    seen = items["caltech101"]
    assert scores["caltech101"].value == pytest.approx(balanced_accuracy_score(seen["target"], seen["prediction"]))
    seen = items["iwildcam"]
    expected = f1_score(seen["target"], seen["prediction"], labels=seen["target"].unique(), average="macro")
    assert scores["iwildcam"].value == pytest.approx(expected) == pytest.approx(2 / 3)  # green has no image
    for name, column in (("fmow", "acc1"), ("dollar_street", "acc5")):
        seen = (
            items[name]
            .sort_values("item")
            .assign(number=lambda table: table["item"].str.extract(r"s(\d+)").astype(int))
        )
        groups = [seen.loc[seen["number"] // 5 == group, column].mean() for group in range(3)]
        assert scores[name].value == pytest.approx(min(groups)) != pytest.approx(max(groups))
        assert scores[name].ci_low is scores[name].aggregation is None
    assert items["dollar_street"].groupby("target")["acc5"].first()["red"] == 0  # green and four other names are nearer
    metrics = run["flickr_1k"].metrics
    assert run["flickr_1k"].protocol["captions_per_image"] == "6"  # all, as DataComp's code
    assert scores["flickr_1k"].value == pytest.approx((metrics["i2t_r1"].value + metrics["t2i_r1"].value) / 2)
    assert {name: result.protocol["datacomp_task"] for name, result in run.items()}["fmow"] == "wilds/fmow"


def test_winogavil_against_scikit_learn(run):
    items = read_items(run["winogavil"]).set_index("question")
    # of five images, 0, 1 and 4 look green: two of these at random
    expected = np.mean([jaccard_score([1, 1, 0], chosen) for chosen in ([1, 1, 0], [1, 0, 1], [0, 1, 1])])
    assert items.loc["A green", "jaccard_5_6"] == pytest.approx(expected)
    assert items.loc["A blue", "jaccard_10_12"] == 1  # images 2 and 6
    draws = [len({3, 5} & {*draw}) / len({3, 5} | {*draw}) for draw in itertools.combinations(range(12), 2)]
    assert items.loc["A thorn", "jaccard_10_12"] == pytest.approx(np.mean(draws))
    assert run["winogavil"].metrics["jaccard_10_12"].value == pytest.approx((1 + np.mean(draws)) / 2)
    assert run["winogavil"].metrics["jaccard_10_12"].chance_levels["chance"] < 0.2
    assert Cue("Eagle", [], np.array([]), []).prompt == "An eagle"
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, right = rng.normal(size=10), np.isin(range(10), rng.permutation(10)[: rng.integers(2, 6)])
        chosen = np.isin(range(10), np.argsort(scores)[-right.sum() :])
        assert expected_jaccard(scores, right) == pytest.approx(jaccard_score(right, chosen))


def test_a_study_names_the_group_in_one_line(tmp_path, capsys):
    data = write_datacomp(tmp_path / "data")
    study = {"name": "s", "encoders": {"e": str(tmp_path)}, "paths": {"sets": str(data)}}
    plan = build_plan(parse_study(study | {"benchmarks": {"dc": {"task": "datacomp", "data": "$sets", "limit": 3}}}))
    assert plan.benchmarks[:2] == ("dc_caltech101", "dc_flickr_1k")
    settings = plan.study.benchmarks["dc_winogavil"]
    assert settings == {"task": "datacomp_winogavil", "data": "$sets/hf_cache/nlphuji___winogavil", "limit": 3,
                        "image_root": "$sets/hf_cache"}  # fmt: skip
    assert "6 of the 38 tasks of 'datacomp'; missing: dc_cifar10, dc_cifar100, dc_cl" in capsys.readouterr().err
    moved = parse_study(
        study | {"paths": {"sets": "none"}, "benchmarks": {"datacomp": {"data": "$sets"}}}, {"sets": str(data)}
    )
    assert len(moved.benchmarks) == 6
    with pytest.raises(UserError, match=r"benchmarks\.datacomp\.data: .*: expected directories of the tasks of"):
        parse_study(study | {"benchmarks": {"datacomp": {"data": str(tmp_path)}}})
    with pytest.raises(UserError, match=r"^paths\.sets: expected a string, got 5"):
        parse_study(study | {"paths": {"sets": 5}, "benchmarks": {"datacomp": {"data": "$sets"}}})
    fmow = load_classification_set(str(data / "wds_wilds-fmow_test"), every_class=False)
    assert dataclasses.replace(fmow, groups=fmow.groups[::-1]).hash != fmow.hash
    (data / "wds_wilds-fmow_test/test/0.tar").unlink()
    with pytest.raises(UserError, match="expected 2 shards"):
        world.measure(tmp_path / "r", BenchmarkConfig(name="datacomp_fmow", data=str(data / "wds_wilds-fmow_test")),
                      encoder=tmp_path)  # fmt: skip


def test_the_published_average_follows_from_the_published_scores(tmp_path):
    average, imagenet, *others = map(float, PUBLISHED.split())
    assert average == pytest.approx(np.mean([imagenet, *others]), abs=5e-5)
    order = ["imagenet1k", *(task for task in TASKS if task != "imagenet1k")]  # as the columns of that file
    for task, value in zip(order, [imagenet, *others], strict=True):
        put_score(tmp_path, TASKS[task], value)
    report = build_report(tmp_path)
    section = report.datacomp
    assert 'id="datacomp"' in render_page(report)
    assert section.headers[:2] == ("model", "DataComp average")
    assert section.rows == (("b32", "52.5", "63.3", "48.5", "52.6", "50.1"),)
    result_path(tmp_path, "b32", "datacomp_fmow").unlink()
    put_score(tmp_path, TASKS["mnist"], 0.4839, images=3)
    section = build_report(tmp_path).datacomp
    assert section.headers[1] == "mean of 37 tasks"
    assert section.lead.endswith("not the DataComp average (without: FMoW; in part: MNIST).")
    assert [BENCHMARKS[f"datacomp_{task.name}"].items for task in TASKS.values()] == [
        task.items for task in TASKS.values()
    ]


def put_score(results: Path, task, value: float, images: int | None = None) -> None:
    """A result with a known score, of one item."""
    texts = {name: [""] for name in ("item", "image", "direction", "category", "question", "prediction", "target")}
    items = pd.DataFrame(texts | {"score": [value], "thumbnail": [None], "hit": [value]})
    stated = {"datacomp_task": task.task, "images": images or task.items}
    path = put_result(results, "b32", f"datacomp_{task.name}", items, protocol=stated, primary=(task.metric,))
    content = json.loads(path.read_text())
    content["metrics"] = {task.metric: content["metrics"]["exact_match"]}
    path.write_text(json.dumps(content))
