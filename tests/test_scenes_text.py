"""Captions and questions say what the ground truth says."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter

import pytest

from clips.errors import UserError
from clips.scenes.captions import make_captions
from clips.scenes.llava_data import make_align_record, make_instruct_record, make_text_record
from clips.scenes.phrases import describe_scene, group_relation, join_with_and, relation, with_article
from clips.scenes.questions import ONE_SENTENCE, SHORT_ANSWER, open_questions, sign_questions, yes_no_pairs
from clips.scenes.rng import DeterministicRng
from clips.scenes.synthetic_captions import MllmCaptionStyle
from clips.scenes.world import SceneGenerator

COUNT = 300


@pytest.fixture(scope="module")
def world() -> SceneGenerator:
    return SceneGenerator()


@pytest.fixture(scope="module")
def scenes(world):
    return [world.scene("test", index) for index in range(COUNT)]


def names_in(text: str, world: SceneGenerator) -> set[str]:
    """The kinds named in a text, longest names first so that "soccer ball" is not also a "ball"."""
    found, rest = set(), text.lower()
    for kind in sorted(world.object_classes, key=lambda kind: -len(kind.name)):
        pattern = rf"\b({re.escape(kind.plural.lower())}|{re.escape(kind.name.lower())})\b"
        if re.search(pattern, rest):
            found.add(kind.name)
            rest = re.sub(pattern, "_", rest)
    return found


def test_all_texts_are_pinned(world, scenes):
    """Captions of both writers, questions and conversations: what a study's data are made of."""
    digest = hashlib.sha256()
    for number, scene in enumerate(scenes[:150]):
        made = [dataclasses.astuple(make_captions(world, scene, style)) for style in (None, MllmCaptionStyle())]
        long, described = make_captions(world, scene).synthetic_caption, describe_scene(world, scene)
        asked = [ask(described, DeterministicRng(number)) for ask in (yes_no_pairs, open_questions)]
        made += [[dataclasses.astuple(one) for one in found] for found in (*asked, sign_questions(described))]
        made += [make_align_record(world, scene, long, "k", "k.png"), make_text_record(world, scene, long, "k", 7)]
        made.append(make_instruct_record(world, scene, "k", "k.png", 7))
        digest.update(json.dumps(made, sort_keys=True).encode())
    assert digest.hexdigest() == "4377a3d24b40bafb07428ad8481bf19b037d77bf402f46e814cb2878d1f84008"


def test_long_captions_begin_with_everything_and_web_captions_are_partial_and_noisy(world, scenes):
    about = Counter()
    for scene in scenes:
        made, there = make_captions(world, scene), {thing.kind for thing in scene.objects}
        sentences = re.findall(r"[^.]+\.", made.synthetic_caption)
        assert 3 <= len(sentences) <= 7
        assert names_in(sentences[0], world) == there
        named = names_in(made.web_caption, world)
        about["right" if named & there else "wrong" if named else "nothing"] += 1
        about["partial"] += bool(named & there) and named & there != there
    assert about["right"] > 0.75 * COUNT
    assert about["partial"] > 0.3 * COUNT
    assert about["wrong"] > 0
    assert about["nothing"] > 0.04 * COUNT


def test_five_human_captions_name_only_what_is_there(world, scenes):
    for scene in scenes:
        captions = make_captions(world, scene).captions
        assert len(captions) == 5
        for caption in captions:
            named = names_in(caption, world)
            assert named, caption
            assert named <= {thing.kind for thing in scene.objects}, caption


def test_relations_follow_from_the_boxes():
    left, right, below = (0, 100, 200, 200), (600, 120, 200, 200), (30, 700, 200, 200)
    assert relation(left, right) == "left"
    assert relation(right, left) == "right"
    assert relation(left, below) == "above"
    assert relation(below, left) == "below"
    assert relation(left, (300, 400, 200, 200)) is None
    assert relation(left, (100, 100, 200, 200)) is None


def _truths(described) -> set[str]:
    """Statements about relations and sides that hold, written independently of the question makers."""
    holds = set()
    for first, second in itertools.permutations(described.groups, 2):
        if group_relation(first, second):
            holds.add((first.kind.name, group_relation(first, second), second.kind.name))
    return holds


def test_pairs_are_true_and_false(world, scenes):
    """Every answer is recomputed from the ground truth by reading the question's words."""
    checked = Counter()
    for number, scene in enumerate(scenes):
        described = describe_scene(world, scene)
        for pair in yes_no_pairs(described, DeterministicRng(number)):
            for text, answer in ((pair.yes, True), (pair.no, False)):
                truth = _judge(text, described)
                if truth is not None:
                    assert truth is answer, (text, scene)
                    checked[pair.category] += 1
    assert set(checked) == {"existence", "count", "position", "color", "scene", "OCR"}
    assert min(checked.values()) > 30


def _judge(text: str, described) -> bool | None:
    scene, words = described.scene, text.removesuffix("?")
    if match := re.match(r"Is there an? (.+) in this image", words):
        name = match[1]
        return name in described.kinds if name in described.world.sprites.by_name else None
    if match := re.match(r"(?:Is there only|Are there) (\w+) objects? in", words):
        return len(scene.objects) == ["zero", "one", "two", "three", "four", "five"].index(match[1])
    if match := re.match(r"Are there (\w+) (.+) in this image", words):
        (group,) = [group for group in described.groups if group.kind.plural == match[2]]
        return group.count == {"two": 2, "three": 3}[match[1]]
    if match := re.match(r"Is the (.+) on the (left|right) side", words):
        (thing,) = [thing for thing in scene.objects if thing.kind == match[1]]
        return (thing.box[0] + thing.box[2] / 2 < 512) == (match[2] == "left")
    if match := re.match(r"Is the (.+?) (to the left of|to the right of|above|below) the (.+)", words):
        return (match[1], match[2].replace("to the ", "").replace(" of", ""), match[3]) in _truths(described)
    if match := re.match(r'Is the word on the sign "(\w+)"', words):
        return match[1] == scene.sign.word.lower()
    if match := re.match(r"Is the background of this image (.+)", words):
        return scene.background == f"{match[1]} background"
    if match := re.match(r"Does this image show (.+)", words):
        return match[1] == described.background.description
    if match := re.match(r"Is (?:the color of )?the (.+) (\w+)$", words):
        (thing,) = [thing for thing in scene.objects if thing.kind == match[1]]
        return thing.color == match[2]
    return None


def test_open_questions_have_one_word_answers_from_the_truth(world, scenes):
    families = Counter()
    for number, scene in enumerate(scenes):
        described = describe_scene(world, scene)
        for question in open_questions(described, DeterministicRng(number)):
            assert " " not in question.answer
            families[" ".join(question.text.split()[:2])] += 1
            if match := re.match(r"What color (?:is|are) the (.+)\?", question.text):
                kinds = {
                    group.kind.name for group in described.groups if match[1] in (group.kind.name, group.kind.plural)
                }
                assert {thing.color for thing in scene.objects if thing.kind in kinds} == {question.answer}
            if question.text.startswith("How many objects"):
                assert question.answer == ["", "one", "two", "three", "four", "five"][len(scene.objects)]
            if match := re.match(r"What is (to the left of|to the right of|above|below) the (.+)\?", question.text):
                where = match[1].replace("to the ", "").replace(" of", "")
                assert (question.answer, where, match[2]) in _truths(described)
        answers = {question.answer for question in sign_questions(described)}
        assert answers == ({scene.sign.word.lower()} if scene.sign else set())
    assert len(families) >= 5


def test_instructions_are_balanced_and_well_formed(world, scenes):
    answers, alone = Counter(), 0
    for scene in scenes:
        there = {thing.kind for thing in scene.objects}
        turns = make_instruct_record(world, scene, "k", "shard-00000.tar/k.png", 7)["conversations"]
        asked, given = turns[0::2], turns[1::2]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(asked)
        assert asked[0]["value"].startswith("<image>\n")
        assert sum(turn["value"].count("<image>") for turn in turns) == 1
        if asked[0]["value"] == f"<image>\n{ONE_SENTENCE}":
            assert [names_in(turn["value"], world) for turn in given] == [there]
            alone += 1
            continue
        assert [turn["value"].endswith(SHORT_ANSWER) for turn in asked] == [True] + [False] * (len(asked) - 1)
        assert len({turn["value"] for turn in asked}) == len(asked) <= 7
        for question, answer in zip(asked, given, strict=True):
            answers[answer["value"]] += 1
            if _check_choice(question, answer, scene):
                continue
            if match := re.match(r"(?:<image>\n)?Is there an? (.+) in the image\?", question["value"]):
                assert answer["value"] == ("yes" if match[1] in there else "no")
    assert 0.15 < alone / len(scenes) < 0.35
    assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


def _check_choice(question: dict[str, str], answer: dict[str, str], scene) -> bool:
    """Whether the question offers two things; then the one answered is there and the other is not."""
    asked = question["value"].removesuffix(SHORT_ANSWER).rpartition("\n")[2]
    match = re.fullmatch(r"(?:Is there )?(an? .+) or (an? .+?)(?: in the image)?\?", asked)
    if match:
        offered = {words.partition(" ")[2] for words in match.groups()}
        assert offered & {thing.kind for thing in scene.objects} == {answer["value"]}, (asked, scene)
    return bool(match)


def test_alignment_asks_which_thing_is_there_and_ends_with_the_summary(world, scenes):
    for scene in scenes[:50]:
        long = make_captions(world, scene).synthetic_caption
        record = make_align_record(world, scene, long, "000000000", "shard-00000.tar/000000000.png")
        assert record["image"] == "shard-00000.tar/000000000.png"
        turns = record["conversations"]
        assert turns[0]["value"].startswith("<image>\n")
        assert len(turns) == 8
        assert all(_check_choice(*pair, scene) for pair in zip(turns[:-2:2], turns[1:-2:2], strict=True))
        assert names_in(turns[-1]["value"], world) == {thing.kind for thing in scene.objects}


def test_text_describes_the_image_and_answers_from_the_description(world, scenes):
    for scene in scenes:
        long = make_captions(world, scene).synthetic_caption
        turns = make_text_record(world, scene, long, "000000000", 7)["conversations"]
        words, _, turns[0]["value"] = turns[0]["value"].partition("\n")
        kinds = {thing.kind for thing in scene.objects}
        assert names_in(words, world) == kinds
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            text, said = question["value"].removesuffix(SHORT_ANSWER), answer["value"]
            if _check_choice(question, answer, scene):
                continue
            if match := re.fullmatch(r"an? (.+)\?|Is there an? (.+) in the image\?", text):
                assert said == ("yes" if (match[1] or match[2]) in kinds else "no"), (text, scene)
            elif said.endswith("."):
                assert names_in(said, world) == kinds


def test_articles_and_lists():
    assert [with_article(word) for word in ("owl", "dog", "unicorn", "hourglass", "umbrella")] == [
        "an owl", "a dog", "a unicorn", "an hourglass", "an umbrella",
    ]  # fmt: skip
    assert join_with_and(["x"]) == "x"
    assert join_with_and(["x", "y", "z"]) == "x, y and z"


def test_captions_like_a_models_begin_with_the_summary_and_get_ever_less_reliable(world, scenes):
    """By place of the sentence: things newly named, and sentences that name things that are not there."""
    new, absent = Counter(), Counter()
    for scene in scenes:
        there = {thing.kind for thing in scene.objects}
        named: set[str] = set()
        sentences = re.findall(r"[^.]+\.", make_captions(world, scene, MllmCaptionStyle()).synthetic_caption)
        for place, sentence in enumerate(sentences):
            found = names_in(sentence, world)
            new[place] += len((found & there) - named)
            absent[place] += bool(found - there)
            named |= found
        honest = make_captions(world, scene, MllmCaptionStyle(error_ratio=0.0)).synthetic_caption
        assert names_in(honest, world) <= there
    assert new[0] > 4 * new[1] > 4 * new[3]
    assert 0 == absent[0] < 0.05 * COUNT < absent[1] < absent[3]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"num_details": 1}, "mllm_style.num_details"), ({"error_ratio": 0.6}, "mllm_style.error_ratio")],
)
def test_a_writer_out_of_range_is_rejected(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        MllmCaptionStyle(**fields)
