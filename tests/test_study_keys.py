"""Keys: what makes a step run again, and what does not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from study_material import SMALL

from benchmarks.source_code import reachable_files, source_hash
from benchmarks.study.plan import make_plan
from benchmarks.study.reading import study_from
from benchmarks.study.schema import Study
from benchmarks.study.state import step_keys


def keys(study: Study, code: str = "code", version: str = "1") -> dict[str, str]:
    found = step_keys(
        make_plan(study).steps, study.directory, version=version, code=lambda command: f"{code} of {command[0]}"
    )
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
    return study_from(content)


def changed_steps(study: Study) -> set[str]:
    before, after = keys(study_from(SMALL)), keys(study)
    return {name for name in after if before.get(name) != after[name]}


def test_the_same_study_has_the_same_keys():
    assert keys(study_from(SMALL)) == keys(study_from(SMALL))


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        (
            "encoders.clip",
            {"recipe": "other"},
            {"encoder-clip", "evaluate-encoder-clip", "llava-clip", "evaluate-llava-clip"},
        ),
        ("benchmarks.pope", {"limit": 5}, {"evaluate-llava-clip", "evaluate-llava-clips", "evaluate-llava-net"}),
        ("data.test", {"split": "test", "size": 3}, {"data-test", "evaluate-"}),
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


def test_code_and_version_count():
    study = study_from(SMALL)
    assert not set(keys(study).values()) & set(keys(study, code="newer").values())
    assert not set(keys(study).values()) & set(keys(study, version="2").values())


def test_a_changed_file_outside_counts(tmp_path):
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"one")
    study = dataclasses.replace(study_from(SMALL), encoders={"clip": {}, "net": f"timm:net@{weights}"})
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
    study = study_from(
        {**SMALL, "baseline": None, "encoders": {"net": spec.format("$shared/net")}, "paths": {"shared": str(tmp_path)}}
    )
    llava = next(step for step in make_plan(study).steps if step.name == "llava-net-tiny-s0")
    assert llava.config["encoder"] == spec.format(tmp_path / "net")
    assert tmp_path / "net" in llava.needs
    assert not [step for step in make_plan(study).steps if step.name.startswith("evaluate-encoder")]
    hub = study_from({**SMALL, "baseline": None, "encoders": {"net": "transformers:google/siglip-base-patch16-224"}})
    assert not next(step for step in make_plan(hub).steps if step.name == "llava-net-tiny-s0").needs


def test_each_result_file_has_a_key_of_its_own():
    place = study_from(SMALL).directory
    plain = step_keys(make_plan(study_from(SMALL)).steps, place, version="1", code=str)
    more = step_keys(make_plan(with_change("benchmarks.gqa", {})).steps, place, version="1", code=str)
    name = "evaluate-llava-clip-tiny-s0"
    assert plain[name].key != more[name].key
    assert plain[name].outputs.items() < more[name].outputs.items()


@pytest.fixture
def packages(tmp_path) -> Path:
    """clips.a imports clips.b inside a function, which names clips.c in a registry; clips.d is apart."""
    folder = tmp_path / "clips"
    (folder / "sheets").mkdir(parents=True)
    texts = {
        "__init__": "",
        "a": "def f():\n    from clips import b\n    return b\n",
        "b": "LAZY = {'c': 'clips.c:run'}\n",
        "c": '"""Text."""\nfrom . import e\n\ndef run():\n    """Text."""\n    return 1\n',
        "d": "x = 1\n",
        "e": "",
    }
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / "sheets" / "table.json").write_text("{}", encoding="utf-8")
    return tmp_path


def test_reachable_code_is_found_through_functions_registries_and_relative_imports(packages):
    names = {path.name for path in reachable_files("clips.a", packages)}
    assert names == {"__init__.py", "a.py", "b.py", "c.py", "e.py", "table.json"}


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("c.py", "from . import e\n\ndef run():\n    return 2\n", True),
        ("c.py", '"""Other."""\nfrom . import e\n\n\ndef run():  # why\n    """Other."""\n    return 1\n', False),
        ("sheets/table.json", "[]", True),
        ("d.py", "x = 2\n", False),
    ],
)
def test_behaviour_counts_and_wording_does_not(packages, file, text, counts):
    before = source_hash("clips.a:f", packages)
    path = packages / "clips" / file
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert (source_hash("clips.a:f", packages) != before) == counts


def test_the_real_commands_reach_what_they_run():
    train = {path.as_posix() for path in reachable_files("clips.train")}
    run = {path.as_posix() for path in reachable_files("benchmarks.run")}
    assert any(path.endswith("clips/model/losses.py") for path in train)
    assert any(path.endswith("benchmarks/encoders/retrieval.py") for path in run)
    assert not any("benchmarks/report" in path or "benchmarks/study" in path for path in run)
