"""Samples as the LLM gets them: what is skipped, batches, and the order of samples."""

from __future__ import annotations

import json
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bridge_world
import generators
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from conversation_files import write
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import BatchSampler
from transformers import AutoTokenizer, CLIPImageProcessor

from clips.errors import UserError
from clips.typed_data import from_plain
from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, resolve_chat_template
from llava_bridge.data import ConversationSourceConfig, read_samples
from llava_bridge.data.batches import (
    ConversationCollator,
    ConversationDataset,
    LengthGroupedSampler,
    RandomOrder,
)
from llava_bridge.data.sources import Samples, join_samples, reject_missing, repeat_indices
from llava_bridge.training.train_config import LlavaTrainConfig
from llava_bridge.training.trainer import make_sampler

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]


@pytest.fixture(scope="module")
def chat(bridge_llm: Path) -> ConversationEncoder:
    return ConversationEncoder(AutoTokenizer.from_pretrained(bridge_llm), resolve_chat_template(None, "vicuna"), 4)


def dataset(path: str, chat: ConversationEncoder, length: int = 100, **fields: Any) -> ConversationDataset:
    return ConversationDataset(read_samples(ConversationSourceConfig(path=path, **fields)), chat, length)


def test_unusable_samples_are_replaced_and_named(bridge_talk: Path, tmp_path: Path, chat: ConversationEncoder) -> None:
    rows = json.loads((bridge_talk / "talk.json").read_text())[:6]
    rows[1]["image"] = "missing.png"
    rows[2]["image"] = None
    for row, empty in ((4, ""), (5, " \n")):  # else its end token alone would be learned
        rows[row]["conversations"][3]["value"] = empty  # the second answer; the first one is not
    data = dataset(write(tmp_path / "talk.json", rows), chat, image_root=str(bridge_talk))
    assert data[0]["invalid_samples"] == []
    item = data[1]
    assert item["input_ids"] == data[3]["input_ids"]
    (_, first, why_first), (_, second, why_second) = item["invalid_samples"]
    assert (first, second) == (f"talk.json 1 ({bridge_talk}/missing.png)", "talk.json 2")
    assert why_first == "no such image (set image_root to the directory of the images)"
    assert "0 images but 1 <image>" in why_second
    assert data[4]["invalid_samples"] == [(row, f"talk.json {row}", "an answer is empty") for row in (4, 5)]
    assert data[4]["input_ids"] == data[0]["input_ids"]
    with pytest.raises(UserError, match="none of 6 samples can be used"):
        ConversationDataset(data.samples, chat, 5)[0]


def test_an_invalid_sample_is_skipped(bridge_talk: Path, tmp_path: Path, bridge_llm: Path) -> None:
    strict = "{% if messages|length > 3 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    tokenizer = AutoTokenizer.from_pretrained(bridge_llm)
    chat = ConversationEncoder(tokenizer, strict + resolve_chat_template(None, "vicuna"), 4)
    (tmp_path / "afile").write_text("no folder")
    shutil.copy(bridge_talk / "0.png", tmp_path)
    rows = [
        {"id": "long", "image": "0.png", "conversations": [*TURNS, {"from": "human", "value": "?"}, TURNS[1]]},
        {"id": "empty", "conversations": []},
        {"id": "lost", "image": "afile/x.png", "conversations": TURNS},
        {"id": "nul", "image": "\0.png", "conversations": TURNS},
        {"id": "good", "image": "0.png", "conversations": TURNS},
    ]
    data = dataset(write(tmp_path / "talk.json", rows), chat)
    skipped = {name: reason for _, name, reason in data[0]["invalid_samples"]}
    assert [name.split()[1] for name in skipped] == ["long", "empty", "lost", "nul"]
    assert "roles must alternate" in skipped["talk.json long"]
    with pytest.raises(UserError, match=r"chat_template: .*always wrong"):
        ConversationEncoder(tokenizer, "{{ raise_exception('always wrong') }}", 4)


def test_images_of_every_kind(tmp_path: Path, chat: ConversationEncoder) -> None:
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
    names = ("dot.png", "long.png", "cmyk.jpg", "moves.gif", "turned.jpg", "glass.png")
    rows = [{"id": name, "image": name, "conversations": TURNS} for name in (*names, "deep.png", "torn.png")]
    data = dataset(write(tmp_path / "talk.json", rows), chat)
    items = [data[index] for index in range(8)]
    assert [len(item["invalid_samples"]) for item in items] == [0] * 6 + [2, 1]
    (_, deep, why_deep), (_, torn, _) = items[6]["invalid_samples"]
    assert (deep, torn) == (f"talk.json deep.png ({tmp_path}/deep.png)", f"talk.json torn.png ({tmp_path}/torn.png)")
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


class TwoPixels:
    def __call__(self, pictures: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.zeros(len(pictures), 3, 2, 2)}


def test_batches_by_hand(bridge_talk: Path, chat: ConversationEncoder) -> None:
    data = dataset(str(bridge_talk / "talk.json"), chat)
    items = [data[0], data[2]]
    assert len(items[0]["input_ids"]) != len(items[1]["input_ids"])
    batch = ConversationCollator(TwoPixels(), pad=0)(items)
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        assert batch["input_ids"][row, :length].tolist() == item["input_ids"]
        assert not batch["input_ids"][row, length:].any()
        assert (batch["labels"][row, length:] == -100).all()
    assert batch["pixel_values"].shape == (2, 3, 2, 2)


LLAVAS = {  # what get_modality_length_grouped_indices of LLaVA's llava_trainer.py gives after torch.manual_seed(5)
    (2, 4): (
        "30 18 37 5 19 23 41 1 35 14 25 10 38 6 11 15 4 0 8 36 12 32 24 28 17 9 39 7 21 34 43 3 22 31 26 45 29 2 42 "
        "33 13 16 20 27 40 44"
    ),
    (4, 2): (
        "13 33 28 40 3 38 24 18 22 29 42 31 44 25 10 27 26 7 19 45 17 43 41 9 39 20 37 32 12 34 6 5 35 21 15 14 4 11 "
        "2 23 8 1 36 30 16 0"
    ),
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


def test_short_answers_have_about_the_weight_of_their_tokens_in_the_gradient() -> None:
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


@generators.sizes
def test_a_resumed_order_is_the_rest_of_the_whole_one(examples: int) -> None:
    def check(data: st.DataObject) -> None:
        draw = data.draw
        rng, shown = random.Random(draw(st.integers(0, 10**6))), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        sizes = [(rng.random() < shown, rng.randint(1, 9)) for _ in range(draw(st.integers(1, 60)))]
        micro, world, accumulation = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
        batch_size, seed = micro * world * accumulation, draw(st.integers(0, 9))
        steps = draw(st.integers(1, 3 * len(sizes) // batch_size + 2))
        step = draw(st.integers(0, steps))
        total = steps * batch_size
        orders = {
            "random": lambda skipped: RandomOrder(len(sizes), total, seed, skipped),
            "grouped": lambda skipped: LengthGroupedSampler(
                sizes, batch_size, total, seed, batch_size // micro, skipped
            ),
        }
        make = orders[draw(st.sampled_from(sorted(orders)))]
        whole, resumed = make(0), make(step * batch_size)
        expected = list(whole)
        for skipped in range(0, total + 1, batch_size):
            assert list(make(skipped)) == [-1] * skipped + expected[skipped:]
        for rank in range(world):  # as accelerate's loader and HF's Trainer do it
            full, rest = (BatchSamplerShard(BatchSampler(one, micro, False), world, rank) for one in (whole, resumed))
            assert [*SkipBatchSampler(rest, step * accumulation)] == [*full][step * accumulation :]

    generators.explore(check, examples)


def test_a_resume_computes_only_the_steps_that_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped: list[list[int]] = []
    group = LengthGroupedSampler.group_by_length
    monkeypatch.setattr(
        LengthGroupedSampler, "group_by_length", lambda self, step: grouped.append(step) or group(self, step)
    )
    order = LengthGroupedSampler([(True, n) for n in range(100)], 10, 300, 5, skipped=250)
    assert list(order)[:250] == [-1] * 250
    assert len(grouped) == 5


def test_a_step_has_only_samples_with_images_or_only_without() -> None:
    sizes = [(n % 3 > 0, (7 * n) % 100) for n in range(335)]
    kinds = [{sizes[n][0] for n in step} for step in steps_of(LengthGroupedSampler(sizes, 10, 670, seed=5), 10)]
    assert [len(kind) for kind in kinds[:32]] == [1] * 32  # then the last of both kinds, and the next epoch's first
    assert kinds[:32].count({False}) == 11
    shown = [max(kind) for kind in kinds[:32]]
    assert shown != sorted(shown)  # both kinds alternate
    assert sum(len(kind) == 2 for kind in kinds) <= 6


def test_the_sampler_sorts_by_characters_and_image_tokens(tmp_path: Path, chat: ConversationEncoder) -> None:
    """Four characters to a token, of which an image has four here."""
    rows: list[Any] = [{"image": ["a.png"] * count, "conversations": TURNS} for count in (1, 3)]
    rows.insert(0, {"conversations": [{"from": "human", "value": "Hm?"}, TURNS[1]]})
    data = dataset(write(tmp_path / "talk.json", rows), chat)
    said = len("<image>\nWhat?") + len("red")
    assert data.sizes() == [(False, 6), (True, said + 16), (True, said + 48)]
    assert ConversationDataset([*data.samples], chat, 100).sizes() == data.sizes()


def test_each_stage_has_llavas_order_by_default(chat: ConversationEncoder, bridge_talk: Path) -> None:
    source = [{"path": str(bridge_talk / "talk.json")}]
    given = {"output": "o", "encoder": "e", "llm": "l", "align": {"data": source}, "instruct": {"data": source}}
    config = from_plain(LlavaTrainConfig, given, what="config")
    assert (config.align.learning_rate, config.instruct.learning_rate) == (1e-3, 2e-5)  # each stage's own default
    data = ConversationDataset(read_samples(config.align.data[0]), chat, 200)
    assert isinstance(make_sampler(data, config.align, 3, 0, 4), RandomOrder)
    order = make_sampler(data, config.instruct, 3, 0, 16)
    assert isinstance(order, LengthGroupedSampler)
    assert (order.micro_batches, order.batch_size, len(order)) == (8, 128, 384)


def test_weights_repeat_and_thin() -> None:
    assert repeat_indices(100, 1, seed=0).tolist() == [*range(100)]
    half = repeat_indices(100, 0.5, seed=0).tolist()
    assert (len(half), half) == (50, sorted({*half}))
    assert half == repeat_indices(100, 0.5, seed=0).tolist() != repeat_indices(100, 0.5, seed=1).tolist()
    counts = Counter(repeat_indices(100, 2.25, seed=3).tolist())
    assert (Counter(counts.values()), counts.keys()) == ({2: 75, 3: 25}, {*range(100)})


def test_samples_of_several_sources_are_joined(bridge_talk: Path) -> None:
    """In the order of the sources, each with its repeats; sizes and slices follow the order."""
    path, names = str(bridge_talk / "talk.json"), [f"talk.json {number}" for number in range(16)]
    half, none = read_samples(ConversationSourceConfig(path=path, repeats=0.5)), Samples([[]])
    twice = read_samples(ConversationSourceConfig(path=path, repeats=2))
    drawn = [sample.name for sample in half]
    joined = join_samples([half, none, join_samples([twice]), Samples([[twice[3]]])])
    assert [sample.name for sample in joined] == [*drawn, *names, *names, "talk.json 3"]
    assert joined[-1] == joined[-14] == twice[3]
    assert [sample.name for sample in joined[7:10]] == [drawn[-1], *names[:2]]
    expected = [(len(sample.images), sum(len(turn.content) for turn in sample.turns)) for sample in joined]
    assert [tuple(row) for row in joined.sizes()] == expected
    with pytest.raises(IndexError):
        joined[41]


def test_a_source_has_a_weight(bridge_talk: Path) -> None:
    path = str(bridge_talk / "talk.json")
    assert len(read_samples(ConversationSourceConfig(path=path, repeats=1.5))) == 24
    assert len(read_samples(ConversationSourceConfig(path=path, repeats=0.5))) == 8
    drawn = [
        [sample.name for sample in read_samples(ConversationSourceConfig(path=path, repeats=0.5), seed)]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(UserError, match=r"data.repeats: 0.01 of the 16 samples of .* is none"):
        read_samples(ConversationSourceConfig(path=path, repeats=0.01))


def test_missing_images_are_named_and_counted(bridge_talk: Path, tmp_path: Path) -> None:
    found = json.loads((bridge_talk / "talk.json").read_text())
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(bridge_talk / "0.png", "0.png")
    found[0]["image"] = "some.tar/0.png"
    found[3]["image"] = "gone.png"
    found[5]["image"] = ["some.tar/1.png", "../3.png"]
    for number in (1, 2, 4, *range(6, 16)):
        (tmp_path / f"{number}.png").write_bytes((bridge_talk / f"{number}.png").read_bytes())
    samples = read_samples(ConversationSourceConfig(path=write(tmp_path / "talk.json", found), repeats=2))
    with pytest.raises(UserError, match=r"3 of 17 images of talk are missing; the first: .*gone.png"):
        reject_missing(samples, "talk", print)
    reject_missing([samples[0], samples[1]], "talk", print)


def test_one_token_begins_each_turn() -> None:
    tokenizer = bridge_world.make_tokenizer()
    chat = ConversationEncoder(tokenizer, resolve_chat_template(None, "turns"), 0)
    encoded = chat.encode([{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "yes"}], 99)
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert (tokens[:2], tokens.count("<|assistant|>"), tokens[-1]) == (["<s>", "<|user|>"], 1, "</s>")
    assert tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX]).strip() == "yes</s>"
