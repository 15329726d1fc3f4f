"""Rows of a study beside encoders × LLMs × seeds: recipes of the bridge, LLaVAs that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_material import SMALL

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.parser import parse_study
from benchmarks.study.preflight import first_config_error
from benchmarks.study.steps import Step
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK, EXISTING_LLAVA_NO_ENCODER, NO_LLAVA
from clips.errors import UserError
from clips.serialization import to_plain


def planned(**fields: object) -> StudyPlan:
    return build_plan(parse_study({**SMALL, **fields}))


def step(plan: StudyPlan, name: str) -> Step:
    return next(step for step in plan.steps if step.name == name)


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


def test_one_recipe_adds_nothing_to_the_rows_names():
    assert [row.name for row in planned(llava_variants={"mlp": {}}).rows] == list(SMALL["encoders"])
    assert "llava-clip-tiny-s0" in {one.name for one in planned().steps}


def test_an_llm_may_be_varied_and_exceptions_take_patterns_and_recipes():
    llms = {"tiny": {"sweep": {"llm_from_scratch.hidden_size": [64, 128]}}}
    overrides = [
        {"llm": "tiny.*", "llava_variant": "low", "llava": {"align": {"max_steps": 7}}},
        {"encoder": "c*", "llava_variant": "high", "exclude": True},
    ]
    plan = planned(llms=llms, llava_variants={"low": {}, "high": {}}, overrides=overrides)
    assert step(plan, "llm-tiny.64").config["llm_from_scratch"] == {"hidden_size": 64}
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
        encoders=encoders,
        llava_variants={"low": {}, "high": {}},
        overrides=overrides,
        defaults=defaults,
        seeds=[0, 1],
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


def test_several_rows_of_the_baseline_leave_an_existing_llava_without_one():
    rows = planned(existing_llavas={"theirs": "a/b"}, seeds=[0, 1]).rows
    assert rows[-1].baseline is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"existing_llavas": {"clip": "a/b"}}, "existing_llavas.clip: an encoder has this name already"),
        ({"existing_llavas": {"a": {}}}, "existing_llavas.a: expected either 'llava' or 'lmms'"),
        (
            {"existing_llavas": {"a": {"llava": "b", "lmms": {"model": "c"}}}},
            "existing_llavas.a: lmms: expected either it or 'llava'",
        ),
        ({"existing_llavas": {"a": {"lava": "b"}}}, r"existing_llavas\.a: unknown key 'lava'; did you mean 'llava'"),
        ({"existing_llavas": {"a": {"llava": 3}}}, r"existing_llavas\.a: llava: expected a string or null, got 3"),
        ({"existing_llavas": {"a": {"llava": "b", "model_name": "c"}}}, r"existing_llavas\.a\.model_name"),
        (
            {"existing_llavas": {"a": {"lmms": "llava_hf"}}},
            r"existing_llavas\.a: lmms: expected a mapping of model, model_args or null, got 'llava_hf'",
        ),
        ({"existing_llavas": {"a": {"lmms": {"model_args": "x"}}}}, r"existing_llavas\.a: lmms: missing model"),
        ({"existing_llavas": {"a": 3}}, r"existing_llavas\.a: expected a mapping or a string, got 3"),
        ({"llava_variants": {"a": "b"}}, r"llava_variants\.a: expected a mapping, got 'b'"),
        (
            {"llava_variants": {"a": {}}, "llms": {}, "benchmarks": {"retrieval": {"data": "d"}}},
            "llava_variants: expected none without",
        ),
        ({"encoders": {}, "baseline": None}, "encoders: expected at least one, or one of 'existing_llavas'"),
        ({"overrides": [{"llava_variant": "a", "exclude": True}]}, "unknown llava_variant in 'overrides' 'a'"),
        ({"overrides": [{"encoder": "x*", "exclude": True}]}, r"unknown encoder in 'overrides' 'x\*'"),
        (
            {"overrides": [{"encoder": "theirs", "exclude": True}], "existing_llavas": {"theirs": "a/llava"}},
            "unknown encoder in 'overrides' 'theirs'",
        ),
        ({"overrides": [{"evaluation": {"llava": "x"}}]}, r"unknown key in overrides\[1\]\.evaluation 'llava'"),
        (
            {"llava_variants": {"a": {"sweep": {"b": [float("nan")]}}}},
            r"llava_variants\.a\.sweep\.b: expected names or numbers, got nan",
        ),
    ],
)
def test_a_wrong_row_is_refused_naming_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        planned(**fields)
