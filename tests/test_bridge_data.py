"""Sources, batches and the order of samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor

from clips.data.formats.conversations import is_held_out
from clips.data.formats.dataset_format import Turn
from clips.data.lazy_images import FileImage
from clips.errors import UserError
from clips.typed_data import from_plain
from llava_bridge.conversation import ConversationEncoder, resolve_chat_template
from llava_bridge.data import ConversationSourceConfig, read_samples, read_texts
from llava_bridge.data.collator import (
    ConversationCollator,
    ConversationDataset,
    PackedTextDataset,
    supervised_positions,
)
from llava_bridge.data.inspect_command import InspectConversationsConfig, run_inspect
from llava_bridge.data.sampler import LengthGroupedSampler, RandomOrder
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.trainer import order_of


def write(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_llava_json(bridge_talk: Path) -> None:
    samples = read_samples(ConversationSourceConfig(path=str(bridge_talk / "talk.json"), max_samples=3))
    assert [sample.images for sample in samples] == [[FileImage(bridge_talk, f"{n}.png")] for n in range(3)]
    assert samples[1].turns[:2] == [Turn("user", "<image>\nWhat color is it?"), Turn("assistant", "green")]


def test_a_single_picture_of_llava_json_stands_before_the_text(tmp_path: Path) -> None:
    """As LLaVA's training has it; what a turn says about several pictures is left as it is."""
    said = ["What?\n<image>", "<image>", "Look at <image> here.", "Now <image> and <image>?"]
    talk = [[{"from": "human", "value": value}, {"from": "gpt", "value": "a <image>"}] for value in said]
    rows = [{"image": ["a.png"] * value.count("<image>"), "conversations": talk[n]} for n, value in enumerate(said)]
    samples = read_samples(ConversationSourceConfig(path=write(tmp_path / "talk.json", rows)))
    expected = ["<image>\nWhat?", "<image>", "<image>\nLook at  here.", "Now <image> and <image>?"]
    assert [sample.turns[0].content for sample in samples] == expected
    assert {sample.turns[1].content for sample in samples} == {"a <image>"}


def test_karpathy_captions(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": "a dog ."}, {"raw": "the dog"}]}
        for split in ("train", "val")
    ]
    write(tmp_path / "dataset_x.json", {"images": rows})
    one = read_samples(ConversationSourceConfig(format="karpathy", path=str(tmp_path)))
    picture = FileImage(tmp_path / "images", "train.jpg")
    assert [(sample.images, sample.turns[1].content) for sample in one] == [([picture], "a dog .")]
    every = read_samples(
        ConversationSourceConfig(format="karpathy", path=str(tmp_path), split="val", captions_per_image=None)
    )
    assert [sample.turns[1].content for sample in every] == ["a dog .", "the dog"]
    with pytest.raises(UserError, match="did you mean 'train'"):
        read_samples(ConversationSourceConfig(format="karpathy", path=str(tmp_path), split="trian"))


def test_cocoqa_holds_back_whole_photos(tmp_path: Path) -> None:
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


def test_the_rule_for_holding_back_never_changes() -> None:
    held = [n for n in range(30) if is_held_out(f"COCO_train2014_{n:012d}.jpg")]
    assert held == [5, 8, 25, 27]


def test_bad_sources_are_refused_in_one_line(tmp_path: Path, bridge_talk: Path) -> None:
    def refuse(match: str, **fields: Any) -> None:
        with pytest.raises(UserError, match=match):
            read_samples(ConversationSourceConfig(**fields))

    refuse("no such file", path=str(tmp_path / "none.json"))
    refuse("did you mean 'llava'", format="lava", path=str(tmp_path))
    refuse("only the llm_pretrain stage", format="text", path=str(tmp_path))
    refuse("expected a JSON list", path=write(tmp_path / "a.json", {"a": 1}))
    refuse("sample 0: expected conversations", path=write(tmp_path / "b.json", [{"image": "x.png"}]))
    refuse("no samples", path=write(tmp_path / "c.json", []))
    refuse(
        "images: .*none: expected the directory",
        path=str(bridge_talk / "talk.json"),
        image_folder=str(tmp_path / "none"),
    )
    refuse("data.max_samples", path="x", max_samples=0)
    (tmp_path / "broken.json").write_text("[")
    refuse("not valid JSON", path=str(tmp_path / "broken.json"))
    with pytest.raises(UserError, match='line 2: expected an object with a "text"'):
        read_texts(
            ConversationSourceConfig(format="text", path=write(tmp_path / "t.jsonl", [{"text": "a"}, {"txt": "b"}]))
        )
    with pytest.raises(UserError, match="expected format 'text'"):
        read_texts(ConversationSourceConfig(path=str(bridge_talk / "talk.json")))


@pytest.fixture(scope="module")
def chat(bridge_llm: Path) -> ConversationEncoder:
    return ConversationEncoder(AutoTokenizer.from_pretrained(bridge_llm), resolve_chat_template(None, "vicuna"), 4)


def test_unusable_samples_are_replaced_and_named(bridge_talk: Path, tmp_path: Path, chat: ConversationEncoder) -> None:
    rows = json.loads((bridge_talk / "talk.json").read_text())[:4]
    rows[1]["image"] = "missing.png"
    rows[2]["image"] = None
    path = write(tmp_path / "talk.json", rows)
    data = ConversationDataset(
        read_samples(ConversationSourceConfig(path=path, image_folder=str(bridge_talk))), chat, 100
    )
    assert data[0]["skipped"] == []
    item = data[1]
    assert item["input_ids"] == data[3]["input_ids"]
    (_, first, why_first), (_, second, why_second) = item["skipped"]
    assert (first, second) == ("talk.json 1", "talk.json 2")
    assert "missing.png" in why_first
    assert "0 images but 1 <image>" in why_second
    with pytest.raises(UserError, match="none of 4 samples can be used"):
        ConversationDataset(data.samples, chat, 5)[0]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_a_fault_of_its_sample(
    answer: str,
    bridge_talk: Path,
    tmp_path: Path,
    chat: ConversationEncoder,
    bridge_llm: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else its end token alone would be learned, as the answer to what was asked."""
    rows = json.loads((bridge_talk / "talk.json").read_text())[:3]
    rows[0]["conversations"][3]["value"] = answer  # the second; the first one is not
    path = write(tmp_path / "talk.json", rows)
    data = ConversationDataset(
        read_samples(ConversationSourceConfig(path=path, image_folder=str(bridge_talk))), chat, 100
    )
    item = data[0]
    assert item["skipped"] == [(0, "talk.json 0", "an answer is empty")]
    assert item["input_ids"] == data[1]["input_ids"]
    run_inspect(
        InspectConversationsConfig(
            path=path, image_folder=str(bridge_talk), llm=str(bridge_llm), image_tokens=4, num_shown=0
        )
    )
    assert "invalid     1 × an answer is empty (talk.json 0)" in capsys.readouterr().out


def test_whatever_is_wrong_with_a_sample_it_is_skipped(bridge_talk: Path, tmp_path: Path, bridge_llm: Path) -> None:
    strict = "{% if messages|length > 3 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    tokenizer = AutoTokenizer.from_pretrained(bridge_llm)
    chat = ConversationEncoder(tokenizer, strict + resolve_chat_template(None, "vicuna"), 4)
    (tmp_path / "afile").write_text("no folder")
    shutil.copy(bridge_talk / "0.png", tmp_path)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [
        {"id": "long", "image": "0.png", "conversations": [*turns, {"from": "human", "value": "?"}, turns[1]]},
        {"id": "empty", "conversations": []},
        {"id": "lost", "image": "afile/x.png", "conversations": turns},
        {"id": "nul", "image": "\0.png", "conversations": turns},
        {"id": "good", "image": "0.png", "conversations": turns},
    ]
    data = ConversationDataset(
        read_samples(ConversationSourceConfig(path=write(tmp_path / "talk.json", rows))), chat, 100
    )
    skipped = {name: reason for _, name, reason in data[0]["skipped"]}
    assert [name.split()[1] for name in skipped] == ["long", "empty", "lost", "nul"]
    assert "roles must alternate" in skipped["talk.json long"]
    with pytest.raises(UserError, match=r"chat_template: .*always wrong"):
        ConversationEncoder(tokenizer, "{{ raise_exception('always wrong') }}", 4)


@pytest.mark.parametrize(
    ("source", "rows", "match"),
    [
        ("llava", [5], "sample 0: expected conversations"),
        ("llava", [{"image": 5, "conversations": []}], "sample 0: expected conversations .*image"),
        ("llava", [{"image": [5], "conversations": []}], "sample 0: .*expected text, got 5"),
        ("llava", [{"conversations": [{"from": "gpt", "value": None}]}], "sample 0: .*expected text, got null"),
        ("karpathy", {"images": 5}, "expected Karpathy's format"),
        ("karpathy", {"images": [{"split": "train"}]}, "image 0: expected the key 'filename'"),
        (
            "karpathy",
            {"images": [{"split": "train", "filename": "a.png", "sentences": [{"raw": None}]}]},
            r"a\.png: expected a list of captions, got \[None\]",
        ),
        ("cocoqa", [{"image": 5, "question": "what", "answer": "cat"}], "line 1: image: expected a string, got 5"),
    ],
)
def test_malformed_rows_are_refused_in_one_line(source: str, rows: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = write(tmp_path / ("rows.jsonl" if source == "cocoqa" else "rows.json"), rows)
    with pytest.raises(UserError, match=match):
        read_samples(ConversationSourceConfig(format=source, path=path))


def test_pictures_of_every_kind(tmp_path: Path, chat: ConversationEncoder) -> None:
    """1 × 1, very long, CMYK, animated, turned by EXIF, see-through, 16 bits: right, or skipped with a reason."""
    red, blue = (255, 0, 0), (0, 0, 255)
    Image.new("RGB", (1, 1), red).save(tmp_path / "dot.png")
    Image.new("RGB", (2_000, 10), red).save(tmp_path / "long.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    frames = [Image.new("RGB", (8, 8), color) for color in (red, blue)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    half = Image.new("RGB", (8, 4), red)
    half.paste(blue, (4, 0, 8, 4))  # blue on the right, which EXIF turns to the bottom
    exif = Image.Exif()
    exif[0x0112] = 6
    half.resize((80, 40), Image.Resampling.NEAREST).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "glass.png")
    Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "long.png").read_bytes()[:60])
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    names = ("dot.png", "long.png", "cmyk.jpg", "moves.gif", "turned.jpg", "glass.png")
    rows = [{"id": name, "image": name, "conversations": turns} for name in (*names, "deep.png", "torn.png")]
    data = ConversationDataset(
        read_samples(ConversationSourceConfig(path=write(tmp_path / "talk.json", rows))), chat, 100
    )
    items = [data[index] for index in range(8)]
    assert [len(item["skipped"]) for item in items] == [0] * 6 + [2, 1]
    (_, deep, why_deep), (_, torn, _) = items[6]["skipped"]
    assert (deep, torn) == ("talk.json deep.png", "talk.json torn.png")
    assert "not an 8-bit image" in why_deep
    processor = CLIPImageProcessor(
        size={"height": 16, "width": 16}, do_center_crop=False, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    )
    pixels = ConversationCollator(processor, 0)(items[:6])["pixel_values"]
    assert pixels.shape == (6, 3, 16, 16)
    shown = {name: picture.mean((1, 2)).tolist() for name, picture in zip(names, pixels, strict=True)}
    for name in ("dot.png", "long.png", "cmyk.jpg", "moves.gif"):
        assert shown[name] == pytest.approx([1, 0, 0], abs=0.02), name
    assert shown["glass.png"] == pytest.approx([1, 1, 1])
    top, bottom = pixels[4, :, :6].mean((1, 2)), pixels[4, :, 10:].mean((1, 2))
    assert top.tolist() == pytest.approx([1, 0, 0], abs=0.05)
    assert bottom.tolist() == pytest.approx([0, 0, 1], abs=0.05)


def test_a_system_turn_is_read(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "?"}, {"from": "gpt", "value": "no"}]
    (sample,) = read_samples(ConversationSourceConfig(path=write(tmp_path / "talk.json", [{"conversations": turns}])))
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant"]


class TwoPixels:
    def __call__(self, pictures: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.zeros(len(pictures), 3, 2, 2)}


def test_batches(bridge_talk: Path, chat: ConversationEncoder) -> None:
    data = ConversationDataset(read_samples(ConversationSourceConfig(path=str(bridge_talk / "talk.json"))), chat, 100)
    items = [data[0], data[2]]
    assert len(items[0]["input_ids"]) != len(items[1]["input_ids"])
    batch = ConversationCollator(TwoPixels(), pad=0)(items)
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        assert batch["input_ids"][row, :length].tolist() == item["input_ids"]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert (batch["labels"][row, length:] == -100).all()
    assert batch["pixel_values"].shape == (2, 3, 2, 2)


def test_needed_logits_by_hand() -> None:
    labels = torch.tensor([[-100, -100, 7, 8, -100], [-100, -100, -100, 9, 5]])
    needed = supervised_positions(labels)
    assert needed["logits_to_keep"].tolist() == [1, 2, 3]
    assert needed["shift_labels"].tolist() == [[7, 8, -100], [-100, 9, 5]]


def test_packed_text_loses_nothing_between_its_blocks(chat: ConversationEncoder) -> None:
    texts = ["red red", "green", "blue and yellow", "is it?"]
    data = PackedTextDataset(texts, chat.tokenizer, 4, seed=1)
    text = chat.tokenizer.decode(data.blocks.flatten().tolist())
    pieces = [piece.removesuffix("</s>") for piece in text.split("<s>")[1:]]
    assert sorted([*pieces[:-1], next(t for t in texts if t.startswith(pieces[-1]))]) == sorted(texts)
    assert data[0]["labels"] is data[0]["input_ids"] or torch.equal(data[0]["labels"], data[0]["input_ids"])
    assert len(PackedTextDataset(texts * 10, chat.tokenizer, 4, seed=1, enough=3)) == 3
    with pytest.raises(UserError, match="not one block of 1000"):
        PackedTextDataset(texts, chat.tokenizer, 1000, seed=0)


LLAVAS = {  # what get_modality_length_grouped_indices of LLaVA's llava_trainer.py gives after torch.manual_seed(5)
    (
        2,
        4,
    ): "30 18 37 5 19 23 41 1 35 14 25 10 38 6 11 15 4 0 8 36 12 32 24 28 17 9 39 7 21 34 43 3 22 31 26 45 29 2 42 "
    "33 13 16 20 27 40 44",
    (
        4,
        2,
    ): "13 33 28 40 3 38 24 18 22 29 42 31 44 25 10 27 26 7 19 45 17 43 41 9 39 20 37 32 12 34 6 5 35 21 15 14 4 11 "
    "2 23 8 1 36 30 16 0",
}


@pytest.mark.parametrize(("micro", "world", "texts"), [(2, 4, True), (4, 2, False)])
def test_the_order_is_llavas_index_for_index(micro: int, world: int, texts: bool) -> None:
    sizes = [(n % 4 > 0 or not texts, (7 * n) % 31 + 1) for n in range(46)]
    order = LengthGroupedSampler(sizes, batch_size=micro * world, total=46, seed=5, micro_batches=world)
    assert list(order) == [int(index) for index in LLAVAS[micro, world].split()]


def steps_of(order: Iterable[int], batch_size: int) -> list[list[int]]:
    indices = list(order)
    return [sorted(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]


def test_which_samples_make_a_step_does_not_depend_on_their_lengths_or_the_processes() -> None:
    shows = [n % 5 > 0 for n in range(207)]
    orders = [
        LengthGroupedSampler([(shown, length(n)) for n, shown in enumerate(shows)], 20, 440, 3, *parts)
        for length in (lambda n: 1, lambda n: n + 1, lambda n: (7 * n) % 31)
        for parts in ((), (2,), (4,), (20,))
    ]
    assert all(steps_of(order, 20) == steps_of(orders[0], 20) for order in orders)


def test_answers_of_few_tokens_weigh_in_the_mean_gradient_about_what_their_tokens_do() -> None:
    short, long = 3, 60
    learned = [short if n % 10 else long for n in range(4000)]  # 31 % of the tokens are those of short answers
    order = LengthGroupedSampler([(True, 300 + tokens) for tokens in learned], batch_size=40, total=4000, seed=0)
    weights = []
    for step in steps_of(order, 40):
        tokens = [learned[index] for index in step]
        weights.append(sum(count for count in tokens if count == short) / sum(tokens))
    assert 0.29 < sum(weights) / len(weights) < 0.37


@pytest.mark.parametrize("kind", ["random", "grouped"])
def test_epochs_are_whole_and_a_function_of_the_seed(kind: str) -> None:
    sizes = [(n % 3 > 0, n) for n in range(110)]

    def order(total: int, seed: int) -> list[int]:
        if kind == "random":
            return list(RandomOrder(len(sizes), total, seed))
        return list(LengthGroupedSampler(sizes, 20, total, seed, 4))

    found = order(330, 5)
    epochs = [found[start : start + 110] for start in range(0, 330, 110)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(110))] * 3
    assert epochs[0] != epochs[1]
    assert order(330, 5) == found != order(330, 6)
    assert order(47, 5) == found[:47]
    assert len(RandomOrder(110, 47, 5)) == len(LengthGroupedSampler(sizes, 20, 47, 5)) == 47
    few = list(LengthGroupedSampler(sizes[:3], 20, 47, 5))  # fewer than a step has
    assert sorted(few[:3]) == sorted(few[3:6]) == [0, 1, 2]


def test_a_step_has_pictures_or_none() -> None:
    sizes = [(n % 3 > 0, (7 * n) % 100) for n in range(335)]
    kinds = [{sizes[n][0] for n in step} for step in steps_of(LengthGroupedSampler(sizes, 10, 670, seed=5), 10)]
    assert [len(kind) for kind in kinds[:32]] == [1] * 32  # then the last of both kinds, and the next epoch's first
    assert kinds[:32].count({False}) == 11
    shown = [max(kind) for kind in kinds[:32]]
    assert shown != sorted(shown)  # both kinds alternate
    assert sum(len(kind) == 2 for kind in kinds) <= 6


def test_each_stage_has_llavas_order_by_default(chat: ConversationEncoder, bridge_talk: Path) -> None:
    source = [{"path": str(bridge_talk / "talk.json")}]
    given = {"output": "o", "encoder": "e", "llm": "l", "align": {"data": source}, "instruct": {"data": source}}
    config = from_plain(LlavaTrainConfig, given, what="config")
    assert (config.align.learning_rate, config.instruct.learning_rate) == (1e-3, 2e-5)  # each stage's own default
    data = ConversationDataset(read_samples(config.align.data[0]), chat, 200)
    assert isinstance(order_of(data, config.align, 3, 0, 4), RandomOrder)
    order = order_of(data, config.instruct, 3, 0, 16)
    assert isinstance(order, LengthGroupedSampler)
    assert (order.micro_batches, order.batch_size, len(order)) == (8, 128, 384)
