"""The built-in benchmarks: one entry each. Any other name denotes a task of lmms-eval."""

from __future__ import annotations

import csv
import dataclasses
import difflib
from pathlib import Path
from typing import Any

from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.run_config import BLIND_FIELDS, RequiredModel
from clips.errors import UserError


def lmms_benchmark(about: str, task: str, folder: str, dataset: str, *, own: str = "") -> Benchmark:
    """The benchmark of an lmms-eval task."""
    judge = ("judge_model", "judge_url", "judge_key_env")
    return Benchmark(
        benchmark_type="mllm",
        about=about,
        needs="llava",
        evaluate="benchmarks.tasks.mllm.evaluate_task:evaluate",
        data_hash="benchmarks.tasks.mllm.evaluate_task:data_hash",
        task=task,
        folder=folder,
        dataset=dataset,
        takes=("max_new_tokens", "num_beams", "exclude_metrics", *BLIND_FIELDS, *judge),
        own=own,
    )


def _listed_tasks() -> dict[str, Benchmark]:
    """The benchmarks of ``lmms_tasks.csv``.

    ``size`` is that of the files that the task reads, as stated on the Hub, ``items`` the number in the evaluated
    split, ``license`` that of the questions, as the sources state it (docs/protocols.md); empty if unknown.
    """
    found = {}
    with Path(__file__).with_name("lmms_tasks.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            entry = lmms_benchmark(row["about"], row["name"], row["folder"], row["dataset"])
            found[entry.task] = dataclasses.replace(
                entry,
                size=row["size"],
                items=int(row["items"]),
                license=row["license"],
                also=(row["also"],) if row["also"] else (),
                max_new_tokens=int(row["max_new_tokens"]) if row["max_new_tokens"] else None,
                judged=row["judged"] == "true",
                trivial_baseline_note=row["trivial_baseline_note"],
            )
    return found


_CAPTION_SETS = ("split", "image_root", "captions_per_image", "format", "subset", "image_column", "caption_columns")


def compositional_benchmarks(name: str, about: str, *, format: str = "", **more: Any) -> dict[str, Benchmark]:
    """The entries of a compositional benchmark: by similarity, and for a LLaVA by likelihood and as multiple choice."""
    note = "A model that ignores the image may prefer one type of caption, and score above or below chance."
    asked = ("prompt", *BLIND_FIELDS)
    variants: dict[str, tuple[str, RequiredModel, str, tuple[str, ...]]] = {
        name: ("caption_scores", "encoder", "by similarity", ()),
        f"{name}_likelihood": ("loglikelihood", "llava", "by likelihood", (*asked, "likelihood_score")),
        f"{name}_mcq": ("multiple_choice", "llava", "multiple choice, A or B", asked),
    }
    return {
        entry: Benchmark(
            benchmark_type="choice",
            about=f"{about}, {how}",
            needs=needs,
            evaluate=f"benchmarks.tasks.compositional.{module}:evaluate",
            data_hash="benchmarks.tasks.compositional.caption_scores:data_hash",
            format=format or name,
            takes=("image_root", *takes),
            trivial_baseline_note="" if name == "winoground" else note,
            **more,
        )
        for entry, (module, needs, how, takes) in variants.items()
    }


BENCHMARKS: dict[str, Benchmark] = {
    "retrieval": Benchmark(
        benchmark_type="retrieval",
        about="zero-shot retrieval between images and their captions, both ways (COCO and Flickr30K protocol)",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.retrieval:evaluate",
        data_hash="benchmarks.tasks.encoders.retrieval:data_hash",
        takes=(*_CAPTION_SETS, "language"),
    ),
    "long_retrieval": Benchmark(
        benchmark_type="retrieval",
        about="the same with long captions, full and truncated (DOCCI, DCI, Urban-1k, ShareGPT4V, IIW)",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.long_retrieval:evaluate",
        data_hash="benchmarks.tasks.encoders.retrieval:data_hash",
        takes=(*_CAPTION_SETS, "language", "word_limits"),
    ),
    "multilingual_retrieval": Benchmark(
        benchmark_type="retrieval",
        about="the same in several languages, and their mean (XM3600, Flickr30k-200, XTD10, XTD200)",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.multilingual:evaluate",
        data_hash="benchmarks.tasks.encoders.multilingual:data_hash",
        takes=(*_CAPTION_SETS, "languages"),
    ),
    "classification": Benchmark(
        benchmark_type="classification",
        about="zero-shot classification by prompts: ImageNet, its shifts, any dataset in CLIP_benchmark's format",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.classification:evaluate",
        data_hash="benchmarks.tasks.encoders.classification:data_hash",
        takes=("split", "templates"),
    ),
    "linear_probe": Benchmark(
        benchmark_type="classification",
        about="logistic regression on an image tower's features, trained on a train split",
        needs="tower",
        evaluate="benchmarks.tasks.encoders.linear_probe:evaluate",
        data_hash="benchmarks.tasks.encoders.linear_probe:data_hash",
        takes=("split", "train_split"),
    ),
    "recaption": Benchmark(
        benchmark_type="captions",
        about="captions of an encoder's captioner for an image and its web caption, against a synthetic caption",
        needs="tower",
        evaluate="benchmarks.tasks.encoders.recaption:evaluate",
        data_hash="benchmarks.tasks.encoders.recaption:data_hash",
        takes=("format", "image_root", "split", "subset", "web_caption", "synthetic_caption"),
        trivial_baseline_note="'CIDEr of another image's caption' is the score of captions that ignore their image.",
    ),
    **compositional_benchmarks(
        "choice", "a caption or one that differs in a detail: JSON lines of pairs", format="jsonl"
    ),
    **compositional_benchmarks(
        "sugarcrepe",
        "a caption or one with something added, replaced or swapped (SugarCrepe)",
        items=7511,
        license="MIT",
    ),
    **compositional_benchmarks(
        "aro_relation", "order of relations: 'A on B' or 'B on A' (ARO, VG-Relation)", items=23937, license="MIT"
    ),
    **compositional_benchmarks(  # its authors round the number of items
        "aro_attribution", "which object has which attribute (ARO, VG-Attribution)", items=28700, license="MIT"
    ),
    **compositional_benchmarks(
        "valse", "a caption or a foil: existence, number, relation, action, reference (VALSE)", license="as its sources"
    ),
    **compositional_benchmarks(
        "winoground",
        "two images and two captions of the same words (Winoground)",
        items=400,
        license="its own terms, for research",
    ),
    **_listed_tasks(),
}


def get_benchmark(name: str) -> Benchmark:
    """The built-in benchmark ``name``, or else an lmms-eval task by its name or a custom one's path.

    Raises:
        UserError: unknown name (the message lists close matches), or a group of tasks (it lists the members).
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    from benchmarks.tasks.mllm.offline_tasks import dataset_name, own_task, task_folders, task_groups

    tasks = task_folders()
    if name in tasks:
        entry = lmms_benchmark(f"lmms-eval's task {name}", name, tasks[name], dataset_name(name))
        return entry if name == "naturalbench" else _unlisted(entry)  # its metrics are known, as those of listed tasks
    if members := task_groups().get(name):
        raise UserError(f"benchmarks: '{name}' is a group of lmms-eval tasks; use its members: {', '.join(members)}")
    if own := own_task(name):
        task, path = own
        folder = str(path.parent.resolve())
        dataset = dataset_name(task, path)
        return _unlisted(lmms_benchmark(f"the task {task} of {path}", task, folder, dataset, own=str(path.resolve())))
    near = difflib.get_close_matches(name, {**BENCHMARKS, **tasks}, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
    raise UserError(f"benchmarks: unknown benchmark '{name}'{hint} (see `clips-bench list`)")


def _unlisted(entry: Benchmark) -> Benchmark:
    """Add the ``scale`` setting, because the metrics of an unlisted task have no known scale."""
    return dataclasses.replace(entry, takes=(*entry.takes, "scale"))
