"""Study files: the rows and steps that they define, and what is rejected with which message."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from study_engine import named
from study_material import SMALL

from benchmarks.study.preflight import check_configs, first_config_error, open_clip_models, plan_warnings, timm_models
from benchmarks.study.schema import parse_study, read_study
from benchmarks.study.steps import StudyPlan, build_plan
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK, EXISTING_LLAVA_NO_ENCODER, NO_LLAVA
from clips.errors import UserError
from clips.typed_data import to_plain

STUDIES = Path(__file__).parents[2] / "scripts" / "studies"
GRID = {
    "sweep": {"recipe.caption_strategy": ["truncate", "block"], "recipe.caption_tokens": [8, 16]},
    "recipe": {"positives": ["partial"]},
}
WITH_GRID = {"clip": {"recipe": {}}, "other": {}, "part": GRID}
EVALUATE = ("clips-bench", "run")
RETRIEVAL = {"retrieval": {"data": "d"}}


def planned(**fields: object) -> StudyPlan:
    return build_plan(parse_study({**SMALL, **fields}))


def config_of(plan: StudyPlan, name: str) -> Any:
    return named(plan.steps, name).config


def test_steps_depend_on_what_their_configs_refer_to():
    plan = planned()
    assert config_of(plan, "encoder-clips-s0")["optimizer"] == {"lr": 3, "warmup": 2}  # merged into the defaults
    assert named(plan.steps, "encoder-clip-s0").parents == ("data-train",)
    assert config_of(plan, "encoder-clip-s0")["data"]["path"] == "runs/small/data/train"
    assert set(named(plan.steps, "llava-clip-tiny-s0").parents) == {"encoder-clip-s0", "data-llm"}
    assert named(plan.steps, "llava-net-tiny-s0").needs == (Path("weights/net.safetensors"),)
    assert set(named(plan.steps, "evaluate-llava-clips-tiny-s0").parents) == {"llava-clips-tiny-s0", "data-test"}
    order = [step.name for step in plan.steps]  # a model is complete before the next one begins
    assert order.index("evaluate-llava-clip-tiny-s0") < order.index("encoder-clips-s0")
    assert all(order.index(parent) < order.index(step.name) for step in plan.steps for parent in step.parents)


def test_rows_without_a_text_tower_have_no_retrieval_and_say_so(tmp_path):
    files = {
        "tower/open_clip_config.json": '{"model_cfg": {"vision_cfg": {}}}',
        "clip/config.json": '{"model_type": "clip"}',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    encoders = {
        **SMALL["encoders"],
        "hub": "transformers:google/siglip2-base-patch16-224",
        "tower": "$mine/tower",
        "given": "transformers:$mine/clip",
    }
    rows = {row.name: row for row in planned(encoders=encoders, paths={"mine": str(tmp_path)}).rows}
    why = {name: row.not_applicable.get("retrieval") for name, row in rows.items()}
    unknown = "text tower not known before the download; name a directory"
    assert why == {
        "clip": None, "clips": None, "net": "no text tower", "hub": unknown, "tower": "no text tower", "given": None
    }  # fmt: skip
    assert all(("retrieval" in row.cells) == (why[name] is None) for name, row in rows.items())
    assert (rows["clips"].baseline, rows["clip"].baseline) == ("clip", None)


def test_a_probe_is_asked_of_every_encoder():
    benchmarks = {**RETRIEVAL, "linear_probe": {"data": "d"}, "classification": {"data": "d", "templates": ["a {}"]}}
    rows = {row.name: row for row in planned(benchmarks=benchmarks, llms={}).rows}
    assert list(rows["net"].cells) == ["linear_probe"]
    assert set(rows["clips"].cells) == set(benchmarks)
    assert planned(llms={}, existing_llavas={"theirs": "a/b"}).rows[0].not_applicable == {"pope": NO_LLAVA}


def test_rows_are_encoders_times_llms_times_seeds_and_exceptions_apply():
    overrides = [
        {"encoder": "net", "llm": "big", "exclude": True},
        {"encoder": "clip", "llava": {"align": {"max_steps": 9}}},
    ]
    plan = planned(seeds=[0, 1], llms={"tiny": "some/tiny", "big": "some/big"}, overrides=overrides)
    assert len(plan.rows) == 3 * 2 * 2 - 2
    assert "clips + big (seed 1)" in {row.name for row in plan.rows}
    assert config_of(plan, "llava-clip-big-s1")["align"] == {"max_steps": 9}
    assert config_of(plan, "llava-clips-big-s1")["align"] == {"max_steps": 5}
    assert config_of(plan, "encoder-clip-s1")["seed"] == 1
    assert sum(step.name.startswith("evaluate-encoder") for step in plan.steps) == 4  # not once more for each LLM
    own = {"clip": {"seed": 5}, "clips": {}}
    plan = planned(seeds=[3], encoders=own)
    assert [config_of(plan, f"encoder-{name}-s3")["seed"] for name in own] == [5, 3]


def test_a_sweep_makes_an_encoder_of_every_combination():
    plan = planned(encoders={"clip": {"recipe": {}}, "part": GRID})
    names = ["part.truncate.8", "part.truncate.16", "part.block.8", "part.block.16"]
    assert [row.name for row in plan.rows] == ["clip", *names]
    config = config_of(plan, "encoder-part.block.16-s0")
    assert config["recipe"] == {"positives": ["partial"], "caption_strategy": "block", "caption_tokens": 16}
    assert "sweep" not in config
    assert plan.rows[2].sweep_settings == {"recipe.caption_strategy": "truncate", "recipe.caption_tokens": 16}
    assert [row.sweep_name for row in plan.rows[:3]] == ["", "part", "part"]


def test_benchmarks_and_baselines_may_be_for_some_encoders():
    benchmarks = {"retrieval": {"data": "$data/test", "encoders": ["part"]}, "pope": {"encoders": ["clip"]}}
    plan = planned(encoders=WITH_GRID, benchmarks=benchmarks, baseline={"part.*.8": "other", "part": "clip"})
    rows = {row.name: row for row in plan.rows}
    assert list(rows["clip"].cells) == ["pope"]
    assert list(rows["part.block.8"].cells) == ["retrieval"]
    assert rows["part.block.8"].not_applicable == {"pope": EXCLUDED_FROM_BENCHMARK}
    entries = config_of(plan, "evaluate-encoder-part.block.8-s0")["benchmarks"]
    assert [(entry["name"], "encoders" in entry) for entry in entries] == [("retrieval", False)]
    assert "evaluate-encoder-clip-s0" not in {step.name for step in plan.steps}
    assert rows["part.block.8"].baseline == rows["part.truncate.8"].baseline == "other"  # the first that fits
    assert (rows["part.block.16"].baseline, rows["clip"].baseline) == ("clip", None)


def test_every_encoder_is_plugged_into_every_llm_by_every_variant():
    tuned = {"sweep": {"align.learning_rate": [2.0e-5, 0.01], "vision_feature_layer": [-2]}}
    plan = planned(llava_variants={"mlp": None, "tuned": tuned})
    names = ["mlp", "tuned.0.00002.minus2", "tuned.0.01.minus2"]
    assert [row.name for row in plan.rows] == [
        f"{encoder} by {name}" for name in names for encoder in SMALL["encoders"]
    ]
    config = config_of(plan, "llava-clip-tiny-tuned.0.00002.minus2-s0")
    assert config["align"] == {"max_steps": 5, "learning_rate": 2.0e-5}
    assert config["vision_feature_layer"] == -2
    assert config_of(plan, "llava-clip-tiny-mlp-s0")["align"] == {"max_steps": 5}
    assert sum(step.kind == "encoder" for step in plan.steps) == 2  # not once more for each variant
    row = next(row for row in plan.rows if row.name == "clips by tuned.0.01.minus2")
    assert (row.baseline, row.llava_variant) == ("clip by tuned.0.01.minus2", "tuned.0.01.minus2")


def test_exceptions_take_patterns_and_change_how_rows_are_trained_and_evaluated():
    overrides = [
        {"llm": "tiny.*", "llava_variant": "low", "llava": {"align": {"max_steps": 7}}},
        {"encoder": "c*", "llava_variant": "high", "llm": "tiny.128", "exclude": True},
        {"encoder": "clip", "evaluation": {"batch_size": 2}},
        {"llava_variant": "low", "evaluation": {"batch_size": 3, "precision": "fp32"}},
        {"encoder": "clips", "seed": 1, "evaluation": {"device": "cpu"}},
        {"encoder": "given", "seed": 0, "evaluation": {"precision": "bf16"}},
    ]
    plan = planned(
        llms={"tiny.64": "some/tiny", "tiny.128": "$data/llm"},
        llava_variants={"low": {}, "high": {}},
        encoders={**SMALL["encoders"], "given": "models/encoder"},
        defaults={**SMALL["defaults"], "evaluation": {"batch_size": 64}},
        overrides=overrides,
        seeds=[0, 1],
    )
    llava = config_of(plan, "llava-clip-tiny.128-low-s0")
    assert (llava["llm"], llava["align"]) == ("runs/small/data/llm", {"max_steps": 7})
    assert config_of(plan, "llava-clip-tiny.64-low-s0")["llm"] == "some/tiny"
    assert config_of(plan, "llava-net-tiny.128-high-s0")["align"] == {"max_steps": 5}
    wide = {row.encoder for row in plan.rows if (row.llava_variant, row.llm) == ("high", "tiny.128")}
    assert wide == {"net", "given"}
    expected = {
        "llava-clip-tiny.64-low-s0": (3, "fp32", None),
        "llava-clip-tiny.64-high-s0": (2, None, None),
        "llava-clips-tiny.64-high-s0": (64, None, None),
        "llava-clips-tiny.64-high-s1": (64, None, "cpu"),
        "encoder-clip-s0": (2, None, None),  # once for both variants
        "encoder-clips-s1": (64, None, "cpu"),
        "encoder-given": (64, None, None),  # once for both seeds
        "llava-given-tiny.64-low-s0": (3, "bf16", None),
    }
    for name, settings in expected.items():
        config = config_of(plan, f"evaluate-{name}")
        assert tuple(config.get(key) for key in ("batch_size", "precision", "device")) == settings, name


def test_existing_llavas_are_rows_which_answer_questions():
    llavas = {
        "theirs": "models/llava",
        "ours": {"llava": "$shared/llava", "precision": "fp32"},
        "other": {"lmms": {"model": "llava_hf", "model_args": "pretrained=$shared/theirs,device_map=cpu"}},
    }
    defaults = {**SMALL["defaults"], "evaluation": {"overwrite": True}}
    plan = planned(existing_llavas=llavas, paths={"shared": "afar"}, defaults=defaults)
    rows = {row.name: row for row in plan.rows}
    assert list(rows) == [*SMALL["encoders"], *llavas]
    for name in llavas:
        assert list(rows[name].cells) == ["pope"]
        assert rows[name].not_applicable == {"retrieval": EXISTING_LLAVA_NO_ENCODER}
        assert (rows[name].llm, rows[name].seed, rows[name].baseline) == (None, None, "clip")
    ours, other = (named(plan.steps, f"evaluate-llava-{name}") for name in ("ours", "other"))
    assert (ours.config["llava"], ours.config["precision"], ours.config["overwrite"]) == ("afar/llava", "fp32", True)
    assert ours.needs == (Path("afar/llava"),)
    assert other.config["lmms"]["model_args"] == "pretrained=afar/theirs,device_map=cpu"
    assert other.needs == (Path("afar/theirs"),)
    asked = [(each.name, list(each.command), to_plain(each.config)) for each in (ours, other)]
    assert first_config_error(asked, plan.study.directory) is None

    several = planned(existing_llavas={"theirs": "a/b"}, seeds=[0, 1])
    assert several.rows[-1].baseline == "clip (seed 0)"  # with two seeds it had none, and no difference in the report
    of_two = planned(existing_llavas={"theirs": "a/b"}, llms={"tiny": "org/a", "large": "org/b"})
    assert of_two.rows[-1].baseline is None

    alone = {"encoders": {}, "llms": {}, "existing_llavas": {"a": "org/a", "b": "org/b"}, "benchmarks": {"pope": {}}}
    plan = planned(**alone, baseline="a")
    assert {row.name: row.baseline for row in plan.rows} == {"a": None, "b": "a"}
    assert named(plan.steps, "evaluate-llava-b").hub == ("org/b",)
    chosen = planned(existing_llavas=llavas, paths={"shared": "x"}, include=["theirs"])
    assert [row.name for row in chosen.rows] == ["theirs"]
    together = planned(llms={}, existing_llavas={"theirs": "a/b"}, benchmarks=RETRIEVAL, baseline="theirs")
    assert [row.baseline for row in together.rows] == ["theirs", "theirs", "theirs", None]


NO_LLMS = "llms: there are none, so benchmarks of LLaVAs evaluate 'existing_llavas' only"


@pytest.mark.parametrize(
    ("fields", "warnings"),
    [
        ({}, []),
        ({"benchmarks": RETRIEVAL, "encoders": {"clip": {}}},
         ["llms: no LLaVA is trained, because no benchmark evaluates one"]),
        ({"benchmarks": RETRIEVAL}, ["llms: no LLaVA is trained, because no benchmark evaluates one",
                                     "benchmarks: none evaluates net"]),
        ({"benchmarks": {"pope": {"encoders": ["theirs"]}}, "existing_llavas": {"theirs": "a/b"}},
         ["llms: no LLaVA is trained, because no benchmark evaluates one",
          "benchmarks: none evaluates clip, clips and net"]),
        ({"llms": {}, "existing_llavas": {"theirs": "a/b"}, "encoders": {"clip": {}}}, [NO_LLMS]),
        ({"llms": {}, "benchmarks": RETRIEVAL, "existing_llavas": {"theirs": "a/b"}, "encoders": {"clip": {}}},
         ["benchmarks: none evaluates theirs"]),
    ],
)  # fmt: skip
def test_a_plan_says_what_no_benchmark_evaluates(fields, warnings):
    assert [*plan_warnings(planned(**fields))] == warnings


ROWS = [{"image": "1.jpg", "captions": ["a dog"], "split": split} for split in ("train", "test")]
WITHOUT = [{name: row[name] for name in ("image", "captions")} for row in ROWS]


@pytest.mark.parametrize(
    ("trained", "train_split", "tested", "test_split", "is_told"),
    [
        ("whole.jsonl", "train", "whole.jsonl", "test", True),  # both mean all rows
        ("./whole.jsonl", "train", "link.jsonl", "test", True),
        ("whole.csv", "train", "whole.csv", "test", True),
        ("split.jsonl", "train", "split.jsonl", "test", False),
        ("split.csv", "train", "split.csv", "test", False),
        ("split.jsonl", "train", "split.jsonl", "train", True),
        ("split.jsonl", "train", "split.jsonl", "all", True),
        ("split.jsonl", "all", "split.jsonl", "test", True),
        ("karpathy.json", "train+restval", "karpathy.json", "test", False),
        ("karpathy.json", "train+restval", "karpathy.json", "val+restval", True),
        ("shards/{0..1}.tar", "train", "shards", "test", True),
        ("parts/train/0.tar", "train", "parts", "test", False),
        ("whole.jsonl", "train", "whole.csv", "test", False),
        ("none.jsonl", "train", "none.jsonl", "test", False),
    ],
)
def test_a_plan_says_that_a_benchmark_tests_on_training_data(
    tmp_path, monkeypatch, trained, train_split, tested, test_split, is_told
):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("whole", WITHOUT), ("split", ROWS)):
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        pd.DataFrame(rows).assign(captions="a dog").to_csv(f"{name}.csv", index=False)
    Path("link.jsonl").symlink_to("whole.jsonl")
    images = [{"filename": "1.jpg", "split": each, "sentences": [{"raw": "a dog"}]} for each in ("restval", "test")]
    Path("karpathy.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    for name in ("shards/0.tar", "shards/1.tar", "parts/train/0.tar", "parts/test/0.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        tarfile.open(name, "w").close()
    held_out = {"source": {"path": tested, "split": test_split}}
    encoder = {"data": {"sources": [{"path": trained, "split": train_split}]}, "validation": held_out}
    plan = planned(
        encoders={"clip": {}, "clips": {}}, llms={}, defaults={"encoder": encoder},
        benchmarks={"retrieval": {"data": tested, "split": test_split}},
    )  # fmt: skip
    told = f"benchmarks.retrieval: tests on {tested}, training data of encoder-clip-s0 and encoder-clips-s0"
    assert [*plan_warnings(plan)] == ([told] if is_told else [])
    shutil.rmtree(tmp_path)  # of one plan the data are read once
    assert [*plan_warnings(plan)] == ([told] if is_told else [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encodrs": {}}, "unknown key 'encodrs'; did you mean 'encoders'"),
        ({"benchmark": {}}, "unknown key 'benchmark'; did you mean 'benchmarks'"),
        ({"benchmarks": {"pope": {"limt": 3}}}, r"benchmarks\.pope: unknown key 'limt'; did you mean 'limit'"),
        ({"benchmarks": {"pop": {}}}, "unknown benchmark 'pop'; did you mean 'pope'"),
        ({"benchmarks": {"retrieval": {"captions_per_image": 0}}}, "benchmarks.retrieval: .*at least 1"),
        ({"benchmarks": {"pope": {"limit": "5"}}}, r"benchmarks\.pope: limit: expected an integer .* or null, got '5'"),
        ({"benchmarks": {"retrieval": {"data": "d", "encoders": ["prt"]}}}, "'prt'; did you mean 'part'"),
        ({"llms": {}}, "benchmarks.pope: needs a LLaVA, but the study has no 'llms'"),
        ({"baseline": "clap"}, "unknown encoder in 'baseline' 'clap'; did you mean 'clip'"),
        ({"baseline": {"part": "clap"}}, "did you mean 'clip'"),
        ({"baseline": {"prt": "clip"}}, "did you mean 'part'"),
        ({"baseline": {"part": 3}}, "baseline: expected a string or a mapping of names"),
        ({"defaults": {**SMALL["defaults"], "encoder": {"data": "$data/trian"}}}, r"did you mean '\$data/train'"),
        ({"data": {**SMALL["data"], "test": {"command": "python a.py", "path": "$data/test"}}},
         "data: data-test: expected none that needs its own output"),
        ({"data": {**SMALL["data"], "test": {"path": "a"}}}, r"data\.test\.command: expected a command"),
        ({"encoders": {"a/b": {}}}, r"encoders\.a/b: expected a name"),
        ({"encoders": {"clip": 3}}, r"encoders\.clip: expected a mapping or a string, got 3"),
        ({"encoders": {}, "baseline": None}, "encoders: expected at least one, or one of 'existing_llavas'"),
        ({"encoders": {"clip": {"seed": 1}}, "seeds": [0, 1]}, r"encoders\.clip\.seed: expected none"),
        ({"encoders": {"a": {"sweep": ["b"]}}}, r"encoders\.a\.sweep: expected a mapping"),
        ({"encoders": {"a": {"sweep": {"b": [1, 1]}}}}, r"encoders\.a\.sweep\.b: expected a list of different values"),
        ({"encoders": {"a.1": {}, "a": {"sweep": {"b": [1]}}}}, r"its 'sweep' makes a\.1, which already exists"),
        ({"llava_variants": {"a": {"sweep": {"b": [float("nan")]}}}}, r"llava_variants\.a\.sweep\.b: .*, got nan"),
        ({"llava_variants": {"a": {}}, "llms": {}, "benchmarks": RETRIEVAL}, "llava_variants: expected none without"),
        ({"llms": {"tiny": {}}}, r"llms\.tiny: expected "),
        ({"seeds": [1, 1]}, "seeds: expected different"),
        ({"paths": {"data": "x"}}, "paths.data: the study has a directory of this name"),
        ({"overrides": [{"exclud": True}]}, r"overrides\[1\]\.exclud.*did you mean"),
        ({"overrides": [{"exclude": True}]}, "every model is excluded"),
        ({"overrides": [{"llava_variant": "a", "exclude": True}]}, "unknown llava_variant in 'overrides' 'a'"),
        ({"overrides": [{"encoder": "theirs", "exclude": True}], "existing_llavas": {"theirs": "a/llava"}},
         "unknown encoder in 'overrides' 'theirs'"),
        ({"overrides": [{"evaluation": {"llava": "x"}}]}, r"unknown key in overrides\[1\]\.evaluation 'llava'"),
        ({"existing_llavas": {"clip": "a/b"}}, "existing_llavas.clip: an encoder has this name already"),
        ({"existing_llavas": {"a": {}}}, "existing_llavas.a: expected either 'llava' or 'lmms'"),
        ({"existing_llavas": {"a": {"lava": "b"}}}, r"existing_llavas\.a: unknown key 'lava'; did you mean 'llava'"),
        ({"existing_llavas": {"a": {"output": "b"}}}, r"existing_llavas\.a\.output: unexpected key"),
        ({"figures": [{"benchmark": "retrieval", "encoders": "part"}]}, r"figures\[1\]: missing x"),
        ({"figures": [{"benchmark": "retrieval", "encoders": "part", "x": "recipe.caption_strategy"}]},
         r"figures\[1\]\.x: expected a setting whose values are numbers"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_rejected_naming_the_field(fields, message):
    content = {**SMALL, "encoders": WITH_GRID, "baseline": None if "encoders" in fields else "clip", **fields}
    with pytest.raises(UserError, match=message):
        build_plan(parse_study(content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nencoders: {clip: {}, clip: {}}\n", "line 2: the key 'clip' is given twice"),
        ("name: [", ""),
        ("", ""),
        ("name: a\n", ""),
        ("name: a\nencoders: &x {again: *x}\nbenchmarks: {pope: {data: d}}\n", ""),
    ],
)
def test_a_file_that_is_no_study_is_rejected_in_one_line(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"study\.yaml.*{message}") as refusal:
        read_study(tmp_path / "study.yaml")
    assert "\n" not in str(refusal.value)


def test_a_typo_in_a_config_is_found_before_anything_runs(tmp_path):
    (tmp_path / "coco.json").write_text('{"images": [{"filename": "a.jpg", "split": "test", "sentences": []}]}')
    (tmp_path / "sets/test/cat").mkdir(parents=True)
    (tmp_path / "sets/test/cat/1.jpg").touch()
    probe = {"name": "linear_probe", "data": str(tmp_path / "sets"), "train_split": "trian"}
    trained = {"output": "a", "data": {"sources": [{"path": "a"}]}, "max_steps": 1}
    split = {"name": "retrieval", "data": str(tmp_path / "coco.json"), "format": "karpathy"}
    evaluated = {"output": "a", "model_name": "a", "encoder": "timm:resnet50.a1_in1k@random", "benchmarks": [split]}
    wrong = [
        (("clips", "recaption"), {"output": "x", "path": "a", "modl": "b"}, "key 'modl'; did you mean 'model'"),
        (("clips", "train"), {**trained, "model": {"architecture": "clips-rn-tinny"}}, "did you mean 'clips-rn-tiny'"),
        (("clips", "train"), {**trained, "model": {"architecture": "ViT-B-33"}}, "did you mean 'ViT-B-32'"),
        (("clips", "train"), {**trained, "model": {"architecture": "timm:resnett50"}}, "did you mean 'timm:resnet50'"),
        (EVALUATE, {**evaluated, "encoder": "timm:resnett50@a"}, "unknown encoder.*did you mean 'timm:resnet50'"),
        (EVALUATE, {**evaluated, "benchmarks": [probe]}, "sets: has no split 'trian'"),
        (EVALUATE, {**evaluated, "benchmarks": [{**split, "split": "tset"}]}, "unknown split of .*did you mean 'test'"),
    ]
    for words, config, message in wrong:
        assert re.search(message, str(first_config_error([("s", list(words), config)], tmp_path / "out"))), (
            words,
            message,
        )
    right = [
        (("clips", "train"), {**trained, "model": {"architecture": name}})
        for name in ("clips-rn-tiny", "ViT-B-32", "timm:resnet50.a1_in1k", "some/encoder", "my.json")
    ]
    right.append((EVALUATE, evaluated))
    assert first_config_error([("s", list(words), config) for words, config in right], tmp_path / "out") is None
    typo = {**SMALL["data"], "train": {"command": "clips recaption", "path": "a", "modl": "b"}}
    with pytest.raises(UserError, match=r"^step data-train: .*unknown key 'modl'; did you mean 'model'"):
        check_configs([named(planned(data=typo).steps, "data-train")])


SETS = {
    "shards": ["test/0.tar", "train/0.tar"],
    "shards_alone": ["0.tar"],
    "folders": ["train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg"],
    "folders_alone": ["cat/1.jpg", "dog/1.jpg"],
    "parquet": ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"],
    "saved": ["train/data.arrow", "dataset_dict.json"],
}


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ("shards", "train", None),
        ("shards", "val", "shards: has no split 'val'"),
        ("shards_alone", "test", None),
        ("folders", "val", None),
        ("folders", "test", "folders/train: expected the images of a class, found none"),
        ("folders", "trian", "folders: has no split 'trian'"),
        ("folders_alone", "test", None),
        ("parquet", "validation", None),
        ("parquet", "train[:10%]+validation", None),
        ("parquet", "test", "unknown split of .*parquet 'test'"),
        ("column", "val", None),
        ("saved", "train", None),
        ("saved", "test", "unknown split of .*saved 'test'"),
    ],
)
def test_a_split_of_classes_is_found_by_names_without_reading_data(tmp_path, data, split, message):
    if data == "column":
        (tmp_path / data).mkdir()
        pd.DataFrame({"split": ["val"]}).to_parquet(tmp_path / data / "rows.parquet")
    for name in SETS.get(data, ()):
        (tmp_path / data / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / data / name).write_text('{"splits": ["train"]}' if name.endswith(".json") else "cannot be read")
    benchmark = {"name": "classification", "data": str(tmp_path / data), "split": split}
    asked = {"output": "a", "model_name": "a", "encoder": "a", "benchmarks": [benchmark]}
    found = first_config_error([("s", list(EVALUATE), asked)], tmp_path / "out")
    assert re.search(message, str(found)) if message else found is None


def test_data_that_the_study_makes_may_lack_a_split_so_far(tmp_path):
    (tmp_path / "out/data/test/test/cat").mkdir(parents=True)  # as an earlier run with other settings left them
    (tmp_path / "out/data/test/test/cat/1.jpg").touch()
    probe = {"linear_probe": {"data": "$data/test"}}
    plan = planned(output=str(tmp_path / "out"), benchmarks=probe, llms={})
    step = named(plan.steps, "evaluate-encoder-clip-s0")
    asked = [(step.name, list(step.command), to_plain(step.config))]
    assert "has no split 'train'" in str(first_config_error(asked, tmp_path / "elsewhere"))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert first_config_error(asked, tmp_path / "link") is None
    check_configs([step])


def test_a_misspelled_column_of_training_data_is_found_before_anything_starts(tmp_path):
    pd.DataFrame({"image": ["1.jpg"], "caption": ["a dog"]}).to_csv(tmp_path / "a.csv", index=False)
    words = ["clips", "train"]
    source = {"format": "table", "path": str(tmp_path / "a.csv"), "web_caption": "captoin", "synthetic_caption": None}
    asked = {"output": "a", "max_steps": 1, "recipe": {"name": "clip"}, "data": {"sources": [source]}}
    found = str(first_config_error([("encoder-clip-s0", words, asked)], tmp_path / "out"))
    assert found.startswith("step encoder-clip-s0: unknown column for web_caption in ")
    assert "'captoin'; did you mean 'caption'?" in found
    source["web_caption"] = "caption"
    assert first_config_error([("encoder-clip-s0", words, asked)], tmp_path / "out") is None


def test_the_models_of_libraries_are_those_that_they_list():
    import open_clip
    import timm

    old = {name for name, new in timm.models._registry._deprecated_models.items() if new}
    assert {"convnext_tiny_in22ft1k", "vit_base_patch16_224_in21k"} <= old
    assert {name.removeprefix("timm:") for name in timm_models()} == {*timm.list_models(), *old}
    assert set(open_clip_models()) == set(open_clip.list_models())


@pytest.mark.parametrize(
    ("name", "seeds", "models"),
    [
        ("demo", 1, ("untrained", "clip", "clips")),
        ("race_photos", 5, ("sentences", "clip", "clips")),
        ("tuning", 1, ("whole.0.001", "clips.0.002")),
        ("lengths", 6, ("whole", "sentence")),
        ("positives", 3, ("two_web.50", "clips.25")),
        ("captioner", 5, ("multi_positive", "clips")),
        ("paper_llava", 1, ("clip", "clips")),
    ],
)
def test_the_shipped_studies_have_a_plan_that_their_commands_accept(name, seeds, models):
    plan = build_plan(read_study(STUDIES / f"{name}.yaml"))
    names = Counter(row.encoder for row in plan.rows)
    assert set(names.values()) == {seeds}
    assert set(models) <= names.keys()
    assert all(row.cells for row in plan.rows)
    assert [*plan_warnings(plan)] == []
    once = {step.name.rsplit("-s", 1)[0]: step for step in plan.steps if step.command[0] != "python"}
    assert (
        first_config_error(
            [(each.name, list(each.command), to_plain(each.config)) for each in once.values()], plan.study.directory
        )
        is None
    )


def test_swapping_an_encoder_is_one_changed_line():
    lines = (STUDIES / "demo.yaml").read_text(encoding="utf-8").splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("  untrained:"))
    lines[place] = '  untrained: "timm:efficientnet_lite0"'
    plan = build_plan(parse_study(yaml.safe_load("\n".join(lines))))
    assert config_of(plan, "llava-untrained-tiny-s0")["encoder"] == "timm:efficientnet_lite0"
