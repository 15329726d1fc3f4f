"""Keys: what makes a step run again, and what does not."""

from __future__ import annotations

import dataclasses
import os

import pytest
from study_material import SMALL

from benchmarks.results.protocol import CODE_VERSION
from benchmarks.study.build_steps import build_plan
from benchmarks.study.launchers import command_version
from benchmarks.study.parser import parse_study
from benchmarks.study.schema import Study
from benchmarks.study.step_state import step_keys
from clips.core.identity import VERSIONS


def keys(study: Study) -> dict[str, str]:
    found = step_keys(build_plan(study).steps, study.directory, version=command_version)
    return {name: key.key for name, key in found.items()}


def with_change(path: str, value: object) -> Study:
    """The small study with one field, named by its dotted path, changed."""
    content = {name: dict(entry) if isinstance(entry, dict) else entry for name, entry in SMALL.items()}
    place = content
    *above, last = path.split(".")
    for name in above:
        place[name] = dict(place[name])
        place = place[name]
    place[last] = value
    return parse_study(content)


def changed_steps(study: Study) -> set[str]:
    before, after = keys(parse_study(SMALL)), keys(study)
    return {name for name in after if before.get(name) != after[name]}


def test_the_same_study_has_the_same_keys():
    assert keys(parse_study(SMALL)) == keys(parse_study(SMALL))


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        (
            "encoders.clip",
            {"recipe": "other"},
            {"encoder-clip", "evaluate-encoder-clip", "llava-clip", "evaluate-llava-clip"},
        ),
        ("benchmarks.pope", {"limit": 5}, {"evaluate-llava-clip", "evaluate-llava-clips", "evaluate-llava-net"}),
        ("data.test", {"split": "test", "num_scenes": 3}, {"data-test", "evaluate-"}),
        ("question", "another?", set()),
        ("baseline", "clips", set()),
        ("jobs", 2, set()),
    ],
)
def test_a_changed_line_changes_only_what_depends_on_it(path, value, changed):
    found = changed_steps(with_change(path, value))
    for start in changed:
        assert any(name.startswith(start) for name in found), start
    assert {name for name in found if not name.startswith(tuple(changed))} == set()


def test_a_raised_version_of_a_command_counts_for_its_steps_and_what_depends_on_them(monkeypatch):
    before = keys(parse_study(SMALL))
    monkeypatch.setitem(VERSIONS, "clips train", 2)
    after = keys(parse_study(SMALL))
    same = {name for name in before if before[name] == after[name]}
    assert same == {"data-train", "data-test", "llm-tiny", "llava-net-tiny-s0", "evaluate-llava-net-tiny-s0"}


def test_the_text_of_a_users_script_is_its_version(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("print(1)", encoding="utf-8")
    before = command_version(("python", str(script)))
    script.touch()
    assert command_version(("python", str(script))) == before
    script.write_text("print(2)", encoding="utf-8")
    assert command_version(("python", str(script))) != before


def test_evaluations_have_the_version_of_the_evaluating_code():
    """It is in the results and in what is kept of models' outputs, too: one number to raise."""
    assert command_version(("clips-bench", "run")) == CODE_VERSION


def test_a_changed_file_outside_counts(tmp_path):
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"one")
    study = dataclasses.replace(parse_study(SMALL), encoders={"clip": {}, "net": f"timm:net@{weights}"})
    before = keys(study)
    weights.write_bytes(b"three")
    os.utime(weights, ns=(1, 1))
    after = keys(study)
    assert {name for name in before if before[name] != after[name]} == {
        "llava-net-tiny-s0",
        "evaluate-llava-net-tiny-s0",
    }


@pytest.mark.parametrize("spec", ["timm:net@{}", "transformers:{}"])
def test_an_encoder_of_another_source_may_lie_below_a_path_of_the_study(tmp_path, spec):
    study = parse_study(
        {**SMALL, "baseline": None, "encoders": {"net": spec.format("$shared/net")}, "paths": {"shared": str(tmp_path)}}
    )
    llava = next(step for step in build_plan(study).steps if step.name == "llava-net-tiny-s0")
    assert llava.config["encoder"] == spec.format(tmp_path / "net")
    assert tmp_path / "net" in llava.needs
    assert not [step for step in build_plan(study).steps if step.name.startswith("evaluate-encoder")]
    hub = parse_study({**SMALL, "baseline": None, "encoders": {"net": "transformers:google/siglip-base-patch16-224"}})
    assert not next(step for step in build_plan(hub).steps if step.name == "llava-net-tiny-s0").needs


def test_each_result_file_has_a_key_of_its_own():
    place = parse_study(SMALL).directory
    plain = step_keys(build_plan(parse_study(SMALL)).steps, place, version=command_version)
    more = step_keys(build_plan(with_change("benchmarks.gqa", {})).steps, place, version=command_version)
    name = "evaluate-llava-clip-tiny-s0"
    assert plain[name].key != more[name].key
    assert plain[name].outputs.items() < more[name].outputs.items()
