"""Study files: what is read, what is rejected and the messages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from study_material import SMALL

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.preflight import first_config_error
from benchmarks.study.rows import EXCLUDED_FROM_BENCHMARK, EXISTING_LLAVA_NO_ENCODER, NO_LLAVA
from benchmarks.study.schema import parse_study, read_study
from benchmarks.study.sweep import deep_merge
from clips.errors import UserError
from clips.typed_data import to_plain

STUDIES = Path(__file__).parents[1] / "scripts" / "studies"


def changed(**fields: object) -> dict[str, object]:
    return {**SMALL, **fields}


def step(plan, name):  # type: ignore[no-untyped-def]
    return next(step for step in plan.steps if step.name == name)


def test_overrides_are_merged_into_the_defaults_by_key():
    config = step(build_plan(parse_study(SMALL)), "encoder-clips-s0").config
    assert config["optimizer"] == {"lr": 3, "warmup": 2}
    assert deep_merge({"a": [1], "b": {"c": 1}}, {"a": [2], "b": {"d": 2}}) == {"a": [2], "b": {"c": 1, "d": 2}}


def test_steps_depend_on_what_their_configs_refer_to():
    plan = build_plan(parse_study(SMALL))
    assert step(plan, "encoder-clip-s0").parents == ("data-train",)
    assert step(plan, "encoder-clip-s0").config["data"]["path"] == "runs/small/data/train"
    assert set(step(plan, "llava-clip-tiny-s0").parents) == {"encoder-clip-s0", "data-llm"}
    assert step(plan, "llava-net-tiny-s0").needs == (Path("weights/net.safetensors"),)
    assert set(step(plan, "evaluate-llava-clips-tiny-s0").parents) == {"llava-clips-tiny-s0", "data-test"}
    order = [each.name for each in plan.steps]  # in which they run
    assert order.index("evaluate-llava-clip-tiny-s0") < order.index("encoder-clips-s0")


def test_a_row_without_text_tower_has_no_retrieval_and_says_so():
    rows = {row.name: row for row in build_plan(parse_study(SMALL)).rows}
    assert rows["net"].not_applicable == {"retrieval": "no text tower"}
    assert "retrieval" not in rows["net"].cells
    assert rows["clips"].baseline == "clip"
    assert rows["clip"].baseline is None


def test_a_model_on_the_hub_is_not_said_to_lack_a_text_tower():
    encoders = {**SMALL["encoders"], "hub": "transformers:google/siglip2-base-patch16-224"}
    rows = {row.name: row for row in build_plan(parse_study(changed(encoders=encoders))).rows}
    reason = "text tower not known before the download; name a directory"
    assert rows["hub"].not_applicable == {"retrieval": reason}


def test_an_image_tower_below_a_path_has_no_text_tower(tmp_path):
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}}}')
    encoders = {**SMALL["encoders"], "tower": "$mine/tower"}
    study = changed(encoders=encoders, paths={"mine": str(tmp_path)})
    rows = {row.name: row for row in build_plan(parse_study(study)).rows}
    assert rows["tower"].not_applicable == {"retrieval": "no text tower"}


def test_a_directory_of_transformers_below_a_path_has_its_text_tower(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    encoders = {**SMALL["encoders"], "other": "transformers:$models/clip"}
    plan = build_plan(parse_study(changed(encoders=encoders, paths={"models": str(tmp_path)})))
    (row,) = [row for row in plan.rows if row.name == "other"]
    assert "retrieval" in row.cells


def test_rows_are_encoders_times_llms_times_seeds_and_exceptions_apply():
    study = changed(
        seeds=[0, 1],
        llms={"tiny": "some/tiny", "big": "some/big"},
        overrides=[
            {"encoder": "net", "llm": "big", "exclude": True},
            {"encoder": "clip", "llava": {"align": {"max_steps": 9}}},
        ],
    )
    plan = build_plan(parse_study(study))
    assert len(plan.rows) == 3 * 2 * 2 - 2
    assert "clips + big (seed 1)" in {row.name for row in plan.rows}
    assert step(plan, "llava-clip-big-s1").config["align"] == {"max_steps": 9}
    assert step(plan, "llava-clips-big-s1").config["align"] == {"max_steps": 5}
    assert step(plan, "encoder-clip-s1").config["seed"] == 1
    assert sum(step.name.startswith("evaluate-encoder") for step in plan.steps) == 4  # not once more for each LLM


def test_an_encoders_own_seed_applies_in_a_study_of_one_seed():
    own = {"clip": {"recipe": {"name": "clip"}, "seed": 5}, "clips": {"recipe": {"name": "clips"}}}
    plan = build_plan(parse_study(changed(seeds=[3], encoders=own)))
    assert [step(plan, f"encoder-{name}-s3").config["seed"] for name in own] == [5, 3]
    with pytest.raises(UserError, match=r"encoders\.clip\.seed: expected none, as the study has several 'seeds'"):
        build_plan(parse_study(changed(seeds=[0, 1], encoders=own)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encodrs": {}}, "unknown key 'encodrs'; did you mean 'encoders'"),
        ({"benchmarks": {"pope": {"limt": 3}}}, r"benchmarks\.pope: unknown key 'limt'; did you mean 'limit'"),
        ({"baseline": "clap"}, "unknown encoder in 'baseline' 'clap'; did you mean 'clip'"),
        ({"defaults": {**SMALL["defaults"], "encoder": {"data": "$data/trian"}}}, r"did you mean '\$data/train'"),
        ({"encoders": {"a/b": {}}}, r"encoders\.a/b: expected a name"),
        (
            {"data": {**SMALL["data"], "test": {"command": "python a.py", "path": "$data/test"}}},
            "data: data-test: expected none that needs its own output",
        ),
        ({"llms": {"tiny": {}}}, r"llms\.tiny: expected "),
        ({"encoders": {"clip": 3}}, r"encoders\.clip: expected a mapping or a string, got 3"),
        ({"jobs": 0}, "jobs: expected at least 1"),
        ({"seeds": [1, 1]}, "seeds: expected different"),
        ({"llms": {}}, "benchmarks.pope: needs a LLaVA, but the study has no 'llms'"),
        ({"overrides": [{"skp": True}]}, r"overrides\[1\]\.skp.*did you mean"),
        ({"overrides": [{"exclude": True}]}, "every model is excluded"),
        ({"benchmarks": {"retrieval": {"captions_per_image": 0}}}, "benchmarks.retrieval: .*at least 1"),
        ({"benchmarks": {"pope": {"limit": "5"}}}, r"benchmarks\.pope: limit: expected an integer or null, got '5'"),
        ({"benchmarks": {"long_retrieval": {"word_limits": [8, "16"]}}}, r"word_limits\[2\]: expected an int"),
    ],
)
def test_a_wrong_study_is_rejected_naming_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        build_plan(parse_study(changed(**fields)))


def test_a_duplicate_key_is_rejected(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("name: a\nencoders: {clip: {}, clip: {}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"study\.yaml: line 2: the key 'clip' is given twice"):
        read_study(file)


@pytest.mark.parametrize(
    "text", ["name: [", "", "name: a\n", "name: a\nencoders: &x {again: *x}\nbenchmarks: {pope: {data: d}}\n"]
)
def test_a_file_that_is_no_study_is_rejected_in_one_line(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"study\.yaml") as refusal:
        read_study(file)
    assert "\n" not in str(refusal.value)


GRID = {
    "sweep": {"recipe.caption_strategy": ["truncate", "block"], "recipe.caption_tokens": [8, 16]},
    "recipe": {"positives": ["partial"]},
}


def test_one_entry_makes_an_encoder_of_every_combination():
    plan = build_plan(parse_study(changed(encoders={"clip": {"recipe": {}}, "part": GRID})))
    names = ["part.truncate.8", "part.truncate.16", "part.block.8", "part.block.16"]
    assert [row.name for row in plan.rows] == ["clip", *names]
    config = step(plan, "encoder-part.block.16-s0").config
    assert config["recipe"] == {"positives": ["partial"], "caption_strategy": "block", "caption_tokens": 16}
    assert "sweep" not in config
    assert plan.rows[2].sweep_settings == {"recipe.caption_strategy": "truncate", "recipe.caption_tokens": 16}
    assert plan.rows[2].sweep_name == "part"
    assert plan.rows[0].sweep_settings == {}


def test_a_benchmark_can_be_for_some_encoders_only():
    benchmarks = {"retrieval": {"data": "$data/test", "encoders": ["part"]}, "pope": {"encoders": ["clip"]}}
    plan = build_plan(parse_study(changed(encoders={"clip": {"recipe": {}}, "part": GRID}, benchmarks=benchmarks)))
    rows = {row.name: row for row in plan.rows}
    assert list(rows["clip"].cells) == ["pope"]
    assert list(rows["part.block.8"].cells) == ["retrieval"]
    assert rows["part.block.8"].not_applicable == {"pope": EXCLUDED_FROM_BENCHMARK}
    evaluation = step(plan, "evaluate-encoder-part.block.8-s0").config["benchmarks"]
    assert [(entry["name"], "encoders" in entry) for entry in evaluation] == [("retrieval", False)]
    assert "evaluate-encoder-clip-s0" not in {one.name for one in plan.steps}


def test_rows_can_have_baselines_of_their_own():
    encoders = {"clip": {"recipe": {}}, "other": {}, "part": GRID}
    plan = build_plan(parse_study(changed(encoders=encoders, baseline={"part.*.8": "other", "part": "clip"})))
    baselines = {row.name: row.baseline for row in plan.rows}
    assert baselines["part.block.16"] == "clip"
    assert baselines["part.block.8"] == baselines["part.truncate.8"] == "other"  # the first that fits
    assert baselines["clip"] is None
    for wrong, message in (({"part": "clap"}, "did you mean 'clip'"), ({"prt": "clip"}, "did you mean 'part'")):
        with pytest.raises(UserError, match=message):
            parse_study(changed(encoders=encoders, baseline=wrong))
    with pytest.raises(UserError, match="baseline: expected a string or a mapping of names"):
        parse_study(changed(encoders=encoders, baseline={"part": 3}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoders": {"a": {"sweep": ["b"]}}}, r"encoders\.a\.sweep: expected a mapping"),
        ({"encoders": {"a": {"sweep": {"b": [1, 1]}}}}, r"encoders\.a\.sweep\.b: expected a list of different values"),
        ({"encoders": {"a.1": {}, "a": {"sweep": {"b": [1]}}}}, r"its 'sweep' makes a\.1, which already exists"),
        ({"benchmarks": {"retrieval": {"data": "d", "encoders": ["prt"]}}}, r"'prt'; did you mean 'part'"),
        ({"figures": [{"benchmark": "retrieval", "encoders": "part"}]}, r"figures\[1\]: missing x"),
        (
            {"figures": [{"benchmark": "retrieval", "encoders": "part", "x": "recipe.caption_strategy"}]},
            r"figures\[1\]\.x: expected a setting whose values are numbers",
        ),
    ],
)
def test_a_wrong_sweep_or_figure_is_rejected_naming_the_field(fields, message):
    content = changed(encoders={"clip": {"recipe": {}}, "part": GRID}, llms={}, benchmarks={"retrieval": {"data": "d"}})
    content["baseline"] = None if "encoders" in fields else "clip"
    with pytest.raises(UserError, match=message):
        build_plan(parse_study({**content, **fields}))


@pytest.mark.parametrize(
    ("name", "seeds", "control"),
    [("demo", 1, "untrained"), ("photos_held_out", 5, "clip_long"), ("race_photos", 5, "sentences")],
)
def test_the_shipped_studies_have_a_plan(name, seeds, control):
    plan = build_plan(read_study(STUDIES / f"{name}.yaml"))
    names = Counter(row.name.split(" ")[0] for row in plan.rows)
    assert all(names[model] == seeds for model in (control, "clip", "clips")), names
    assert all(row.cells for row in plan.rows)


@pytest.mark.parametrize("name", ["inverse_effect", "ablation"])
def test_the_studies_of_the_papers_claims_have_a_plan_that_their_commands_accept(name):
    plan = build_plan(read_study(STUDIES / f"{name}.yaml"))
    assert plan.study.seeds == (1, 2, 3)
    assert all(row.cells for row in plan.rows)
    first = [one for one in plan.steps if not one.name.endswith(("-s1", "-s2"))]
    own = [one for one in first if one.command[0] != "python"]  # a script checks its settings itself
    assert first_config_error([(one.name, list(one.command), to_plain(one.config)) for one in own]) is None
    compared = {row.encoder for row in plan.rows if row.baseline}
    baselines = {row.baseline.partition(" ")[0] for row in plan.rows if row.baseline}
    assert compared | baselines == {row.encoder for row in plan.rows}


def test_swapping_an_encoder_is_one_changed_line():
    lines = (STUDIES / "demo.yaml").read_text(encoding="utf-8").splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("  untrained:"))
    lines[place] = '  untrained: "timm:efficientnet_lite0"'
    plan = build_plan(parse_study(yaml.safe_load("\n".join(lines))))
    assert step(plan, "llava-untrained-tiny-s0").config["encoder"] == "timm:efficientnet_lite0"


def test_a_probe_is_asked_of_every_encoder_and_templates_may_be_a_list():
    benchmarks = {
        "retrieval": {"data": "d"},
        "linear_probe": {"data": "d"},
        "classification": {"data": "d", "templates": ["a {}"]},
    }
    plan = build_plan(parse_study(changed(benchmarks=benchmarks, llms={})))
    rows = {row.name: row for row in plan.rows}
    assert list(rows["net"].cells) == ["linear_probe"]
    assert rows["net"].not_applicable == dict.fromkeys(("retrieval", "classification"), "no text tower")
    assert set(rows["clips"].cells) == set(benchmarks)
    with pytest.raises(UserError, match=r"benchmarks\.classification: templates: expected a string or a list"):
        build_plan(parse_study(changed(benchmarks={"classification": {"data": "d", "templates": [1]}}, llms={})))


def planned(**fields: object) -> StudyPlan:
    return build_plan(parse_study({**SMALL, **fields}))


RECIPES = {
    "mlp": None,
    "tuned": {
        "sweep": {"align.learning_rate": [2.0e-5, 0.01], "vision_feature_layer": [-2]},
        "vision_feature_select_strategy": "default",
    },
}
LLAVAS = {
    "theirs": "models/llava",
    "ours": {"llava": "$shared/llava", "precision": "fp32"},
    "other": {"lmms": {"model": "llava_hf", "model_args": "pretrained=$shared/theirs,device_map=cpu"}},
}


def test_every_encoder_is_plugged_into_every_llm_by_every_recipe():
    plan = planned(llava_variants=RECIPES)
    names = ["mlp", "tuned.0.00002.minus2", "tuned.0.01.minus2"]
    assert [row.name for row in plan.rows] == [f"{e} by {r}" for r in names for e in SMALL["encoders"]]
    config = step(plan, "llava-clip-tiny-tuned.0.00002.minus2-s0").config
    assert config["align"] == {"max_steps": 5, "learning_rate": 2.0e-5}
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert "sweep" not in config
    assert step(plan, "llava-clip-tiny-mlp-s0").config["align"] == {"max_steps": 5}
    assert sum(one.kind == "encoder" for one in plan.steps) == 2  # not once more for each recipe
    row = next(row for row in plan.rows if row.name == "clips by tuned.0.01.minus2")
    assert (row.baseline, row.llava_variant) == ("clip by tuned.0.01.minus2", "tuned.0.01.minus2")


def test_an_llm_may_be_varied_and_exceptions_take_patterns_and_recipes():
    llms = {"tiny.64": "some/tiny", "tiny.128": "$data/llm"}
    overrides = [
        {"llm": "tiny.*", "llava_variant": "low", "llava": {"align": {"max_steps": 7}}},
        {"encoder": "c*", "llava_variant": "high", "exclude": True},
    ]
    plan = planned(llms=llms, llava_variants={"low": {}, "high": {}}, overrides=overrides)
    assert step(plan, "llava-clip-tiny.64-low-s0").config["llm"] == "some/tiny"
    assert step(plan, "llava-clip-tiny.128-low-s0").config["llm"] == "runs/small/data/llm"
    assert step(plan, "llava-clip-tiny.128-low-s0").config["align"] == {"max_steps": 7}
    assert step(plan, "llava-net-tiny.128-high-s0").config["align"] == {"max_steps": 5}
    assert [row.encoder for row in plan.rows if row.llava_variant == "high"] == ["net", "net"]


def test_exceptions_change_how_rows_are_evaluated():
    overrides = [
        {"encoder": "clip", "evaluation": {"batch_size": 2}},
        {"llava_variant": "low", "evaluation": {"batch_size": 3, "precision": "fp32"}},
        {"encoder": "clips", "seed": 1, "evaluation": {"device": "cpu"}},
        {"encoder": "given", "seed": 0, "evaluation": {"precision": "bf16"}},
    ]
    defaults = {**SMALL["defaults"], "evaluation": {"batch_size": 64}}
    encoders = {**SMALL["encoders"], "given": "models/encoder"}
    plan = planned(
        encoders=encoders, llava_variants={"low": {}, "high": {}}, overrides=overrides, defaults=defaults, seeds=[0, 1]
    )

    def settings(name: str) -> tuple[object, ...]:
        config = step(plan, f"evaluate-{name}").config
        return tuple(config.get(key) for key in ("batch_size", "precision", "device"))

    assert settings("llava-clip-tiny-low-s0") == (3, "fp32", None)
    assert settings("llava-clip-tiny-high-s0") == (2, None, None)
    assert settings("llava-clips-tiny-high-s0") == (64, None, None)
    assert settings("llava-clips-tiny-high-s1") == (64, None, "cpu")
    assert settings("encoder-clip-s0") == (2, None, None)  # once for both recipes
    assert settings("encoder-clips-s1") == (64, None, "cpu")
    assert settings("encoder-given") == (64, None, None)  # once for both seeds
    assert settings("llava-given-tiny-low-s0") == (3, "bf16", None)
    assert step(plan, "evaluate-llava-clip-tiny-low-s0").config["llava"].endswith("llava/clip-tiny-low-s0")


def test_llavas_that_are_there_already_are_rows_which_answer_questions():
    plan = planned(
        existing_llavas=LLAVAS,
        paths={"shared": "afar"},
        defaults={**SMALL["defaults"], "evaluation": {"overwrite": True}},
    )
    rows = {row.name: row for row in plan.rows}
    assert list(rows) == [*SMALL["encoders"], *LLAVAS]
    for name in LLAVAS:
        assert list(rows[name].cells) == ["pope"]
        assert rows[name].not_applicable == {"retrieval": EXISTING_LLAVA_NO_ENCODER}
        assert (rows[name].llm, rows[name].seed, rows[name].baseline) == (None, None, "clip")
    made = step(plan, "evaluate-llava-ours")
    assert (made.config["llava"], made.config["precision"], made.config["overwrite"]) == ("afar/llava", "fp32", True)
    assert made.needs == (Path("afar/llava"),)
    other = step(plan, "evaluate-llava-other")
    assert other.config["lmms"]["model_args"] == "pretrained=afar/theirs,device_map=cpu"
    assert other.needs == (Path("afar/theirs"),)
    asked = [one for one in plan.steps if one.name in {"evaluate-llava-theirs", made.name, other.name}]
    assert first_config_error([(one.name, list(one.command), to_plain(one.config)) for one in asked]) is None


def test_a_study_may_have_existing_llavas_alone_and_one_of_them_for_its_baseline():
    alone = planned(
        encoders={}, llms={}, existing_llavas={"a": "org/a", "b": "org/b"}, baseline="a", benchmarks={"pope": {}}
    )
    assert {row.name: row.baseline for row in alone.rows} == {"a": None, "b": "a"}
    assert step(alone, "evaluate-llava-b").hub == ("org/b",)
    assert planned(existing_llavas=LLAVAS, paths={"shared": "x"}, include=["theirs"]).rows[0].name == "theirs"
    chosen = {"retrieval": {"data": "d"}, "pope": {"encoders": ["theirs"]}}
    beside = planned(llms={}, existing_llavas={"theirs": "a/b"}, benchmarks=chosen, baseline="theirs")
    assert {row.name: dict(row.not_applicable) for row in beside.rows} == {
        "clip": {"pope": EXCLUDED_FROM_BENCHMARK},
        "clips": {"pope": EXCLUDED_FROM_BENCHMARK},
        "net": {"pope": EXCLUDED_FROM_BENCHMARK, "retrieval": "no text tower"},
        "theirs": {"retrieval": EXISTING_LLAVA_NO_ENCODER},
    }
    assert all(row.baseline == "theirs" for row in beside.rows[:-1])


def test_an_encoder_without_an_llm_says_why_it_answers_nothing():
    row = planned(llms={}, existing_llavas={"theirs": "a/b"}).rows[0]
    assert row.not_applicable == {"pope": NO_LLAVA}


RETRIEVAL = {"retrieval": {"data": "d"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"existing_llavas": {"clip": "a/b"}}, "existing_llavas.clip: an encoder has this name already"),
        ({"existing_llavas": {"a": {}}}, "existing_llavas.a: expected either 'llava' or 'lmms'"),
        ({"existing_llavas": {"a": {"lava": "b"}}}, r"existing_llavas\.a: unknown key 'lava'; did you mean 'llava'"),
        ({"llava_variants": {"a": {}}, "llms": {}, "benchmarks": RETRIEVAL}, "llava_variants: expected none without"),
        ({"existing_llavas": {"a": {"lmms": {"model_args": "x"}}}}, r"existing_llavas\.a: lmms: missing model"),
        ({"encoders": {}, "baseline": None}, "encoders: expected at least one, or one of 'existing_llavas'"),
        ({"overrides": [{"llava_variant": "a", "exclude": True}]}, "unknown llava_variant in 'overrides' 'a'"),
        ({"overrides": [{"encoder": "theirs", "exclude": True}], "existing_llavas": {"theirs": "a/llava"}},
         "unknown encoder in 'overrides' 'theirs'"),
        ({"overrides": [{"evaluation": {"llava": "x"}}]}, r"unknown key in overrides\[1\]\.evaluation 'llava'"),
        ({"llava_variants": {"a": {"sweep": {"b": [float("nan")]}}}}, r"llava_variants\.a\.sweep\.b: .*, got nan"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_rejected_naming_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        planned(**fields)
