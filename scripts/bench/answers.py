"""How fast are short answers to many questions about each picture, beside lmms-eval's own ``llava_hf``?

    python scripts/bench/answers.py --shared ../shared --threads 2
    python scripts/bench/answers.py --shared ../shared --device cuda --dtype bfloat16 --images 64 --questions 18
    python scripts/bench/answers.py --llava DIR --device cuda --dtype bfloat16                      (a real one)

The set has POPE's shape: photos with several yes-no questions each, in POPE's order (rounds over the photos, six
questions about one picture in a row). Both sides are models of lmms-eval and get the same requests; the model is one
directory in transformers' layout: by default a CLIP tower of random weights and a small Llama. Answers are compared one
by one. The sides are ``llava_hf`` (one question at a time, all that it can do), ours one question at a time, ours in
batches that share nothing (another picture object for each question), and ours as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from measure import add_common, machine, speed_up, spread, table, take_turns
from PIL import Image

THINGS = ("dog", "person", "car", "tree", "ball", "child", "horse", "water", "hat")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    print(machine(args.device))
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(args.llava) if args.llava else small_llava(args, Path(folder) / "llava")
        print(compared(directory, args))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--shared", default="../shared", help="a folder with data/flickr8k and models/stories15M")
    parser.add_argument("--llava", help="a LLaVA directory that transformers can read by itself")
    parser.add_argument("--tower", type=int, nargs=3, default=[12, 768, 224], help="layers, width, pixels")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--questions", type=int, default=18, help="about each picture")
    parser.add_argument("--tokens", type=int, default=2, help="of an answer at most: a yes and its end")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args()


def compared(directory: Path, args: argparse.Namespace) -> str:
    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel, load_for_evaluation

    with no_videos(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from lmms_eval.models.simple.llava_hf import LlavaHf

        theirs = LlavaHf(str(directory), device=args.device, device_map=args.device, dtype=args.dtype)
    loaded = load_for_evaluation(str(directory), args.device, args.dtype)
    shown = photos(args)
    models = {
        "llava_hf": (theirs, requests(shown, args)),
        "ours, one at a time": (LlavaBridgeModel(loaded=loaded, batch_size=1), requests(unlike(shown), args)),
        "ours, in batches": (LlavaBridgeModel(loaded=loaded, batch_size=args.batch), requests(unlike(shown), args)),
        "ours": (LlavaBridgeModel(loaded=loaded, batch_size=args.batch), requests(shown, args)),
    }
    answers: dict[str, list[str]] = {}

    def side(name: str) -> None:
        model, asked = models[name]
        model.task_dict = {"pope": {"test": documents(args)}}
        if hasattr(model, "kept"):
            model.kept.known.clear()
        with contextlib.redirect_stderr(io.StringIO()):
            answers[name] = [text.strip() for text in model.generate_until(asked)]

    seconds = take_turns({name: (lambda name=name: side(name)) for name in models}, args.rounds, args.clock)
    rows = []
    count = args.images * args.questions
    for name in models:
        same = sum(one == other for one, other in zip(answers[name], answers["llava_hf"], strict=True))
        speed = spread([count / value for value in seconds[name]])
        rows.append([name, f"{speed:.1f}", f"{speed_up(seconds, name, 'llava_hf'):.1f}", f"{same} of {count}"])
    head = ["side", "answers a second", "times as fast as llava_hf", "answers equal to its own"]
    return f"{len(set(answers['ours']))} unlike answers\n{table(head, rows)}"


@contextlib.contextmanager
def no_videos() -> Any:
    """llava_hf imports decord for videos alone."""
    if "decord" not in sys.modules:
        sys.modules["decord"] = types.ModuleType("decord")
        sys.modules["decord"].VideoReader = sys.modules["decord"].cpu = None  # type: ignore[attr-defined]
    yield


def photos(args: argparse.Namespace) -> list[Image.Image]:
    from benchmarks.tasks.data.caption_sets import load_caption_set
    from clips.data.formats import DatasetSpec

    data = Path(args.shared) / "data/flickr8k/dataset_flickr8k.json"
    found = load_caption_set(DatasetSpec(path=str(data), split="val"), limit=args.images)
    return [found.open(index).resize((640, 480)) for index in range(len(found.images))]


def unlike(shown: list[Image.Image]) -> list[Image.Image]:
    """The same photos, of which every look gives one whose first pixel differs: nothing can be shared."""

    class Unlike(list):
        looks = 0

        def __getitem__(self, place: Any) -> Image.Image:
            picture = super().__getitem__(place).copy()
            Unlike.looks += 1
            red, green, blue = picture.getpixel((0, 0))
            picture.putpixel((0, 0), (red, green, blue ^ 1 if Unlike.looks % 2 else blue))
            picture.putpixel((1, 0), (Unlike.looks % 256, Unlike.looks // 256 % 256, blue))
            return picture

    return Unlike(shown)


def documents(args: argparse.Namespace) -> list[dict[str, Any]]:
    """In POPE's order: rounds over the photos, six questions about one in a row."""
    rounds = [range(start, min(start + 6, args.questions)) for start in range(0, args.questions, 6)]
    return [
        {"picture": picture, "thing": THINGS[number % len(THINGS)], "number": number}
        for numbers in rounds
        for picture in range(args.images)
        for number in numbers
    ]


def requests(shown: list[Image.Image], args: argparse.Namespace) -> list[Any]:
    from lmms_eval.api.instance import Instance

    settings = {"max_new_tokens": args.tokens, "temperature": 0, "do_sample": False}

    def asked(number: int, document: dict[str, Any]) -> Instance:
        picked = "" if document["number"] < len(THINGS) else "large "
        text = (
            f"Is there a {picked}{document['thing']} in the image?\nAnswer the question using a single word or phrase."
        )
        return Instance(
            request_type="generate_until",
            arguments=(text, dict(settings), lambda doc: [shown[doc["picture"]]], number, "pope", "test"),
            idx=0,
            metadata={"task": "pope", "doc_id": number, "repeats": 1},
        )

    return [asked(number, document) for number, document in enumerate(documents(args))]


def small_llava(args: argparse.Namespace, directory: Path) -> Path:
    """A stock LLaVA: CLIP's tower with random weights before a real small Llama."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    from llava_bridge.model.build import LlavaParts, build_llava, convert_tower_to_transformers

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
    llm = str(Path(args.shared) / "models/stories15M")
    model, processor = build_llava(LlavaParts(encoder=f"transformers:{tower}", llm=llm))
    if not convert_tower_to_transformers(model):
        raise SystemExit("this LLaVA cannot be written in transformers' own layout")
    for part in (model, processor):
        part.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    main()
