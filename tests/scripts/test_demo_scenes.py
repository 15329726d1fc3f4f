"""The demo's scenes: pinned, true to their ground truth, split without common combinations, read by lmms-eval."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from script_modules import load_script

from clips.core.artifact import directory_hash, read_manifest
from clips.errors import UserError

make_scenes = load_script("demo/make_scenes.py")  # the modules below are next to it
import scene_questions as questions  # noqa: E402
import scene_texts as texts  # noqa: E402
import scene_world  # noqa: E402
from scene_rng import DeterministicRng  # noqa: E402

COUNT = 300
WORLD = scene_world.SceneGenerator()


@pytest.fixture(scope="module")
def scenes() -> list[scene_world.Scene]:
    return [WORLD.scene("test", index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A test split with all benchmarks."""
    out = tmp_path_factory.mktemp("scenes") / "test"
    rows = make_scenes.BenchmarkRows(pope=36, mme=60, gqa=30, textvqa=10, nocaps=12)
    config = {"split": "test", "num_scenes": 120, "image_size": 48, "benchmarks": rows}
    make_scenes.make_scenes(make_scenes.ScenesConfig(output=str(out), **config))
    return out


def kinds_of(scene: scene_world.Scene) -> set[str]:
    return {thing.kind for thing in scene.objects}


# ---------------------------------------------------------------- what studies depend on


def test_ground_truth_images_and_texts_are_pinned(scenes):
    truth = [WORLD.scene(split, index).to_json() for split in ("train", "test") for index in range(200)]
    found = hashlib.sha256(json.dumps(truth).encode()).hexdigest()
    assert found == "c50546bb4e185271a36dbb0693eb98780e132a8affe8a4a04288e0015105ceb1"
    digest = hashlib.sha256()
    for split, index in itertools.product(("train", "test"), range(60)):
        digest.update(np.asarray(scene_world.render(WORLD.scene(split, index), 64)).tobytes())
    assert digest.hexdigest() == "bb4dceaf039e38f0d0c5c0effa80ce1a59b9492afe152bd539daca51218e4985"
    digest = hashlib.sha256()
    for number, scene in enumerate(scenes[:150]):
        styles = (False, True)
        made = [dataclasses.astuple(texts.make_captions(WORLD, scene, mllm=style)) for style in styles]
        long, described = made[0][1], texts.describe_scene(WORLD, scene)
        asked = [ask(described, DeterministicRng(number)) for ask in (questions.yes_no_pairs, questions.open_questions)]
        asked.append(questions.sign_questions(described))
        made += [[dataclasses.astuple(one) for one in each] for each in asked]
        made += [questions.align_record(described, long, "k", "k.png"), questions.text_record(described, long, "k")]
        made.append(questions.instruct_record(described, "k", "k.png"))
        digest.update(json.dumps(made, sort_keys=True).encode())
    assert digest.hexdigest() == "4377a3d24b40bafb07428ad8481bf19b037d77bf402f46e814cb2878d1f84008"


def test_test_combinations_never_occur_in_training(scenes):
    train = [WORLD.scene("train", index) for index in range(1000)]
    assert {kind for scene in train for kind in kinds_of(scene)} == {kind.name for kind in WORLD.object_classes}
    for scene in train:
        names = sorted(kinds_of(scene))
        assert not any(scene_world.is_pair_heldout(a, b) for a, b in itertools.combinations(names, 2)), names
        assert not any(scene_world.is_background_heldout(name, scene.background) for name in names), names
    sets = {frozenset(kinds_of(scene)) for scene in train if len(kinds_of(scene)) > 1}
    settings = {(kind, scene.background) for scene in train for kind in kinds_of(scene)}
    assert not sets & {frozenset(kinds_of(scene)) for scene in scenes}
    alone = {(*kinds_of(scene), scene.background) for scene in scenes if len(kinds_of(scene)) == 1}
    assert len(alone) > 30
    assert not settings & alone


@pytest.mark.parametrize("kinds", [8, 466])
def test_any_number_of_kinds_makes_a_world(kinds):
    world = scene_world.SceneGenerator(num_object_classes=kinds, sign_ratio=1, sign_size="large")
    known = {kind.name for kind in world.object_classes}
    right = {"train": scene_world.is_train_scene, "test": scene_world.is_test_scene}
    for split, index in itertools.product(right, range(60)):
        scene = world.scene(split, index)
        assert kinds_of(scene) <= known
        assert right[split](kinds_of(scene), scene.background)
        boxes = [thing.box for thing in scene.objects] + ([scene.sign.box] if scene.sign else [])
        assert all(min(x, y) >= 0 and max(x + wide, y + high) <= 1024 for x, y, wide, high in boxes)


def test_an_image_has_its_objects_at_the_positions_of_the_ground_truth():
    """Taking a thing out of a scene changes the image inside the thing's box and nowhere else."""
    for index in range(30):
        scene = WORLD.scene("train", index)
        without = dataclasses.replace(scene, objects=scene.objects[:-1])
        pixels, empty = (np.asarray(scene_world.render(one, 128)).astype(int) for one in (scene, without))
        changed = np.argwhere(np.abs(pixels - empty).sum(axis=-1) > 30)
        x, y, width, height = (length / 8 for length in scene.objects[-1].box)
        assert len(changed) > 0.1 * width * height or scene.sign
        assert (changed >= np.array([y, x]) - 1).all()
        assert (changed <= np.array([y + height, x + width]) + 1).all()


# ---------------------------------------------------------------- captions and questions


def names_in(text: str) -> set[str]:
    """The kinds named in a text, longest names first so that "soccer ball" is not also a "ball"."""
    found, rest = set(), text.lower()
    for kind in sorted(WORLD.object_classes, key=lambda kind: -len(kind.name)):
        pattern = rf"\b({re.escape(kind.plural.lower())}|{re.escape(kind.name.lower())})\b"
        if re.search(pattern, rest):
            found.add(kind.name)
            rest = re.sub(pattern, "_", rest)
    return found


def test_long_captions_begin_with_everything_and_web_captions_are_partial_and_noisy(scenes):
    about = Counter()
    for scene in scenes:
        made, there = texts.make_captions(WORLD, scene), kinds_of(scene)
        assert names_in(made.synthetic_caption.partition(".")[0]) == there
        assert all(names_in(caption) and names_in(caption) <= there for caption in made.captions)
        named = names_in(made.web_caption)
        about["right" if named & there else "wrong" if named else "nothing"] += 1
        about["partial"] += bool(named & there) and named & there != there
    assert about["right"] > 0.75 * COUNT
    assert about["partial"] > 0.3 * COUNT
    assert about["wrong"] > 0
    assert about["nothing"] > 0.04 * COUNT


def test_captions_like_a_models_begin_with_the_summary_and_get_ever_less_reliable(scenes, monkeypatch):
    """By place of the sentence: things newly named, and sentences that name things that are not there."""
    new, absent = Counter(), Counter()
    for scene in scenes:
        there, named = kinds_of(scene), set()
        caption = texts.make_captions(WORLD, scene, mllm=True).synthetic_caption
        for place, sentence in enumerate(re.findall(r"[^.]+\.", caption)):
            found = names_in(sentence)
            new[place] += len((found & there) - named)
            absent[place] += bool(found - there)
            named |= found
        with monkeypatch.context() as patched:
            patched.setattr(texts, "_MLLM_ERROR", 0)
            assert names_in(texts.make_captions(WORLD, scene, mllm=True).synthetic_caption) <= there
    assert new[0] > 4 * new[1] > 4 * new[3]
    assert 0 == absent[0] < 0.05 * COUNT < absent[1] < absent[3]


def test_pairs_are_true_and_false(scenes):
    """The answers of many questions are recomputed from the ground truth by reading the question's words."""
    checked = Counter()
    for number, scene in enumerate(scenes):
        for pair in questions.yes_no_pairs(texts.describe_scene(WORLD, scene), DeterministicRng(number)):
            for text, answer in ((pair.yes, True), (pair.no, False)):
                if (truth := judge(text, scene)) is not None:
                    assert truth is answer, (text, scene)
                    checked[pair.category] += 1
    assert set(checked) == {"existence", "count", "position", "color", "scene", "OCR"}
    assert min(checked.values()) > 30


def judge(text: str, scene: scene_world.Scene) -> bool | None:
    words = text.removesuffix("?")
    boxes = {thing.kind: thing.box for thing in scene.objects}
    if match := re.match(r"Is there an? (.+) in this image", words):
        return match[1] in boxes if match[1] in {kind.name for kind in WORLD.object_classes} else None
    if match := re.match(r"(?:Is there only|Are there) (\w+) objects? in", words):
        return len(scene.objects) == texts.NUMBERS.index(match[1])
    if match := re.match(r"Is the (.+) on the (left|right) side", words):
        box = boxes[match[1]]
        return (box[0] + box[2] / 2 < 512) == (match[2] == "left")
    if match := re.match(r"Is the (.+?) to the (left|right) of the (.+)", words):
        first, second = (boxes[name][0] + boxes[name][2] / 2 for name in (match[1], match[3]))
        return (first < second) == (match[2] == "left")
    if match := re.match(r'Is the word on the sign "(\w+)"', words):
        return match[1] == scene.sign.word.lower()
    if match := re.match(r"Is the background of this image (.+)", words):
        return scene.background == f"{match[1]} background"
    if (match := re.match(r"Is (?:the color of )?the (.+) (\w+)$", words)) and match[1] in boxes:
        (thing,) = [thing for thing in scene.objects if thing.kind == match[1]]
        return thing.color == match[2]
    return None


def test_conversations_are_balanced_and_well_formed(scenes):
    answers, captions = Counter(), 0
    for scene in scenes:
        described, there = texts.describe_scene(WORLD, scene), kinds_of(scene)
        turns = questions.instruct_record(described, "k", "shard-00000.tar/k.png")["conversations"]
        asked, given = ([turn["value"] for turn in turns[at::2]] for at in (0, 1))
        assert asked[0].startswith("<image>\n")
        assert "".join(asked + given).count("<image>") == 1
        if asked[0] == f"<image>\n{questions.ONE_SENTENCE}":
            assert [names_in(answer) for answer in given] == [there]
            captions += 1
            continue
        assert [text.endswith(questions.SHORT_ANSWER) for text in asked] == [True] + [False] * (len(asked) - 1)
        assert len({*asked}) == len(asked) <= 7
        text = questions.text_record(described, "A dog.", "k")["conversations"]
        assert names_in(text[0]["value"].partition("\n")[0]) == there
        pairs = zip(
            asked + [turn["value"] for turn in text[::2]], given + [turn["value"] for turn in text[1::2]], strict=True
        )
        for question, answer in pairs:
            answers[answer] += 1
            words = question.removesuffix(questions.SHORT_ANSWER).rpartition("\n")[2]
            if match := re.fullmatch(r"(?:Is there )?(an? .+) or (an? .+?)(?: in the image)?\?", words):
                assert {each.partition(" ")[2] for each in match.groups()} & there == {answer}
            elif match := re.fullmatch(r"an? (.+)\?|Is there an? (.+) in the image\?", words):
                assert answer == ("yes" if (match[1] or match[2]) in there else "no"), (question, scene)
    assert 0.15 < captions / len(scenes) < 0.35
    assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


# ---------------------------------------------------------------- the directory


def test_two_runs_write_the_same_shards_and_llava_files(tmp_path, monkeypatch):
    monkeypatch.setattr(make_scenes, "SHARD_SIZE", 10)
    for name in ("one", "two"):
        config = {"num_scenes": 25, "image_size": 48}
        make_scenes.make_scenes(make_scenes.ScenesConfig(output=str(tmp_path / name), **config))
    assert directory_hash(tmp_path / "one") == directory_hash(tmp_path / "two")
    assert read_manifest(tmp_path / "one")["kind"] == "scenes"
    names = []
    for number in range(3):
        with tarfile.open(tmp_path / f"one/shard-{number:05d}.tar") as tar:
            for member in tar:
                names.append(f"shard-{number:05d}.tar/{member.name}")
                content = tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    assert {*json.loads(content)} == {"web_caption", "synthetic_caption", "captions", "scene"}
                else:
                    assert Image.open(io.BytesIO(content)).size == (48, 48)
    assert [name.partition("/")[2] for name in names] == [
        f"{i:09d}.{end}" for i in range(25) for end in ("png", "json")
    ]
    for name in ("align", "instruct"):
        records = json.loads((tmp_path / f"one/llava_{name}.json").read_text())
        assert [record["image"] for record in records] == names[::2]
    assert not any("image" in record for record in json.loads((tmp_path / "one/llava_text.json").read_text()))
    assert not (tmp_path / "one/hub").exists()


def test_pope_is_balanced_and_mme_has_two_rows_for_each_fact(written):
    def read(dataset: str) -> pd.DataFrame:
        return pd.read_parquet(written / f"hub/lmms-lab-encoder/{dataset}/data/test-00000-of-00001.parquet")

    rows = read("POPE")
    cells = itertools.product(("random", "popular", "adversarial"), ("yes", "no"))
    assert Counter(zip(rows.category, rows.answer, strict=True)) == Counter(dict.fromkeys(cells, 6))
    rows = read("MME")
    assert (rows.groupby(["category", "question_id"]).answer.apply(sorted).apply(tuple) == ("No", "Yes")).all()
    categories = ["OCR", "color", "commonsense_reasoning", "count", "existence", "position", "scene"]
    assert sorted(set(rows.category)) == categories
    counts = read_manifest(written)["benchmarks"]
    assert [counts[name] for name in ("pope", "mme", "gqa", "textvqa", "nocaps")] == [36, 60, 30, 10, 12]


@pytest.mark.filterwarnings("ignore")  # lmms-eval's imports warn
def test_lmms_eval_reads_and_scores_every_row(written, monkeypatch, tmp_path):
    """lmms-eval's own functions, on rows that the datasets library loads by the tasks' own names."""
    datasets = pytest.importorskip("datasets")
    from lmms_eval.tasks.gqa import utils as gqa
    from lmms_eval.tasks.mme import utils as mme
    from lmms_eval.tasks.nocaps import utils as nocaps
    from lmms_eval.tasks.pope import utils as pope
    from lmms_eval.tasks.textvqa import utils as textvqa

    monkeypatch.chdir(written / "hub")

    def load(name: str, split: str, config: str | None = None):
        return datasets.load_dataset(f"lmms-lab-encoder/{name}", config, split=split, cache_dir=str(tmp_path))

    rows = load("POPE", "test")
    assert pope.pope_doc_to_visual(rows[0])[0].size == (48, 48)
    results = [pope.pope_process_results(row, [row["answer"]])["pope_accuracy"] for row in rows]
    assert pope.pope_aggregate_accuracy(results) == 1
    scores = [mme.mme_process_results(row, [row["answer"]]) for row in load("MME", "test")]
    perception = [score["mme_perception_score"] for score in scores if "mme_perception_score" in score]
    assert mme.mme_aggregate_results(perception) == 6 * 200
    rows = load("GQA", "testdev", "testdev_balanced_instructions")
    images = {row["id"]: row["image"] for row in load("GQA", "testdev", "testdev_balanced_images")}
    assert {row["imageId"] for row in rows} == set(images)
    assert gqa.gqa_doc_to_visual({"image": images[rows[0]["imageId"]]})[0].size == (48, 48)
    rows = load("textvqa", "validation")
    assert all(textvqa.textvqa_process_results(row, [row["answers"][0]])["exact_match"] == 1 for row in rows)
    rows = load("NoCaps", "validation")
    assert len(nocaps.nocaps_process_result(rows[3], ["a dog"])["nocaps_CIDEr"]["answer"]) == 5


def test_prompts_are_those_of_lmms_eval():
    from importlib.util import find_spec

    tasks = Path(find_spec("lmms_eval").origin).parent / "tasks"
    for file in ("pope/pope.yaml", "mme/mme.yaml", "gqa/gqa.yaml", "textvqa/_default_template_textvqa_yaml"):
        assert f'post_prompt: "{questions.SHORT_ANSWER}"'.replace("\n", "\\n") in (tasks / file).read_text()
    assert f'prompt: "{questions.ONE_SENTENCE}"' in (tasks / "nocaps/_default_template_nocaps_yaml").read_text()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_scenes": 0}, "num_scenes: expected 1 to"),
        ({"num_object_classes": 7}, "num_object_classes: expected 8 to 466, got 7"),
        ({"sign_ratio": 1.1}, "sign_ratio: expected 0 to 1"),
        ({"benchmarks": {"pope": 5}}, "benchmarks.pope: expected 0 or at least 6, got 5"),
        ({"num_object_clases": 9}, "did you mean 'num_object_classes'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(fields, complaint, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"output": str(tmp_path / "out"), **fields}))
    with pytest.raises(UserError, match=complaint):
        make_scenes.make_scenes(
            make_scenes.parse_config(make_scenes.ScenesConfig, ["--config", str(tmp_path / "config.yaml")], prog="p")
        )
    assert not (tmp_path / "out").exists()
