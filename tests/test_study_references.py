"""What the texts of a study's configs refer to: files, names on the hub, what the study makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from study_material import SMALL
from test_study_keys import keys

from benchmarks.study.build_steps import build_plan
from benchmarks.study.parser import parse_study
from benchmarks.study.path_refs import split_refs
from benchmarks.study.preflight import check_input_files
from benchmarks.study.step_state import external_files_state
from benchmarks.study.steps import Step
from clips.errors import UserError

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
        ("several:interleave:timm:net@a/b + transformers:$x/y", "encoder", ["a/b", "$x/y"]),
        ("several:one + two", "encoder", ["one", "two"]),
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


def test_a_data_set_of_the_hub_and_shards_afar_are_no_missing_files():
    sources = [{"format": "datasets", "path": "org/photos"}, {"path": "s3://bucket/{00..11}.tar"}]
    found = named(study(encoders={"clip": {"data": {"sources": sources}}}), "encoder-clip-s0")
    assert (found.hub, found.needs) == (("org/photos",), ())
    plain = named(study(encoders={"clip": {"data": {"sources": [{"path": "org/photos"}]}}}), "encoder-clip-s0")
    assert (plain.hub, plain.needs) == ((), (Path("org/photos"),))


def test_words_with_a_slash_are_no_missing_files():
    words = {"prompt": "Is it a cat, yes/no?", "task": "choice_mcq", "data": "d", "judge_model": "org/judge"}
    assert named(study(benchmarks={"asked": words}), f"evaluate-{LLAVA}").needs == ()


def test_a_path_of_the_study_may_be_afar():
    data = {"path": "$shards/{00..11}.tar"}
    for place in ("s3://bucket/recap", "s3://bucket/recap/"):
        found = named(study(encoders={"clip": {"data": data}}, paths={"shards": place}), "encoder-clip-s0")
        assert (found.config["data"]["path"], found.needs) == ("s3://bucket/recap/{00..11}.tar", ())


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


def test_both_of_several_encoders_count_and_may_lie_below_a_path(tmp_path):
    (tmp_path / "a").mkdir()
    both = study(encoders={"net": "several:transformers:$here/a + hf-hub:x/y"}, paths={"here": str(tmp_path)})
    found = named(both, LLAVA)
    assert found.config["encoder"] == f"several:transformers:{tmp_path}/a + hf-hub:x/y"
    assert (found.needs, found.hub) == ((tmp_path / "a",), ("x/y",))


@pytest.mark.parametrize("spelled", ["runs/small/data/test", "./runs/small/data/test", "runs/../runs/small/data/test"])
def test_what_a_step_makes_is_its_output_however_it_is_called(spelled, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for place in (spelled, str(tmp_path / "runs/small/data/test")):
        asked = study(benchmarks={"retrieval": {"data": place}}, llms={})
        found = named(asked, "evaluate-encoder-clip-s0")
        assert "data-test" in found.parents
        assert not found.needs


def test_files_count_by_their_times_beside_a_manifest_and_behind_links(tmp_path):
    inside, behind = tmp_path / "encoder", tmp_path / "behind"
    for folder in (inside, behind):
        folder.mkdir()
        (folder / "weights").write_text("one", encoding="utf-8")
    (inside / "manifest.json").write_text("{}", encoding="utf-8")
    (inside / "linked").symlink_to(behind)
    (behind / "circle").symlink_to(inside)
    states = [external_files_state(inside)]
    for number, folder in enumerate((inside, behind)):
        os.utime(folder / "weights", ns=(number, number))
        states.append(external_files_state(inside))
    (inside / "linked").unlink()
    states.append(external_files_state(inside))
    assert len(set(states)) == 4
    assert external_files_state(inside) == states[-1]


def test_a_study_may_be_moved_and_called_by_another_path():
    assert keys(study()) == keys(study(output="elsewhere/small"))
    assert keys(study(seeds=[1])).keys() != keys(study()).keys()
