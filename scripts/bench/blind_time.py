"""The additional time of the runs without the image, `blind: [blank, shuffled]`, over the evaluation without them.

    python scripts/bench/blind_time.py --shared ../shared --threads 1 --clock cpu --rounds 3
    python scripts/bench/blind_time.py --shared ../shared --device cuda --llm DIR --tower 24 1024 336 --part-only \
        --benchmarks pope --items 3600 --questions 18                                        (sizes as in practice)

Photos with one question each (RealWorldQA's layout) and with several (POPE's), answered by a CLIP tower with random
weights and a small Llama through the whole harness: reading, answering, lmms-eval's scorer and the statistics. The
model is loaded beforehand, and no answer is cached.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import tempfile
from pathlib import Path

import torch
from answers import OBJECTS, photos, small_llava
from measure import common_parser, machine, record, spread, table, take_turns

from benchmarks.tasks.eval_model import EvalModel
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import BenchmarkConfig, BlindKind, RunConfig


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    print(machine(args.device))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        llava = small_llava(args, Path(folder) / "llava")
        for name in args.benchmarks:
            questions = args.questions if name == "pope" else 1
            args.images = args.items // questions
            write_data(Path(folder) / "hub", name, questions, args)
            rows += compare(name, llava, Path(folder), args)
    head = ["benchmark", "runs", "ratio of the items", "additional time"]
    print(table(head, rows))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--shared", default="../shared", help="a folder with data/flickr8k and models/stories15M")
    parser.add_argument("--llm", help="a directory; shared/models/stories15M if not given")
    parser.add_argument("--tower", type=int, nargs=3, default=[6, 384, 224], help="layers, width, pixels")
    parser.add_argument("--benchmarks", nargs="+", default=["realworldqa", "pope"], choices=["realworldqa", "pope"])
    parser.add_argument("--part-only", action="store_true", help="without the runs over all items")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--questions", type=int, default=10, help="about each image, in POPE's layout")
    parser.add_argument("--tokens", type=int, default=4, help="maximum of an answer")
    parser.add_argument("--batch", type=int, default=32)
    return parser.parse_args()


def write_data(root: Path, name: str, questions: int, args: argparse.Namespace) -> None:
    """The benchmark's parquet file: photos, each ``questions`` times in a row."""
    import datasets

    rows: list[dict[str, object]] = []
    for number, photo in enumerate(photos(args)):
        stream = io.BytesIO()
        photo.save(stream, "JPEG", quality=90)
        for question in range(questions):
            thing = OBJECTS[(number + question) % len(OBJECTS)]
            rows.append(
                {
                    "question_id": str(len(rows)),
                    "question": f"Is there a {thing} in the image?",
                    "answer": "yes" if question % 2 else "no",
                    "category": "random",
                    "image": {"bytes": stream.getvalue(), "path": None},
                }
            )
    file = root / get_benchmark(name).dataset / "data/test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(file))


def compare(name: str, llava: Path, folder: Path, args: argparse.Namespace) -> list[list[str]]:
    sides = {"none": BenchmarkConfig(name=name, data=str(folder / "hub"), max_new_tokens=args.tokens)}
    asked: list[tuple[tuple[BlindKind, ...], float]]
    asked = [(("blank", "shuffled"), 0.075), (("blank",), 1.0), (("shuffled",), 1.0)]
    for kinds, ratio in asked[: 1 if args.part_only else None]:
        sides[", ".join(kinds)] = dataclasses.replace(sides["none"], blind=kinds, blind_items=ratio)
    run = RunConfig(
        model_name="row",
        output=str(folder / "results"),
        llava=str(llava),
        benchmarks=list(sides.values())[:1],
        batch_size=args.batch,
        device=args.device,
        overwrite=True,
    )
    model = EvalModel(run)
    model.load("llava")
    entry = get_benchmark(name)
    entry.run(model, dataclasses.replace(sides["none"], limit=args.batch))
    runs = {side: functools.partial(entry.run, model, config) for side, config in sides.items()}
    seconds = take_turns(runs, args.rounds, args.clock)
    rows = []
    for side, config in list(sides.items())[1:]:
        more = spread([100 * (one / none - 1) for one, none in zip(seconds[side], seconds["none"], strict=True)])
        record(args, benchmark=name, runs=side, additional=more)
        rows.append([name, side, f"{config.blind_items:g}", f"{more:.1f} %"])
    return rows


if __name__ == "__main__":
    main()
