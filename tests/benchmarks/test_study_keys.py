"""Keys: what makes a step run again, and what does not."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
from study_engine import named
from study_material import MAKE_SCENES, SMALL

from benchmarks.results.protocol import CODE_VERSION
from benchmarks.study.launch import command_version
from benchmarks.study.preflight import check_input_files
from benchmarks.study.schema import Study, parse_study
from benchmarks.study.state import Step, StepKey, StepRecord
from benchmarks.study.steps import build_plan, external_files_state, split_refs, with_keys
from clips.core.identity import VERSIONS
from clips.errors import UserError

LLAVA, ENCODER = "llava-net-tiny-s0", "encoder-clip-s0"


def study_of(**fields: object) -> Study:
    return parse_study({**SMALL, "baseline": None, **fields})


def step_keys(study: Study) -> dict[str, StepKey]:
    return {step.name: step.key for step in with_keys(build_plan(study).steps)}


def keys(study: Study) -> dict[str, str]:
    return {name: key.key for name, key in step_keys(study).items()}


def step_of(study: Study, name: str) -> Step:
    return named(build_plan(study).steps, name)


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
    content = copy.deepcopy(SMALL)
    *above, last = path.split(".")
    place = content
    for name in above:
        place = place[name]
    place[last] = value
    before, after = keys(parse_study(SMALL)), keys(parse_study(content))
    found = {name for name in after if before.get(name) != after[name]}
    assert all(any(name.startswith(start) for name in found) for start in changed)
    assert {name for name in found if not name.startswith(tuple(changed))} == set()


def test_a_raised_version_of_a_command_counts_for_its_steps_and_what_depends_on_them(monkeypatch):
    before = keys(parse_study(SMALL))
    monkeypatch.setitem(VERSIONS, "clips train", 2)
    after = keys(parse_study(SMALL))
    same = {name for name in before if before[name] == after[name]}
    assert same == {"data-train", "data-test", "data-llm", LLAVA, f"evaluate-{LLAVA}"}
    assert command_version(("clips-bench", "run")) == CODE_VERSION  # of stored results and outputs, too


def test_a_users_script_counts_by_its_text_and_by_that_of_its_modules(tmp_path):
    script, module, unused = (tmp_path / f"{name}.py" for name in ("mine", "helper", "unused"))
    (tmp_path / "deeper.py").write_text("A = 1", encoding="utf-8")
    script.write_text("import os\nfrom helper import A", encoding="utf-8")
    module.write_text("from deeper import A", encoding="utf-8")
    made = {"command": f"python {script}"}
    own = study_of(data={"train": made, "test": made, "llm": {**made, "path": "$data/train"}})
    before = step_keys(own)

    def record(name: str, **fields: object) -> StepRecord:
        key = before[name]
        written = {"key": key.key, "parts": key.parts, "status": "done", "started": 1.0, **fields}
        return StepRecord(name=name, kind="data", command="", **written)

    script.touch()
    unused.write_text("A = 1", encoding="utf-8")
    assert step_keys(own) == before
    (tmp_path / "deeper.py").write_text("A = 2", encoding="utf-8")
    after = step_keys(own)
    changes = {name: after[name].changes(record(name)) for name in ("data-train", "data-llm", ENCODER, LLAVA)}
    assert changes == {
        "data-train": ["modules"],
        "data-llm": ["modules", "modules of parents"],
        ENCODER: ["modules of parents"],
        LLAVA: ["modules of parents"],
    }
    assert not any(after[name].matches(record(name)) for name in changes)
    older = {name: part for name, part in before[LLAVA].parts.items() if "modules" not in name}
    assert after[LLAVA].matches(record(LLAVA, parts=older))  # written before modules counted
    script.write_text("from helper import A  # changed", encoding="utf-8")
    assert step_keys(own)["data-train"].key != before["data-train"].key


@pytest.mark.parametrize("spec", ["{}", "timm:net@{}", "transformers:{}"])
def test_an_encoder_outside_counts_by_its_files(tmp_path, spec):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/weights").write_text("one", encoding="utf-8")
    own = study_of(encoders={"net": spec.format("$shared/net")}, paths={"shared": str(tmp_path)})
    llava = step_of(own, LLAVA)
    assert llava.config["encoder"] == spec.format(tmp_path / "net")
    assert tmp_path / "net" in llava.needs
    before = keys(own)
    (tmp_path / "net/weights").write_text("two", encoding="utf-8")
    after = keys(own)
    assert {name for name in before if before[name] != after[name]} >= {LLAVA, f"evaluate-{LLAVA}"}
    assert before["data-llm"] == after["data-llm"]


def test_a_cache_is_no_file_that_a_step_reads(tmp_path):
    """Before: a training that had filled it was to be trained again."""
    source = {"path": "$data/train", "cache_dir": str(tmp_path)}
    own = study_of(
        defaults={**SMALL["defaults"], "encoder": {**SMALL["defaults"]["encoder"], "data": {"sources": [source]}}}
    )
    before = keys(own)
    (tmp_path / "0.tar.index").write_bytes(b"of the training")
    assert keys(own) == before
    assert tmp_path not in step_of(own, ENCODER).needs


def test_a_model_called_by_one_word_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("enc").mkdir()
    assert step_of(study_of(encoders={"net": "enc"}), LLAVA).needs == (Path("enc"),)
    assert step_of(study_of(**recaptioning(model="enc")), "data-train").needs == (Path("enc"),)
    exported = {"data": {**SMALL["data"], "train": {"command": "clips export", "checkpoint": "enc"}}}
    assert step_of(study_of(**exported), "data-train").needs == (Path("enc"),)


def test_each_result_file_has_a_key_of_its_own():
    plain = step_keys(study_of())["evaluate-llava-clip-tiny-s0"]
    more = step_keys(study_of(benchmarks={**SMALL["benchmarks"], "gqa": {}}))["evaluate-llava-clip-tiny-s0"]
    assert plain.key != more.key
    assert plain.outputs.items() < more.outputs.items()


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
    assert [reference for _, reference in found] == references
    assert "".join(before + reference for before, reference in found) == text


def reading(source: dict[str, str]) -> dict[str, object]:
    return {"encoders": {"clip": {"data": {"sources": [source]}}}}


def recaptioning(**config: object) -> dict[str, object]:
    return {"data": {**SMALL["data"], "train": {"command": "clips recaption", **config}}}


@pytest.mark.parametrize(
    ("name", "fields", "hub", "needs"),
    [
        (LLAVA, {"encoders": {"net": "transformers:google/siglip-base"}}, ["google/siglip-base"], []),
        (LLAVA, {"encoders": {"net": "hf-hub:laion/CLIP-ViT-B-32"}}, ["laion/CLIP-ViT-B-32"], []),
        (LLAVA, {"encoders": {"net": "timm:a"}, "llms": {"tiny": "org/llama@v1.0"}}, ["org/llama@v1.0"], []),
        (ENCODER, reading({"format": "datasets", "path": "org/photos"}), ["org/photos"], []),
        (ENCODER, reading({"path": "s3://bucket/{00..11}.tar"}), [], []),
        (ENCODER, reading({"path": "org/photos"}), [], ["org/photos"]),
        (ENCODER, reading({"format": "datasets", "path": "photos", "split": "train"}), [], []),
        (ENCODER, reading({"path": "captionz.csv", "image_root": "nowhere"}), [], ["captionz.csv", "nowhere"]),
        (ENCODER, {"encoders": {"clip": {"model": {"architecture": "mine.json"}}}}, [], ["mine.json"]),
        (ENCODER, {"encoders": {"clip": {"model": {"architecture": "ViT-B-32", "pretrained": "own"}}}}, [], ["own"]),
        (LLAVA, {"encoders": {"net": "timm:a@random"}}, [], []),
        (LLAVA, {"encoders": {"net": "timm:a@net.pt"}, "llms": {"tiny": "word"}}, [], ["net.pt", "word"]),
        (LLAVA, {"encoders": {"net": "transformers:siglip"}}, [], ["siglip"]),
        ("evaluate-llava-served", {"existing_llavas": {"served": {"llava": "a", "endpoint": ["http://b"]}}}, [], []),
        ("data-train", {"data": {**SMALL["data"], "train": {"command": MAKE_SCENES, "path": "photos"}}}, [], []),
        ("data-train", recaptioning(model="org/captioner"), ["org/captioner"], []),
        ("data-train", recaptioning(model="org/captioner", endpoint=["http://b"]), [], []),
    ],
)  # fmt: skip
def test_a_name_on_the_hub_is_no_missing_file(name, fields, hub, needs):
    step = step_of(study_of(**fields), name)
    assert (list(step.hub), list(map(str, step.needs))) == (hub, needs)
    if not needs:
        check_input_files([step], study_of(**fields))


def test_each_file_of_a_range_counts_and_must_be_there(tmp_path):
    for number in range(3):
        (tmp_path / f"{number:02d}.tar").write_text("one", encoding="utf-8")
    ranged = study_of(encoders={"clip": {"data": {"path": str(tmp_path / "{00..02}.tar")}}})
    before = keys(ranged)[ENCODER]
    check_input_files([step_of(ranged, ENCODER)], ranged)
    (tmp_path / "01.tar").write_text("two!", encoding="utf-8")
    assert keys(ranged)[ENCODER] != before
    (tmp_path / "02.tar").unlink()
    with pytest.raises(UserError, match=r"\{00..02\}.tar: no such file or directory; needed by encoder-clip-s0$"):
        check_input_files([step_of(ranged, ENCODER)], ranged)


@pytest.mark.parametrize("spelled", ["{}", "./{}", "runs/../{}", "{folder}/{}"])
def test_what_a_step_makes_is_its_output_however_it_is_called(spelled, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = spelled.format("runs/small/data/test", folder=tmp_path)
    found = step_of(study_of(benchmarks={"retrieval": {"data": place}}, llms={}), "evaluate-encoder-clip-s0")
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


def test_a_study_may_be_moved_and_called_by_another_path():
    assert keys(study_of()) == keys(study_of(output="elsewhere/small"))
