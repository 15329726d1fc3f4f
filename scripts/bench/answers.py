"""The speed of short answers to many questions about each image, compared with lmms-eval's ``llava_hf``.

    python scripts/bench/answers.py --threads 2
    python scripts/bench/answers.py --device cuda --dtype bfloat16 --llm 0.5b --tower 24 1024 336 --images 16
    python scripts/bench/answers.py --llava DIR --device cuda --dtype bfloat16                      (a real one)

The set has POPE's structure: photos with several yes-no questions each, in POPE's order (rounds over the photos, six
consecutive questions about one image). All sides are models of lmms-eval with the same requests and the same directory
in transformers' format: by default a CLIP tower with random weights and a small Llama, with --llm 0.5b a Qwen 2.5 with
random weights, on which the speed does not depend. Answers are compared one by one.
The sides are ``llava_hf`` (which supports one question at a time only), this suite's model ("ours") one question at a
time, in batches without shared images (a different image object for each question), and by default.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from bridge_mfu import LLMS
from loader import read_photos
from measure import begin, common_parser, record, speed_up, spread, table, take_turns
from PIL import Image

OBJECTS = ("dog", "person", "car", "tree", "ball", "child", "horse", "water", "hat")


def main() -> None:
    args = begin(arguments())
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(args.llava) if args.llava else small_llava(args, Path(folder) / "llava")
        print(comparison(directory, args))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--photos", type=Path, default="../shared/data/flickr8k/images", help="a tar or a folder")
    parser.add_argument("--llama", type=Path, default="../shared/models/stories15M", help="the small Llama")
    parser.add_argument("--llava", help="a LLaVA directory that transformers can read")
    parser.add_argument("--llm", choices=list(LLMS), help="an LLM of this shape instead, with the tokenizer of --llama")
    parser.add_argument("--tower", type=int, nargs=3, default=[12, 768, 224], help="layers, width, pixels")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--questions", type=int, default=18, help="about each image")
    parser.add_argument("--tokens", type=int, default=2, help="maximum of an answer: a yes and its end")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args()


def comparison(directory: Path, args: argparse.Namespace) -> str:
    from benchmarks.tasks.mllm.llava_input import load_for_evaluation
    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel

    with no_videos(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from lmms_eval.models.simple.llava_hf import LlavaHf

        theirs = LlavaHf(str(directory), device=args.device, device_map=args.device, dtype=args.dtype)
    loaded = load_for_evaluation(str(directory), args.device, args.dtype)
    images = photos(args)
    models = {
        "llava_hf": (theirs, requests(images, args)),
        "ours, one at a time": (LlavaBridgeModel(loaded=loaded, batch_size=1), requests(Distinct(images), args)),
        "ours, in batches": (LlavaBridgeModel(loaded=loaded, batch_size=args.batch), requests(Distinct(images), args)),
        "ours": (LlavaBridgeModel(loaded=loaded, batch_size=args.batch), requests(images, args)),
    }
    answers: dict[str, list[str]] = {}

    def side(name: str) -> None:
        model, instances = models[name]
        model.task_dict = {"pope": {"test": documents(args)}}
        if isinstance(model, LlavaBridgeModel):
            model.cache.known.clear()
        with contextlib.redirect_stderr(io.StringIO()):
            answers[name] = [text.strip() for text in model.generate_until(instances)]

    seconds = take_turns({name: functools.partial(side, name) for name in models}, args.rounds, args.clock)
    rows, count = [], args.images * args.questions
    for name in models:
        same = sum(one == other for one, other in zip(answers[name], answers["llava_hf"], strict=True))
        speed = spread([count / value for value in seconds[name]])
        faster = speed_up(seconds, name, "llava_hf")
        record(args, side=name, answers_per_second=speed, times_as_fast=faster, same=same, answers=count)
        rows.append([name, f"{speed:.1f}", f"{faster:.1f}", f"{same} of {count}"])
    head = ["side", "answers a second", "times as fast as llava_hf", "answers equal to its own"]
    return f"{len(set(answers['ours']))} different answers\n{table(head, rows)}"


@contextlib.contextmanager
def no_videos() -> Any:
    """Replace decord, which llava_hf imports for videos only."""
    if "decord" not in sys.modules:
        sys.modules["decord"] = types.ModuleType("decord")
        sys.modules["decord"].VideoReader = sys.modules["decord"].cpu = None  # type: ignore[attr-defined]
    yield


def photos(args: argparse.Namespace) -> list[Image.Image]:
    found = read_photos(args.photos, None)[: args.images]
    return [Image.open(io.BytesIO(photo)).convert("RGB").resize((640, 480)) for photo in found]


class Distinct(list[Image.Image]):
    """Images of which every access returns a copy with other first pixels, so that no two requests share an image."""

    accesses = 0

    def __getitem__(self, index: Any) -> Any:
        image = super().__getitem__(index).copy()
        Distinct.accesses += 1
        red, green, blue = image.getpixel((0, 0))
        image.putpixel((0, 0), (red, green, blue ^ 1 if Distinct.accesses % 2 else blue))
        image.putpixel((1, 0), (Distinct.accesses % 256, Distinct.accesses // 256 % 256, blue))
        return image


def documents(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The questions in POPE's order: rounds over the photos, six consecutive questions about each."""
    rounds = [range(start, min(start + 6, args.questions)) for start in range(0, args.questions, 6)]
    return [
        {"image": image, "object": OBJECTS[number % len(OBJECTS)], "number": number}
        for numbers in rounds
        for image in range(args.images)
        for number in numbers
    ]


def requests(images: list[Image.Image], args: argparse.Namespace) -> list[Any]:
    from lmms_eval.api.instance import Instance

    settings = {"max_new_tokens": args.tokens, "temperature": 0, "do_sample": False}

    def request(number: int, document: dict[str, Any]) -> Instance:
        name = document["object"] if document["number"] < len(OBJECTS) else f"large {document['object']}"
        text = f"Is there a {name} in the image?\nAnswer the question using a single word or phrase."
        return Instance(
            request_type="generate_until",
            arguments=(text, dict(settings), lambda doc: [images[doc["image"]]], number, "pope", "test"),
            idx=0,
            metadata={"task": "pope", "doc_id": number, "repeats": 1},
        )

    return [request(number, document) for number, document in enumerate(documents(args))]


def small_llava(args: argparse.Namespace, directory: Path) -> Path:
    """A LLaVA of transformers: a CLIP tower with random weights and a trained small Llama."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    from llava_bridge.model.build import LlavaParts, build_llava
    from llava_bridge.model.llava_files import convert_tower_to_transformers

    layers, width, size = args.tower
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=size,
        patch_size=16,
    )
    tower = directory.with_name("tower")
    CLIPVisionModel(config).save_pretrained(tower)
    CLIPImageProcessor(size={"height": size, "width": size}, crop_size=size).save_pretrained(tower)
    llm = random_llm(args, directory.with_name("llm")) if args.llm else args.llama
    model, processor = build_llava(LlavaParts(encoder=f"transformers:{tower}", llm=str(llm)))
    if not convert_tower_to_transformers(model):
        raise SystemExit("this LLaVA cannot be written in transformers' format")
    for part in (model, processor):
        part.save_pretrained(directory)
    return directory


def random_llm(args: argparse.Namespace, directory: Path) -> Path:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(args.llama, trust_remote_code=False)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2Config(**LLMS[args.llm] | {"vocab_size": len(tokenizer)} | ends)
    config.initializer_range = config.hidden_size**-0.5  # large enough for answers to depend on the image
    with torch.device(args.device):
        llm: Any = Qwen2ForCausalLM(config)
    llm.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    main()
