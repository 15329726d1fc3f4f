"""The same conversations from every dataset format: messages, images, errors; memory."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pickle
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversation_files import (
    EXPECTED,
    FORMS,
    TALKS,
    as_content,
    as_values,
    color_of,
    hub_layout,
    json_lines,
    parquet_of_bytes,
    parquet_of_structs,
    png,
    saved_dataset,
    shards,
    write,
)
from generators import explore, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from published_answers import POPE_DATA, TEXTVQA_DATA
from transformers import AutoTokenizer

from clips.core.identity import Identity
from clips.data.formats.conversations import is_held_out
from clips.data.formats.dataset_format import Conversation, Turn
from clips.data.lazy_images import FileImage
from clips.errors import UserError
from llava_bridge.conversation import ConversationEncoder, resolve_chat_template
from llava_bridge.data import ConversationSourceConfig, read_samples
from llava_bridge.data.batches import ConversationDataset
from llava_bridge.data.sources import in_other_case, read_conversations, reject_faults, split_questions
from llava_bridge.training.inputs import describe_data, resolve_inputs
from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)
def test_every_form_gives_the_same_samples(make: Callable[[Path], ConversationSourceConfig], tmp_path: Path) -> None:
    samples = read_samples(make(tmp_path))
    assert [[(turn.role, turn.content) for turn in sample.turns] for sample in samples] == EXPECTED
    again: list[Conversation] = pickle.loads(pickle.dumps(samples))  # as processes that load data get them
    for some in (samples, again):
        assert [[color_of(image) for image in sample.images] for sample in some] == [talk[0] for talk in TALKS]
    assert len({sample.name for sample in samples}) == 4


@pytest.mark.parametrize("saved", [False, True])
def test_a_row_that_is_not_utf8_is_one_invalid_sample(saved: bool, tmp_path: Path) -> None:
    """Before, such a row of parquet was an error about the file, and of a saved dataset a traceback."""
    import datasets

    said, names = [b"A dog.", b"caf\xe9", b"A cat.", b"A cow."], [b"red.png"] * 3 + [b"\xe9.png"]
    turns = [
        pa.StructArray.from_arrays([pa.array(["user", "assistant"]), _unchecked([b"What?", text])], ["role", "content"])
        for text in said
    ]
    talks = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6, 8]), pa.concat_arrays(turns))
    table = pa.table({"messages": talks, "image": _unchecked(names)})
    path = tmp_path / "talk.parquet"
    if saved:
        path = tmp_path / "set"
        datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(str(path))
    else:
        pq.write_table(table, path)
    samples = read_samples(ConversationSourceConfig(format="conversations", path=str(path), image_root=str(tmp_path)))
    assert [bool(sample.fault) for sample in samples] == [False, True, False, True]
    assert [turn.content for sample in samples for turn in sample.turns if turn.role == "assistant"] == [
        "A dog.",
        "A cat.",
    ]
    assert "messages: expected UTF-8 text" in samples[1].fault
    assert "image: expected UTF-8 text" in samples[3].fault


def _unchecked(texts: list[bytes]) -> Any:
    return pa.array(texts, pa.binary()).view(pa.string())


@sizes
def test_a_row_has_the_same_images_in_every_file(examples: int, tmp_path: Path) -> None:
    """An empty path, or a null in a list, is no image; the reference is the list of JSON."""
    import datasets

    def check(data: st.DataObject) -> None:
        names, several = st.sampled_from(["", None, "a.png", "b.png"]), data.draw(st.booleans(), "lists")
        values = st.none() | st.lists(names, max_size=3) if several else names
        key, rows = "images" if several else "image", []
        for number, value in enumerate(data.draw(st.lists(values, min_size=1, max_size=4), "images of the rows")):
            count = len([name for name in (value if isinstance(value, list) else [value]) if name])
            turns = [("user", "<image>" * count + f"What {number}?"), ("assistant", "red")]
            rows.append({"conversations": as_values(turns), key: value})
        kind = pa.list_(pa.string()) if several else pa.string()
        table = pa.table(
            {"conversations": [row["conversations"] for row in rows], key: pa.array([row[key] for row in rows], kind)}
        )
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        (folder / "talk.json").write_text(json.dumps(rows))
        pq.write_table(table, folder / "talk.parquet")
        datasets.Dataset(table).save_to_disk(str(folder / "saved"))
        found = []
        for name in ("talk.json", "talk.parquet", "saved"):
            config = ConversationSourceConfig(format="conversations", path=str(folder / name), image_root=str(tmp_path))
            samples = read_conversations(dataclasses.replace(config, format="llava") if name[-4:] == "json" else config)
            found.append([([image.name for image in sample.images], bool(sample.fault)) for sample in samples])
        assert found[0] == found[1] == found[2]

    numbers = itertools.count()
    explore(check, examples // 10)


TABLES: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {  # a first row's turns, and two rows
    "one image a row": (
        ["<image>\nColor?", "red"],
        {"conversations": as_values([("user", "<image>\nColor?"), ("assistant", "red")]), "image": png("red")},
        {"conversations": as_values([("user", "1 + 1?"), ("assistant", "2")]), "image": None},
    ),
    "FineVision": (  # the columns that nanoVLM's data/datasets.py reads; ratings are not used
        ["<image>\nColor?", "red", "Sure?", "yes"],
        {
            "images": [{"bytes": png("red"), "path": None}],
            "texts": [{"user": "Color?", "assistant": "red"}, {"user": "Sure?", "assistant": "yes"}],
            "relevance_ratings": [5, None],
        },
        {"images": [], "texts": [{"user": "1 + 1?", "assistant": "2"}], "relevance_ratings": [1]},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_columns(name: str, tmp_path: Path) -> None:
    expected, *rows = TABLES[name]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "talk.parquet")
    first, second = read_samples(ConversationSourceConfig(format="conversations", path=str(tmp_path / "talk.parquet")))
    roles = ["user", "assistant"] * (len(expected) // 2)
    assert [tuple(turn[:2]) for turn in first.turns] == [*zip(roles, expected, strict=True)]
    assert [turn.content for turn in second.turns] == ["1 + 1?", "2"]
    assert [[color_of(image) for image in sample.images] for sample in (first, second)] == [["red"], []]


@pytest.mark.parametrize("form", [None, "numpy", "arrow"])
def test_a_dataset_is_read_in_any_format_in_which_it_was_saved(form: str | None, tmp_path: Path) -> None:
    import datasets

    rows = TABLES["FineVision"][1]
    saved = datasets.Dataset.from_list([rows]).cast_column("images", datasets.List(datasets.Image()))
    datasets.DatasetDict({"train": saved.with_format(form)}).save_to_disk(str(tmp_path / "set"))
    (sample,) = read_samples(ConversationSourceConfig(format="conversations", path=str(tmp_path / "set")))
    assert not sample.fault
    assert [color_of(image) for image in sample.images] == ["red"]


def questions(folder: Path) -> ConversationSourceConfig:
    """POPE in lmms-eval's layout."""
    (folder / "POPE" / "data").mkdir(parents=True)
    images = {"image": [{"bytes": png("red"), "path": None}] * len(POPE_DATA["question"])}
    pq.write_table(pa.table({**POPE_DATA, **images}), folder / "POPE" / "data" / "test-00000-of-00001.parquet")
    return ConversationSourceConfig(format="vqa", path=str(folder / "POPE"), split="test")


def test_rows_of_benchmarks_are_questions_with_short_answers(tmp_path: Path) -> None:
    """POPE's and TextVQA's columns in lmms-eval's data; each answer of VQAv2 is an object."""
    samples = read_samples(questions(tmp_path))
    question = "<image>\nIs there a cell phone in the image?\nAnswer the question using a single word or phrase."
    assert [(turn.role, turn.content) for turn in samples[1].turns] == [("user", question), ("assistant", "no")]
    assert [sample.turns[1].content for sample in samples] == POPE_DATA["answer"]
    assert {color_of(sample.images[0]) for sample in samples} == {"red"}

    found = [{name: TEXTVQA_DATA[name][number] for name in TEXTVQA_DATA} for number in range(3)]
    config = ConversationSourceConfig(format="vqa", path=write(tmp_path / "textvqa.jsonl", found))
    assert [sample.turns[1].content for sample in read_samples(config)] == ["22", "10 years", "bowmore"]
    columns = [{**row, "answers": {"answer": row["answers"], "answer_id": [1] * 10}} for row in found]
    config = ConversationSourceConfig(format="vqa", path=write(tmp_path / "columns.jsonl", columns))
    assert [sample.turns[1].content for sample in read_samples(config)] == ["22", "10 years", "bowmore"]
    objects = [{**row, "answers": [{"answer": answer, "answer_id": 1} for answer in row["answers"]]} for row in found]
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "vqa.parquet")
    config = ConversationSourceConfig(format="vqa", path=str(tmp_path / "vqa.parquet"))
    assert [sample.turns[1].content for sample in read_samples(config)] == ["22", "10 years", "bowmore"]


def test_benchmarks_ask_each_question_alone(tmp_path: Path) -> None:
    """With the system message and the images up to it; one image in the text stays where it is."""
    samples = [*map(split_questions, read_samples(json_lines(tmp_path)))]
    both, blue, (first, second), last = ([[turn.content for turn in one.turns] for one in found] for found in samples)
    assert both == [["First <image>\nthen <image>\nwhich?", "both"]]
    assert blue == [["Be brief.", "<image>\nColor?", "blue"]]
    assert (first, second) == (["What is 1 + 1?", "2"], ["Sure?", "yes"])
    assert last == [["<image>\n<image>\nNo marks.", "so they come first"]]
    marks = [Turn("user", "<image>\nA?"), Turn("assistant", "a"), Turn("user", "And <image>?"), Turn("assistant", "b")]
    images = [FileImage(tmp_path, f"{name}.png") for name in ("red", "blue")]
    one, two = split_questions(Conversation("two", images, marks))
    assert [[color_of(image) for image in each.images] for each in (one, two)] == [["red"], ["red", "blue"]]
    assert [turn.content for turn in two.turns] == ["<image>\nAnd <image>?", "b"]
    invalid = Conversation("one", images[:1], marks)
    assert [*split_questions(invalid)] == [invalid]


@given(
    st.integers(1, 6000),
    st.none() | st.floats(0, 1),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_too_many_faults_are_rejected_and_allowed_ones_are_not(
    count: int, share: float | None, ratio: float, dice: random.Random
) -> None:
    talk = Conversation("good", (), [Turn("user", "?"), Turn("assistant", "!")])
    faulty = set(dice.sample(range(count), int((ratio if share is None else share) * count)))
    samples = [Conversation("bad", (), talk.turns, "torn") if index in faulty else talk for index in range(count)]
    try:
        reject_faults(samples, "align.data", ratio)
        rejected = False
    except UserError:
        rejected = True
    exact = len(faulty) / count
    if count <= 1000 or exact <= ratio or exact > ratio + 0.16:  # eight standard deviations of 1,000 of them, at 0.3
        assert rejected == (exact > ratio)


def test_the_other_case_of_answers() -> None:
    def asked(answer: str) -> Conversation:
        return Conversation("a", (), [Turn("user", "Which?"), Turn("assistant", answer)])

    answers = ["yes", " Yes ", "red bus", "3", "(a)", "ß"]
    found = in_other_case([*map(asked, answers), Conversation("empty", (), [])])
    assert [one.turns[-1].content for one in found] == ["Yes", "yes", "Red bus", "SS"]


def test_a_split_is_chosen(tmp_path: Path) -> None:
    for make, where in ((saved_dataset, "set"), (hub_layout, "hub")):
        make(tmp_path)
        config = {"format": "conversations", "path": str(tmp_path / where)}
        assert len(read_samples(ConversationSourceConfig(split="test", **config))) == 1
        with pytest.raises(UserError, match="did you mean 'test'"):
            read_samples(ConversationSourceConfig(split="tset", **config))
    other = read_samples(ConversationSourceConfig(format="conversations", path=str(tmp_path / "other")))
    assert [[color_of(image) for image in sample.images] for sample in other] == [
        colors for colors, _ in reversed(TALKS)
    ]


def test_images_of_a_table_are_read_by_row_group(tmp_path: Path) -> None:
    """Reading what is said touches no image; opening one copies the row group that it is in, and no other."""
    noise = [Image.effect_noise((200, 200), 90).convert("RGB").tobytes() for _ in range(8)]
    found = [{"messages": as_content(TALKS[2][1]), "images": [{"bytes": one, "path": None}]} for one in noise]
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "talk.parquet", row_group_size=2)
    before = pa.total_allocated_bytes()
    samples = read_samples(ConversationSourceConfig(format="conversations", path=str(tmp_path / "talk.parquet")))
    assert len(samples) == 8
    assert pa.total_allocated_bytes() - before < len(noise[0])
    cache = tmp_path / "cache" / "clips" / "rows"
    assert not list(cache.glob("*.arrow"))
    with pytest.raises(UserError, match=r"talk.parquet row 5 images\[0\]: undecodable image"):
        samples[5].images[0].open()
    (copied,) = cache.glob("*.arrow")
    assert 2 * len(noise[0]) < copied.stat().st_size < 3 * len(noise[0])


@pytest.mark.parametrize(
    ("kind", "rows", "match"),
    [
        ("conversations", [{"text": "a"}], "row 0: expected one of messages, conversations, texts; found text"),
        ("conversations", [{"messages": 5}], "row 0: expected messages or conversations of from"),
        ("conversations", [{"messages": "USER: hello"}], "expected a list of messages, got the string 'USER: hello'"),
        (
            "conversations",
            [{"messages": [{"role": "tool", "content": "a"}]}],
            r"row 0: expected .*\(a message of the role 'tool'\)",
        ),
        ("conversations", [{"messages": [{"role": "user", "content": [{"type": "video"}]}]}], "a part of type 'video'"),
        ("conversations", [{"messages": [{"role": "user", "content": None}]}], "expected text, got null"),
        ("conversations", [{"texts": [{"user": "a", "assistant": None}]}], "texts of user and assistant.*got null"),
        ("conversations", [{"messages": [], "images": [5]}], "row 0: expected an object whose images are paths"),
        ("conversations", [["a"]], "line 1: expected a JSON object"),
        ("vqa", [{"answer": "a"}], "row 0: expected question; found answer"),
        ("vqa", [{"question": "a"}], "row 0: expected one of answer, answers; found question"),
        ("vqa", [{"question": "a", "answer": None}], "row 0: expected a question, and an answer or answers, which are"),
        ("vqa", [{"question": "a", "answers": []}], "row 0: expected a question, and an answer or answers, which are"),
        ("vqa", [{"question": 5, "answer": "a"}], "row 0: expected a question.*got 5"),
        (
            "vqa",
            [{"question": "a", "answers": {"text": ["b"]}}],
            "row 0: expected a question, and an answer or answers",
        ),
        ("llava", {"a": 1}, "expected a JSON list"),
        ("llava", [], "no samples"),
        ("llava", [5], "rows.json 0: expected conversations"),
        ("llava", [{"image": 5, "conversations": []}], "rows.json 0: expected conversations .*image"),
        ("llava", [{"image": [5], "conversations": []}], "rows.json 0: .*expected text, got 5"),
        ("llava", [{"conversations": [{"from": "gpt", "value": None}]}], "rows.json 0: .*expected text, got null"),
        (
            "llava",
            [{"messages": []}],
            "0: expected conversations, found messages; format conversations also reads mess",
        ),
        ("llava", [{"video": "a.mp4", "conversations": []}], "rows.json 0: video: expected images, got a video"),
        ("karpathy", {"images": 5}, "expected Karpathy's format"),
        ("karpathy", {"images": [{"split": "train"}]}, "image 0: expected the key 'filename'"),
        (
            "karpathy",
            {"images": [{"split": "train", "filename": "a.png", "sentences": [{"raw": 5}]}]},
            r"a\.png: expected text as a caption, got a number",
        ),
        ("cocoqa", [{"image": 5, "question": "what", "answer": "cat"}], "line 1: image: expected a string, got 5"),
    ],
)
def test_malformed_rows_are_rejected_in_one_line(kind: str, rows: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = write(tmp_path / ("rows.jsonl" if kind in {"cocoqa", "conversations"} else "rows.json"), rows)
    with pytest.raises(UserError, match=match) as caught:
        read_samples(ConversationSourceConfig(format=kind, path=path))
    assert "rows.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files_are_rejected_in_one_line(tmp_path: Path, bridge_talk: Path) -> None:
    def expect_error(match: str, path: str, read: Callable[..., Any] = read_samples, **fields: Any) -> None:
        with pytest.raises(UserError, match=match):
            read(ConversationSourceConfig(path=str(tmp_path / path), **{"format": "conversations", **fields}))

    (tmp_path / "talk.csv").write_text("a,b\n")
    expect_error(r"talk.csv: expected a file that ends in \.parquet, \.jsonl, \.json", "talk.csv")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    expect_error("torn.parquet: cannot be read as parquet", "torn.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    expect_error("other.parquet: expected one of messages, conversations, texts; found text", "other.parquet")
    (tmp_path / "empty").mkdir()
    expect_error("empty: expected a directory of datasets", "empty")
    expect_error("expected .tar shards in this directory, found none", "empty", format="webdataset")
    expect_error("talk-1.parquet: no such file", "talk-{1..2}.parquet")
    with tarfile.open(tmp_path / "lone.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("000.txt"), io.BytesIO(b""))
    expect_error("000: expected 000.json with the conversation, found txt", "lone.tar", format="webdataset")
    expect_error("no such file", "none.json", format="llava")
    write(tmp_path / "lines.jsonl", [{"conversations": []}] * 2)
    expect_error("expected LLaVA's JSON list; format conversations reads JSON lines", "lines.jsonl", format="llava")
    shutil.copy(tmp_path / "lines.jsonl", tmp_path / "lines.json")
    expect_error("Extra data.*; format conversations reads JSON lines from a file that", "lines.json", format="llava")
    (tmp_path / "mix.yaml").write_text("datasets:\n  - json_path: a.json\n    sampling_strategy: all\n")
    expect_error("state each json_path in it as a source of its own", "mix.yaml", format="llava")
    expect_error("did you mean 'llava'", "empty", format="lava")
    (tmp_path / "broken.json").write_text("[")
    expect_error("not valid JSON", "broken.json", format="llava")
    none = str(tmp_path / "none")
    expect_error("image_root: .*none: expected", str(bridge_talk / "talk.json"), format="llava", image_root=none)
    with pytest.raises(UserError, match="expected local files"):
        read_samples(ConversationSourceConfig(format="webdataset", path="s3://bucket/{00..11}.tar"))


def test_turns_of_llava_json_are_those_of_its_training(tmp_path: Path) -> None:
    """A single image precedes the text, several stay where they are; an answer before the first question is dropped, as
    of ShareGPT's conversations, which are cut in pieces; a system message stays."""
    said = ["What?\n<image>", "<image>", "Look at <image> here.", "Now <image> and <image>?"]
    talks = [[("human", value), ("gpt", "a <image>")] for value in said]
    talks += [[("system", "Be short."), ("gpt", "so it was"), ("human", "Was it?"), ("gpt", "It was.")]]
    rows = [
        {"image": ["a.png"] * talk[0][1].count("<image>"), "conversations": [{"from": a, "value": b} for a, b in talk]}
        for talk in talks
    ]
    samples = read_samples(ConversationSourceConfig(path=write(tmp_path / "talk.json", rows)))
    expected = ["<image>\nWhat?", "<image>", "<image>\nLook at  here.", "Now <image> and <image>?"]
    assert [[turn.content for turn in sample.turns] for sample in samples] == [
        *([first, "a <image>"] for first in expected),
        ["Be short.", "Was it?", "It was."],
    ]


def test_karpathy_captions(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": "a dog ."}, {"raw": "the dog"}]}
        for split in ("train", "val")
    ]
    write(tmp_path / "dataset_x.json", {"images": rows})
    fields: dict[str, Any] = {"format": "karpathy", "path": str(tmp_path)}
    one = read_samples(ConversationSourceConfig(**fields))
    image = FileImage(tmp_path / "images", "train.jpg")
    assert [(sample.images, sample.turns[1].content) for sample in one] == [([image], "a dog .")]
    every = read_samples(ConversationSourceConfig(**fields, split="val", captions_per_image=None))
    assert [sample.turns[1].content for sample in every] == ["a dog .", "the dog"]
    with pytest.raises(UserError, match="did you mean 'train'"):
        read_samples(ConversationSourceConfig(**fields, split="trian"))


def test_an_image_in_several_rows_has_the_captions_of_all(tmp_path: Path) -> None:
    """Before: each row was an image of its own, so that the default of one caption per image used all of them."""
    (tmp_path / "images").mkdir()
    lines = [f"{image}.jpg#{number}\ta dog {number} ." for number in range(3) for image in "ab"]
    (tmp_path / "results.token").write_text("\n".join(lines))
    fields: dict[str, Any] = {"format": "flickr", "path": str(tmp_path / "results.token")}
    for most, expected in ((1, ["a dog 0 ."]), (None, ["a dog 0 .", "a dog 1 .", "a dog 2 ."])):
        found = read_samples(ConversationSourceConfig(**fields, captions_per_image=most))
        said = [(sample.name, sample.turns[1].content) for sample in found]
        assert said == [(f"{image}.jpg", caption) for image in "ab" for caption in expected]


def test_cocoqa_holds_out_whole_photos(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [{"image": f"{n % 50}.jpg", "question": f"what {n}", "answer": "cat"} for n in range(100)]
    write(tmp_path / "questions.jsonl", rows)
    train, held = (
        read_samples(ConversationSourceConfig(format="cocoqa", path=str(tmp_path), split=split))
        for split in ("train", "held_out")
    )
    photos = {sample.name for sample in train}
    assert photos.isdisjoint(sample.name for sample in held)
    assert len(train) + len(held) == 50
    assert 3 <= len(held) <= 20
    assert all(is_held_out(sample.name) for sample in held)
    assert [turn.role for turn in train[0].turns] == ["user", "assistant"] * 2
    assert sum(turn.content.count("<image>") for turn in train[0].turns) == 1


def test_the_held_out_rule_never_changes() -> None:
    held = [n for n in range(30) if is_held_out(f"COCO_train2014_{n:012d}.jpg")]
    assert held == [5, 8, 25, 27]


def test_the_hash_of_a_source_covers_its_files(tmp_path: Path) -> None:
    """Its files' hash: another word in a table, a shard or a saved directory makes another source of it."""
    for make in (json_lines, parquet_of_structs, parquet_of_bytes, saved_dataset, hub_layout, questions, shards):
        folder = tmp_path / make.__name__
        folder.mkdir()
        config = make(folder)
        before = describe_data(config)
        assert before == describe_data(config)
        files = (file for end in ("jsonl", "parquet", "arrow", "tar") for file in sorted(folder.rglob(f"*.{end}")))
        changed = next(file for file in files if "other" not in file.parts)
        changed.write_bytes(
            changed.read_bytes().replace(b"gpt", b"GPT").replace(b"both", b"none").replace(b"cell", b"tell")
        )
        assert describe_data(config)["hash"] != before["hash"], make.__name__
    hashes, large = set(), tmp_path / "large.parquet"
    for begin, end in ((b"a", b"z"), (b"b", b"z"), (b"a", b"y")):  # of a large table its ends
        large.write_bytes(begin + bytes(3 << 20) + end)
        hashes.add(describe_data(ConversationSourceConfig(path=str(large)))["hash"])
    assert len(hashes) == 3


def test_texts_below_a_directory_count_and_directories_named_like_files_do_not(bridge_talk: Path, tmp_path: Path):
    folder = shutil.copytree(bridge_talk, tmp_path / "talk")
    config = ConversationSourceConfig(path=str(folder))
    before = describe_data(config)
    for name in ("x.parquet", "x.json", "x.jsonl"):
        (folder / name).mkdir()
    assert describe_data(config) == before
    (folder / "deeper").mkdir()
    (folder / "deeper" / "questions.txt").write_text("What is it?")
    described = describe_data(config)
    assert {name for name in described if described.get(name) != before.get(name)} == {"other_hash"}
    (folder / "deeper" / "questions.txt").write_text("What was it?")
    assert describe_data(config)["other_hash"] != described["other_hash"]


def test_reading_settings_keep_a_run_and_content_changes_it(
    bridge_talk: Path, bridge_encoder: Path, bridge_llm: Path, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes((bridge_talk / "talk.json").read_bytes())

    def known(**fields: Any) -> Identity:
        stage = StageConfig(data=[ConversationSourceConfig(path=str(path), **fields)])
        parts: Any = {"encoder": str(bridge_encoder), "llm": str(bridge_llm)}
        config = LlavaTrainConfig(output="x", stages=["instruct"], instruct=stage, **parts)
        return resolve_inputs(config).identity

    before = known()
    assert known(missing_images="error").difference(before.values) is None
    assert known(repeats=2.0).difference(before.values)
    path.write_bytes(path.read_bytes() + b"\n")
    assert str(known().difference(before.values)).startswith("inputs.instruct.data[0].hash is ")
    (tmp_path / "manifest.json").write_text("{}")  # of a directory with one, its images, too
    (tmp_path / "red.png").write_bytes(b"red")
    before = known()
    (tmp_path / "red.png").write_bytes(b"RED")
    assert str(known().difference(before.values)).startswith("inputs.instruct.data[0].directory_hash is ")


def odd_talk(who: Any, said: Any, **fields: Any) -> dict[str, Any]:
    return {**fields, "conversations": [{"from": "human", "value": "Hi"}, {"from": who, "value": said}]}


MARKED = [{"from": "human", "value": "<image>\nColor?"}, {"from": "gpt", "value": "red"}]
ODD = {
    "a message of the role 'chatgpt'": odd_talk("chatgpt", "Hello"),
    "a message of the role 'function_call'": odd_talk("function_call", "f()"),
    "role": odd_talk(None, "Hello"),
    "expected text, got null": odd_talk("gpt", None),
    "video: expected images, got a video": {"video": "a.mp4", "conversations": MARKED},
    "videos: expected images, got a video": odd_talk("gpt", "Hello", videos=["a.mp4"]),
    "a message contains <video>, but only images": {
        "conversations": [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A run."}]
    },
    "an answer contains <image>, which": {
        "image": "red.png",
        "conversations": [MARKED[0], {"from": "gpt", "value": "an <image>"}],
    },
}


@pytest.mark.parametrize("kind", ["llava", "conversations", "webdataset"])
def test_an_odd_row_is_an_invalid_sample_and_ends_nothing(kind: str, tmp_path: Path, bridge_llm: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    fine = [
        {"images": ["red.png"], "conversations": MARKED},
        odd_talk("gpt", "About <video> in HTML, inline.", image="", video=None),
    ]
    rows = [*fine, *ODD.values()]
    if kind == "webdataset":
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for number, row in enumerate(rows):
                parts = {"json": json.dumps(row).encode()} | ({"png": png("red")} if "red.png" in str(row) else {})
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"{number:03}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        path = str(tmp_path / "0.tar")
    else:
        path = write(tmp_path / ("rows.json" if kind == "llava" else "rows.jsonl"), rows)
    samples = read_samples(ConversationSourceConfig(format=kind, path=path))
    tokenizer = AutoTokenizer.from_pretrained(bridge_llm)
    data = ConversationDataset(samples, ConversationEncoder(tokenizer, resolve_chat_template(None, "turns"), 4), 100)
    found = [data.read(index) for index in range(len(samples))]
    assert len(found) == len(rows)
    first, second, *odd = found
    assert isinstance(first, dict)
    assert len(first["images"]) == 1
    assert first["input_ids"].count(data.chat.image_id) == 4
    assert isinstance(second, dict)
    assert not second["images"]
    for expected, reason in zip(ODD, odd, strict=True):
        assert isinstance(reason, tuple), expected
        assert expected in reason[2]


ANSWER = {"from": "gpt", "value": "red"}
ASKED = {"from": "human", "value": "What color is it?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": [ASKED, {**ANSWER, "loss": False}, ASKED, ANSWER]}, [False, True]),
        ({"conversations": [ASKED, {**ANSWER, "weight": 0}, ASKED, {**ANSWER, "weight": 1}]}, [False, True]),
        ({"conversations": [{**ASKED, "train": False}, {**ANSWER, "train": True}]}, [True]),
        ({"conversations": [ASKED, {**ANSWER, "loss": None}]}, [True]),
        ({"conversations": [{**ASKED, "loss": True}, ANSWER]}, "only answers are"),
        ({"conversations": [ASKED, {**ANSWER, "weight": 0.5}]}, "weight: expected true, false, 1 or 0, got 0.5"),
        ({"conversations": [ASKED, {**ANSWER, "loss": "no"}]}, 'loss: expected true, false, 1 or 0, got "no"'),
        ({"conversations": [ASKED, {**ANSWER, "loss": True, "weight": 0}]}, "loss and weight contradict each other"),
        ({"conversations": [ASKED, ANSWER], "loss": False}, "loss: the row is not to be trained"),
        ({"conversations": [ASKED, ANSWER], "weight": 0}, "weight: the row is not to be trained"),
        ({"conversations": [ASKED, ANSWER], "train": 0}, "train: the row is not to be trained"),
        ({"conversations": [ASKED, ANSWER], "loss": 1.25}, [True]),  # a number of another kind
        ({"conversations": [ASKED, ANSWER], "image": "a.png", "images": ["b.png"]}, "name different images"),
        ({"conversations": [ASKED, ANSWER], "image": "a.png", "images": ["a.png"]}, [True]),
    ],
)
@pytest.mark.parametrize("form", ["llava", "conversations", "jsonl", "parquet"])
def test_what_a_row_excludes_from_training(row: dict[str, Any], expected: Any, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"talk.{ {'llava': 'json', 'conversations': 'json'}.get(form, form) }"
    if form == "parquet":
        row = {key: value for key, value in row.items() if key != "images"}
        if expected == "name different images":
            return
        messages = row["conversations"]
        keys = sorted({key for message in messages for key in message})
        if any(isinstance(message.get("loss"), str) for message in messages):
            return
        row["conversations"] = [{key: message.get(key) for key in keys} for message in messages]
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n" if form == "jsonl" else json.dumps([row]))
    name = "llava" if form == "llava" else "conversations"
    config = ConversationSourceConfig(path=str(path), format=name)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):  # none can be used
            read_conversations(config)
        return
    (sample,) = read_conversations(config)
    assert [turn.trained for turn in sample.turns if turn.role == "assistant"] == expected


@pytest.mark.parametrize("form", ["llava", "conversations"])
def test_a_rows_system_message(form: str, tmp_path: Path) -> None:
    system = {"from": "system", "value": "Be brief."}
    rows = [
        {"id": 0, "conversations": [ASKED, ANSWER], "system": "Be brief."},
        {"id": 1, "conversations": [system, ASKED, ANSWER], "system": "Be brief."},
        {"id": 2, "conversations": [system, ASKED, ANSWER], "system": "Be long."},
        {"id": 3, "conversations": [ASKED, ANSWER], "system": None},
    ]
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    one, two, three, four = read_conversations(ConversationSourceConfig(path=str(tmp_path / "talk.json"), format=form))
    assert (
        one.turns == two.turns == [Turn("system", "Be brief."), Turn("user", ASKED["value"]), Turn("assistant", "red")]
    )
    assert "system: the conversation has another system message" in three.fault
    assert [turn.role for turn in four.turns] == ["user", "assistant"]


@pytest.mark.parametrize("form", ["llava", "conversations", "parquet"])
def test_keys_that_no_reader_knows_are_counted_and_named(form: str, tmp_path: Path) -> None:
    messages = [{**ASKED, "name": "Ann"}, {**ANSWER, "reasoning_content": "thought"}]
    rows = [{"id": number, "conversations": messages, "model": "m", "looss": False} for number in range(1100)]
    path = tmp_path / f"talk.{'parquet' if form == 'parquet' else 'json'}"
    if form == "parquet":
        keys = sorted({key for message in messages for key in message})
        messages[:] = [{key: message.get(key) for key in keys} for message in messages]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    for _ in range(2):  # also from the cache
        samples = read_conversations(
            ConversationSourceConfig(path=str(path), format="llava" if form == "llava" else "conversations")
        )
        counts = dict(re.findall(r"([\w.]+) \(([\d,]+)\)", samples.describe_unread()))
        assert counts == dict.fromkeys(["model", "looss", "messages.name", "messages.reasoning_content"], "1,100")
    path = tmp_path / "plain.json"
    path.write_text(json.dumps([{"id": 1, "image": "a.png", "conversations": [ASKED, ANSWER], "weight": 1}]))
    assert read_conversations(ConversationSourceConfig(path=str(path))).describe_unread() == ""


def test_an_image_by_its_absolute_path_within_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "root" / "a.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "b.png")
    inside, outside = (
        FileImage(tmp_path / "root", str(tmp_path / "root" / "a.png")),
        FileImage(tmp_path / "root", str(tmp_path / "b.png")),
    )
    assert inside.exists()
    assert inside.open().getpixel((0, 0)) == (255, 0, 0)
    assert not outside.exists()
    for wrong in (outside, FileImage(tmp_path / "root", str(tmp_path / "root" / ".." / "b.png"))):
        with pytest.raises(UserError, match="expected a path inside"):
            wrong.open()
