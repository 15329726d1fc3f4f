"""Keys: what makes a step run again, and what does not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from study_material import SMALL

from benchmarks.results.protocol import CODE_VERSION
from benchmarks.study.build_steps import build_plan
from benchmarks.study.launchers import command_version
from benchmarks.study.path_refs import split_refs
from benchmarks.study.preflight import check_input_files
from benchmarks.study.schema import Study, parse_study
from benchmarks.study.state import external_files_state, step_keys
from benchmarks.study.steps import Step
from clips.core.identity import VERSIONS
from clips.errors import UserError


def keys(study: Study) -> dict[str, str]:
    found = step_keys(build_plan(study).steps, study.directory)
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


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("encoders.clip", {"recipe": "other"},
         {"encoder-clip", "evaluate-encoder-clip", "llava-clip", "evaluate-llava-clip"}),
        ("benchmarks.pope", {"limit": 5}, {"evaluate-llava-clip", "evaluate-llava-clips", "evaluate-llava-net"}),
        ("data.test.num_scenes", 3, {"data-test", "evaluate-"}),
        ("encoders.clip.logging_steps", 5, set()),
        ("encoders.clip.distributed", {"strategy": "fsdp"}, set()),
        ("defaults.encoder.report_to", ["tensorboard"], set()),
        ("defaults.encoder.data.num_workers", 3, set()),
        ("defaults.llava.align.activation_checkpointing", False, set()),
        ("question", "another?", set()),
        ("baseline", "clips", set()),
        ("jobs", 2, set()),
    ],
)  # fmt: skip
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
    assert same == {"data-train", "data-test", "data-llm", "llava-net-tiny-s0", "evaluate-llava-net-tiny-s0"}


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
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"llava-net-tiny-s0", "evaluate-llava-net-tiny-s0"}


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
    plain = step_keys(build_plan(parse_study(SMALL)).steps, place)
    more = step_keys(build_plan(with_change("benchmarks.gqa", {})).steps, place)
    name = "evaluate-llava-clip-tiny-s0"
    assert plain[name].key != more[name].key
    assert plain[name].outputs.items() < more[name].outputs.items()


LLAVA = "llava-net-tiny-s0"


def study(**fields: object):  # type: ignore[no-untyped-def]
    return parse_study({**SMALL, "baseline": None, **fields})


def named(study, name: str) -> Step:  # type: ignore[no-untyped-def]
    return next(step for step in build_plan(study).steps if step.name == name)


@pytest.mark.parametrize(
    ("text", "field", "references"),
    [
        ("timm:net@a/b.safetensors", "encoder", ["a/b.safetensors"]),
        ("transformers:a/b", "encoder", ["a/b"]),
        ("pretrained=$x/y,device_map=cpu", "model_args", ["$x/y", "cpu"]),
        ("What is 1 + 1?", "prompt", ["What is 1 + 1?"]),
    ],
)
def test_a_text_is_cut_into_its_references_and_what_stands_between_them(text, field, references):
    found = split_refs(text, field)
    assert [piece.reference for piece in found] == references
    assert "".join(piece.before + piece.reference for piece in found) == text


@pytest.mark.parametrize(
    ("fields", "hub"),
    [
        ({"encoders": {"net": "transformers:google/siglip-base-patch16-224"}}, "google/siglip-base-patch16-224"),
        ({"encoders": {"net": "hf-hub:laion/CLIP-ViT-B-32"}}, "laion/CLIP-ViT-B-32"),
        ({"encoders": {"net": "timm:a"}, "llms": {"tiny": "org/llama@v1.0"}}, "org/llama@v1.0"),
    ],
)
def test_a_name_on_the_hub_is_no_missing_file(fields, hub):
    found = named(study(**fields), LLAVA if "llms" not in fields else "llava-net-tiny-s0")
    assert (found.hub, found.needs) == ((hub,), ())
    check_input_files([found], study(**fields))


def test_hub_datasets_and_remote_shards_are_no_missing_files():
    sources = [{"format": "datasets", "path": "org/photos"}, {"path": "s3://bucket/{00..11}.tar"}]
    found = named(study(encoders={"clip": {"data": {"sources": sources}}}), "encoder-clip-s0")
    assert (found.hub, found.needs) == (("org/photos",), ())
    plain = named(study(encoders={"clip": {"data": {"sources": [{"path": "org/photos"}]}}}), "encoder-clip-s0")
    assert (plain.hub, plain.needs) == ((), (Path("org/photos"),))


def test_each_file_of_a_range_counts_and_must_be_there(tmp_path):
    for number in range(3):
        (tmp_path / f"{number:02d}.tar").write_text("one", encoding="utf-8")
    data = {"path": str(tmp_path / "{00..02}.tar")}
    ranged = study(encoders={"clip": {"data": data}})
    before = keys(ranged)["encoder-clip-s0"]
    check_input_files([named(ranged, "encoder-clip-s0")], ranged)
    (tmp_path / "01.tar").write_text("two!", encoding="utf-8")
    assert keys(ranged)["encoder-clip-s0"] != before
    (tmp_path / "02.tar").unlink()
    with pytest.raises(UserError, match="missing: 1"):
        check_input_files([named(ranged, "encoder-clip-s0")], ranged)


def test_a_model_called_by_one_word_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("enc").mkdir()
    Path("enc/weights").write_text("one", encoding="utf-8")
    one = study(encoders={"net": "enc"})
    before = keys(one)[LLAVA]
    Path("enc/weights").write_text("two!", encoding="utf-8")
    assert keys(one)[LLAVA] != before


@pytest.mark.parametrize("spelled", ["runs/small/data/test", "./runs/small/data/test", "runs/../runs/small/data/test"])
def test_what_a_step_makes_is_its_output_however_it_is_called(spelled, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for place in (spelled, str(tmp_path / "runs/small/data/test")):
        asked = study(benchmarks={"retrieval": {"data": place}}, llms={})
        found = named(asked, "evaluate-encoder-clip-s0")
        assert "data-test" in found.parents
        assert not found.needs


def test_files_count_by_their_contents_next_to_a_manifest_and_behind_links(tmp_path):
    inside, behind = tmp_path / "encoder", tmp_path / "behind"
    for folder in (inside, behind):
        folder.mkdir()
        (folder / "weights").write_text("one", encoding="utf-8")
    (inside / "manifest.json").write_text("{}", encoding="utf-8")
    (inside / "linked").symlink_to(behind)
    (behind / "circle").symlink_to(inside)
    states = [external_files_state(inside)]
    for folder in (inside, behind):
        before = (folder / "weights").stat()
        os.utime(folder / "weights", ns=(1, 1))  # touched
        (folder / "copy").write_text((folder / "weights").read_text(encoding="utf-8"), encoding="utf-8")
        (folder / "copy").replace(folder / "weights")
        assert external_files_state(inside) == states[-1]
        (folder / "weights").write_text("two", encoding="utf-8")  # of the same size, with the old time
        os.utime(folder / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
        states.append(external_files_state(inside))
    (inside / "linked").unlink()
    states.append(external_files_state(inside))
    assert len(set(states)) == 4
    assert external_files_state(inside) == states[-1]


def test_a_study_may_be_moved_and_called_by_another_path():
    assert keys(study()) == keys(study(output="elsewhere/small"))
    assert keys(study(seeds=[1])).keys() != keys(study()).keys()
