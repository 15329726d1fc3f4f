"""The miniature world of the benchmarks' tests: images, data of the Hub, a LLaVA, encoders that a test defines, and
results measured with them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_modules import load_script

COLORS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "white": (250, 250, 250)}
HUB = "lmms-lab-encoder"
LMMS_EVAL_WARNS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::SyntaxWarning"
)
"""lmms-eval and pycocoevalcap warn when they are imported."""


def draw_image(number: int, size: int = 64) -> Image.Image:
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
    """A parquet file as the hub's are; columns of images, of lists of images, or of images and None become images."""
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
    """Seven tasks about the same images, several questions each where the task has them."""
    numbers = range(pictures)
    images, colors = [draw_image(number) for number in numbers], [color(number) for number in numbers]
    pairs = [(number, answer) for number in numbers for answer in ("yes", "no")]
    asked = [f"Is there a {color(number + (answer == 'no'))} square in the picture?" for number, answer in pairs]
    answers = [answer for _, answer in pairs]
    what_color = {"question": ["What color is the square?"] * pictures, "answer": colors}
    names = [str(number) for number in numbers]

    def write(file: str, **columns: list[Any]) -> None:
        write_parquet(root / HUB / f"{file}-00000-of-00001.parquet", columns)

    write(
        "POPE/data/test",
        question_id=[str(index) for index in range(len(pairs))],
        question=asked,
        answer=answers,
        category=["random" if index % 4 < 2 else "popular" for index in range(len(pairs))],
        image=[draw_image(number) for number, _ in pairs],
    )
    write(
        "MME/data/test",
        question_id=[f"{number}.png" for number, _ in pairs],
        question=[f"{text} Please answer yes or no." for text in asked],
        answer=[answer.capitalize() for answer in answers],
        category=["color" if number % 2 else "existence" for number, _ in pairs],
        image=[draw_image(number) for number, _ in pairs],
    )
    write("GQA/testdev_balanced_instructions/testdev", id=names, imageId=names, **what_color)
    write("GQA/testdev_balanced_images/testdev", id=names, image=images)
    (root / HUB / "GQA/README.md").write_text(load_script("studies/prepare_data.py").GQA_README)
    write(
        "textvqa/data/validation",
        question_id=list(numbers),
        question=["what does the square say?"] * pictures,
        answers=[[name] * 7 + ["nothing"] * 3 for name in colors],
        image=images,
    )
    captioned = [captions(number) for number in numbers]
    write("NoCaps/data/validation", image_id=list(numbers), annotations_captions=captioned, image=images)
    write_mmmu(root, pictures)
    kinds = ["human_test" if number % 2 else "augmented_test" for number in numbers]
    write("ChartQA/data/test", type=kinds, image=images, **what_color)
    return root


def write_mmmu(root: Path, pictures: int) -> None:
    """MMMU's validation set: a question with options about each image, and an open one."""
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
            "image_1": [draw_image(number) for number in numbers],
        },
    )  # fmt: skip


def write_shards(root: Path, pictures: int = 6, shards: int = 2) -> Path:
    """WebDataset shards of images with ``captions``."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(shard, pictures, shards):
            members[f"{number:09d}.png"] = png(draw_image(number))
            members[f"{number:09d}.json"] = json.dumps({"captions": captions(number)}).encode()
        write_tar(root / f"shard-{shard:05d}.tar", members)
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_images(folder: Path, count: int, suffix: str = ".png") -> Path:
    """``0.png``, ``1.png``, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_image(number).save(folder / f"{number}{suffix}")
    return folder


def write_lines(file: Path, rows: list[Any]) -> Path:
    """JSON, a line for each row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def dual_encoder(model: Any, tokenizer: Any, preprocess: Any = None, **how: Any) -> Any:
    """A model of a test as an encoder; without ``preprocess`` it gets the bytes of images, (H, W, 3)."""
    import torch

    from benchmarks.tasks.encoders.dual_encoder import DualEncoder

    preprocess = preprocess or (lambda image: torch.from_numpy(np.array(image)))
    return DualEncoder(
        model=model, preprocess=preprocess, tokenizer=tokenizer, preprocessing=how, device="cpu", precision="float32"
    )


def use_encoder(monkeypatch: pytest.MonkeyPatch, folder: Path, encoder: Any) -> Path:
    """Make every encoder directory load as ``encoder``; the path of one."""
    from benchmarks.tasks.encoders import dual_encoder

    monkeypatch.setattr(dual_encoder, "load_dual_encoder", lambda *_: encoder)
    (folder / "encoder").mkdir(exist_ok=True)
    return folder / "encoder"


def measure(results: Path, *benchmarks: Any, row: str = "row", **settings: Any) -> Any:
    """Evaluate ``encoder=``, ``llava=`` or ``lmms=``; the result, or a list of several."""
    from benchmarks.results.results import read_result, result_path
    from benchmarks.tasks.run_benchmarks import RunConfig, run_benchmarks

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    run_benchmarks(RunConfig(model_name=row, output=str(results), benchmarks=list(benchmarks), **plain))
    found = [read_result(result_path(results, row, each.name)) for each in benchmarks]
    return found[0] if len(found) == 1 else found


def check_formulas(result: Any) -> Any:
    """Every metric follows from the items by its formula; the items."""
    from benchmarks.results.results import ITEM_COLUMNS, read_items
    from benchmarks.results.statistics import aggregate

    items = read_items(result)
    assert set(ITEM_COLUMNS) <= set(items.columns)
    assert items["item"].is_unique
    for name, metric in result.metrics.items():
        columns = {column: items[column].to_numpy() for column in metric.columns}
        assert aggregate(metric.aggregation, columns, metric.columns) == pytest.approx(metric.value), name
    return items


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
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([text for number in range(8) for text in [*captions(number), "yes", "no"]], trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    extra = {"image_token": "<image>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", extra_special_tokens=extra, **names)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    text = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, **size)
    features: dict[str, Any] = {"vision_feature_select_strategy": "default"}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=16,
                         vision_feature_layer=-2, **features)  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    template = resolve_chat_template(None, "vicuna")
    processor = LlavaProcessor(image_processor=images, tokenizer=tokenizer, patch_size=8, chat_template=template,
                               num_additional_image_tokens=1, **features)  # fmt: skip
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
