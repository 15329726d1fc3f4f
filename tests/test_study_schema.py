"""Study files: what is read, what is refused and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from study_material import SMALL

from benchmarks.study.build_steps import build_plan
from benchmarks.study.parser import parse_study, read_study
from benchmarks.study.preflight import first_config_error
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK
from benchmarks.study.sweep import deep_merge
from clips.errors import UserError
from clips.serialization import to_plain

STUDIES = Path(__file__).parents[1] / "scripts" / "studies"


def changed(**fields: object) -> dict[str, object]:
    return {**SMALL, **fields}


def step(plan, name):  # type: ignore[no-untyped-def]
    return next(step for step in plan.steps if step.name == name)


def test_overrides_are_laid_over_the_defaults_key_by_key():
    config = step(build_plan(parse_study(SMALL)), "encoder-clips-s0").config
    assert config["optimizer"] == {"lr": 3, "warmup": 2}
    assert deep_merge({"a": [1], "b": {"c": 1}}, {"a": [2], "b": {"d": 2}}) == {"a": [2], "b": {"c": 1, "d": 2}}


def test_steps_depend_on_what_their_configs_refer_to():
    plan = build_plan(parse_study(SMALL))
    assert step(plan, "encoder-clip-s0").parents == ("data-train",)
    assert step(plan, "encoder-clip-s0").config["data"]["path"] == "runs/small/data/train"
    assert set(step(plan, "llava-clip-tiny-s0").parents) == {"encoder-clip-s0", "llm-tiny"}
    assert step(plan, "llava-net-tiny-s0").needs == (Path("weights/net.safetensors"),)
    assert set(step(plan, "evaluate-llava-clips-tiny-s0").parents) == {"llava-clips-tiny-s0", "data-test"}


def test_a_row_without_text_tower_has_no_retrieval_and_says_so():
    rows = {row.name: row for row in build_plan(parse_study(SMALL)).rows}
    assert rows["net"].not_applicable == {"retrieval": "no text tower"}
    assert "retrieval" not in rows["net"].cells
    assert rows["clips"].baseline == "clip"
    assert rows["clip"].baseline is None


def test_rows_are_encoders_times_llms_times_seeds_and_exceptions_apply():
    study = changed(
        seeds=[0, 1],
        llms={"tiny": {}, "big": "some/big"},
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


def test_paths_outside_the_study_are_one_entry():
    study = parse_study(changed(paths={"shared": "elsewhere"}, llms={"llama": "$shared/models/llama"}))
    assert step(build_plan(study), "llava-clip-llama-s0").config["llm"] == "elsewhere/models/llama"
    with pytest.raises(UserError, match="a folder of the study's own"):
        parse_study(changed(paths={"data": "elsewhere"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encodrs": {}}, "unknown key 'encodrs'; did you mean 'encoders'"),
        ({"defaults": {"encodr": {}}}, r"unknown key 'defaults\.encodr'; did you mean 'defaults\.encoder'"),
        ({"benchmarks": {"pope": {"limt": 3}}}, r"benchmarks\.pope: unknown key 'limt'; did you mean 'limit'"),
        ({"baseline": "clap"}, "unknown encoder in 'baseline' 'clap'; did you mean 'clip'"),
        (
            {"defaults": {**SMALL["defaults"], "encoder": {"data": "$data/trian"}}},
            r"'\$data/trian'; did you mean '\$data/train'",
        ),
        ({"encoders": {"a/b": {}}}, r"encoders\.a/b: expected a name"),
        (
            {"encoders": {"clip": 3}},
            r"encoders\.clip: expected a mapping or a string, got 3",
        ),
        ({"jobs": 0}, "jobs: expected at least 1"),
        ({"jobs": True}, "jobs: expected an integer, got True"),
        ({"seeds": [1, 1]}, "seeds: expected different whole numbers"),
        ({"llms": {}}, "benchmarks.pope: asks a LLaVA, but the study has no 'llms'"),
        ({"overrides": [{"skp": True}]}, r"overrides\[1\]\.skp.*did you mean"),
        ({"overrides": [{"exclude": True}]}, "every row is left out"),
        ({"benchmarks": {"retrieval": {"captions_per_image": 0}}}, "benchmarks.retrieval: .*at least 1"),
        ({"benchmarks": {"pope": {"limit": "5"}}}, r"benchmarks\.pope: limit: expected an integer or null, got '5'"),
        ({"benchmarks": {"pope": {"task": 5}}}, r"benchmarks\.pope: task: expected a string or null, got 5"),
        (
            {"benchmarks": {"pope": {"exclude_metrics": "x"}}},
            r"benchmarks\.pope: exclude_metrics: expected a list, each item a string, got 'x'",
        ),
        (
            {"benchmarks": {"long_retrieval": {"word_limits": [8, "16"]}}},
            r"benchmarks\.long_retrieval: word_limits\[2\]: expected an integer, got '16'",
        ),
        ({"encoders": {"x" * 300: {}}}, r"expected a name of up to 60 letters"),
    ],
)
def test_a_wrong_study_is_refused_naming_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        build_plan(parse_study(changed(**fields)))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("name: a\nencoders: {clip: {}, clip: {}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"study\.yaml: line 2: the key 'clip' is given twice"):
        read_study(file)


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "- a\n- b\n",
        "",
        "name: a\n",
        "? [a, b]\n: 1\n",
        "name: a\nencoders: &x {again: *x}\nbenchmarks: {pope: {data: d}}\n",
    ],
)
def test_a_file_that_is_no_study_is_refused_in_one_line(tmp_path, text):
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
        ({"encoders": {"a": {"sweep": {"b": [[1]]}}}}, r"encoders\.a\.sweep\.b: expected names or numbers"),
        ({"encoders": {"a.1": {}, "a": {"sweep": {"b": [1]}}}}, r"its 'sweep' makes a\.1, which is there already"),
        ({"benchmarks": {"retrieval": {"data": "d", "encoders": ["prt"]}}}, r"'prt'; did you mean 'part'"),
        ({"figures": [{"benchmark": "retrieval", "encoders": "part"}]}, r"figures\[1\]: missing x"),
        (
            {"figures": [{"benchmark": "retrieval", "encoders": "part", "x": "recipe.caption_strategy"}]},
            r"figures\[1\]\.x: expected a setting whose values are numbers",
        ),
        (
            {"figures": [{"benchmark": "retrieval", "encoders": "clip", "x": "recipe.caption_strategy"}]},
            r"figures\[1\]\.encoders' 'clip'",
        ),
        ({"sweeps": {}}, "unknown key 'sweeps'"),
    ],
)
def test_a_wrong_grid_or_figure_is_refused_naming_the_field(fields, message):
    content = changed(encoders={"clip": {"recipe": {}}, "part": GRID}, llms={}, benchmarks={"retrieval": {"data": "d"}})
    content["baseline"] = None if "encoders" in fields else "clip"
    with pytest.raises(UserError, match=message):
        build_plan(parse_study({**content, **fields}))


@pytest.mark.parametrize("name", ["demo", "photos"])
def test_the_shipped_studies_have_a_plan(name):
    plan = build_plan(read_study(STUDIES / f"{name}.yaml"))
    assert {"untrained", "clip", "clips"} <= {row.name for row in plan.rows}
    assert all(row.cells for row in plan.rows)


@pytest.mark.parametrize("name", ["inverse_effect", "ablation"])
def test_the_studies_of_the_papers_claims_have_a_plan_that_their_commands_accept(name):
    plan = build_plan(read_study(STUDIES / f"{name}.yaml"))
    assert plan.study.seeds == (1, 2, 3)
    assert all(row.cells for row in plan.rows)
    first = [one for one in plan.steps if not one.name.endswith(("-s1", "-s2"))]
    assert first_config_error([(one.name, list(one.command), to_plain(one.config)) for one in first]) is None
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
