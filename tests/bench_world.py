"""Small real inputs for the tests of the benchmarks: pictures, hub data of five tasks, a LLaVA, an encoder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "white": (250, 250, 250)}
HUB = "lmms-lab-encoder"


def picture(number: int, size: int = 64) -> Image.Image:
    """A square of one color at a place that depends on ``number``, on noise of its own."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(90, 130, (size, size, 3), dtype=np.uint8)
    left, top = generator.integers(0, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 2] = list(COLORS.values())[number % len(COLORS)]
    return Image.fromarray(pixels)


def color(number: int) -> str:
    return list(COLORS)[number % len(COLORS)]


def captions(number: int) -> list[str]:
    name = color(number)
    return [
        f"A {name} square number {number}.",
        f"There is a {name} thing, {number} of many.",
        f"{name} on grey, {number}",
    ]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    """A parquet file as the hub's are; columns of pictures, of lists of them, or of None beside them become images."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: values for name, values in columns.items() if not any(map(_shows, values))}
    table = datasets.Dataset.from_dict(plain)
    for name in columns.keys() - plain.keys():
        stored = [[_stored(each) for each in value] if isinstance(value, list) else _stored(value)
                  for value in columns[name]]  # fmt: skip
        several = any(isinstance(value, list) for value in columns[name])
        kind = datasets.List(datasets.Image()) if several else datasets.Image()
        table = table.add_column(name, stored).cast_column(name, kind)
    table.to_parquet(str(path))


def _shows(value: Any) -> bool:
    return isinstance(value, Image.Image | bytes) or (isinstance(value, list) and any(map(_shows, value)))


def _stored(value: Any) -> dict[str, Any] | None:
    content = png(value) if isinstance(value, Image.Image) else value
    return None if content is None else {"bytes": content, "path": "picture.png"}


def write_hub(root: Path, pictures: int = 6) -> Path:
    """POPE, MME, GQA, TextVQA and NoCaps about the same pictures, several questions each where the task has them."""
    numbers = range(pictures)
    pairs = [(number, answer) for number in numbers for answer in ("yes", "no")]
    images = [picture(number) for number, _ in pairs]
    other = [color(number if answer == "yes" else number + 1) for number, answer in pairs]
    asked = [f"Is there a {name} square in the picture?" for name in other]
    answers = [answer for _, answer in pairs]
    write_parquet(
        root / HUB / "POPE/data/test-00000-of-00001.parquet",
        {
            "question_id": [str(index) for index in range(len(pairs))],
            "question": asked,
            "answer": answers,
            "category": ["random" if index % 4 < 2 else "popular" for index in range(len(pairs))],
            "image": images,
        },
    )
    write_parquet(
        root / HUB / "MME/data/test-00000-of-00001.parquet",
        {
            "question_id": [f"{number}.png" for number, _ in pairs],
            "question": [f"{text} Please answer yes or no." for text in asked],
            "answer": [answer.capitalize() for answer in answers],
            "category": ["color" if number % 2 else "existence" for number, _ in pairs],
            "image": images,
        },
    )
    gqa = root / HUB / "GQA"
    write_parquet(
        gqa / "testdev_balanced_instructions/testdev-00000-of-00001.parquet",
        {
            "id": [str(index) for index in range(pictures)],
            "imageId": [str(number) for number in numbers],
            "question": ["What color is the square?"] * pictures,
            "answer": [color(number) for number in numbers],
        },
    )
    write_parquet(
        gqa / "testdev_balanced_images/testdev-00000-of-00001.parquet",
        {"id": [str(number) for number in numbers], "image": [picture(number) for number in numbers]},
    )
    from benchmarks.tasks.prepare_data import GQA_README

    (gqa / "README.md").write_text(GQA_README)
    write_parquet(
        root / HUB / "textvqa/data/validation-00000-of-00001.parquet",
        {
            "question_id": list(numbers),
            "question": ["what does the square say?"] * pictures,
            "answers": [[color(number)] * 7 + ["nothing"] * 3 for number in numbers],
            "image": [picture(number) for number in numbers],
        },
    )
    write_parquet(
        root / HUB / "NoCaps/data/validation-00000-of-00001.parquet",
        {
            "image_id": list(numbers),
            "annotations_captions": [captions(number) for number in numbers],
            "image": [picture(number) for number in numbers],
        },
    )
    write_mmmu(root, pictures)
    write_parquet(
        root / HUB / "ChartQA/data/test-00000-of-00001.parquet",
        {
            "type": ["human_test" if number % 2 else "augmented_test" for number in numbers],
            "question": ["What color is the square?"] * pictures,
            "answer": [color(number) for number in numbers],
            "image": [picture(number) for number in numbers],
        },
    )
    return root


def write_mmmu(root: Path, pictures: int) -> None:
    """MMMU's validation set: a question with options about each picture, and an open one."""
    numbers = [number for number in range(pictures) for _ in "mo"]
    kinds = ["multiple-choice", "open"] * pictures
    options = [str(list(COLORS)) if kind == "multiple-choice" else "[]" for kind in kinds]
    letters = ["ABCD"[number % len(COLORS)] for number in numbers]
    write_parquet(
        root / HUB / "MMMU/data/validation-00000-of-00001.parquet",
        {
            "id": [f"validation_{('Art', 'Math')[index % 2]}_{index}" for index in range(len(numbers))],
            "question": ["<image 1> What color is the square?"] * len(numbers),
            "options": options,
            "answer": [letter if kind != "open" else color(number)
                       for letter, kind, number in zip(letters, kinds, numbers, strict=True)],
            "question_type": kinds,
            "image_1": [picture(number) for number in numbers],
        },
    )  # fmt: skip


def write_shards(root: Path, pictures: int = 6, shards: int = 2) -> Path:
    """WebDataset shards of pictures with ``captions``."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"shard-{shard:05d}.tar", "w") as tar:
            for number in range(shard, pictures, shards):
                _add(tar, f"{number:09d}.png", png(picture(number)))
                _add(tar, f"{number:09d}.json", json.dumps({"captions": captions(number)}).encode())
    return root


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_llava(directory: Path, seed: int = 0) -> Path:
    """An untrained LLaVA made by transformers alone: CLIP tower, Llama, byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    from llava_bridge.conversation import resolve_chat_template

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([text for number in range(8) for text in [*captions(number), "yes", "no"]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )
    template = resolve_chat_template(None, "vicuna")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            image_seq_length=16,
            vision_feature_select_strategy="default",
            vision_feature_layer=-2,
        )
    )
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
