"""The built-in benchmarks: one entry each. Any other name denotes a task of lmms-eval."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.run_config import BLIND_FIELDS, RequiredModel
from clips.errors import UserError


def lmms_benchmark(about: str, task: str, folder: str, dataset: str, **more: Any) -> Benchmark:
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
        takes=("max_new_tokens", "exclude_metrics", *BLIND_FIELDS, *judge),
        **more,
    )


def _lmms_entry(
    name: str, about: str, dataset: str, size: str, items: int, license: str, *, folder: str = "", **more: Any
) -> dict[str, Benchmark]:
    dataset = dataset if "/" in dataset else f"lmms-lab-encoder/{dataset}"
    return {name: lmms_benchmark(about, name, folder or name, dataset, size=size, items=items, license=license, **more)}


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
    "pointing": Benchmark(
        benchmark_type="pointing",
        about="pointing game: does a phrase's similarity map point at its object (JSON lines with boxes, or scenes)",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.pointing:evaluate",
        data_hash="benchmarks.tasks.encoders.pointing:data_hash",
        takes=("image_root",),
        trivial_baseline_note="'all phrases at once' is the score of a map without the phrase.",
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
    # name, description, Hub dataset, size of the files that the task reads (as stated on the Hub), number of items of
    # the evaluated split, license of the questions as the sources state it (docs/protocols.md)
    **_lmms_entry("pope", "is an object in the image: yes or no", "POPE", "255 MB", 9000, "MIT"),
    **_lmms_entry("mme", "yes-no questions in pairs, fourteen abilities", "MME", "865 MB", 2374, "for research"),
    **_lmms_entry(
        "gqa",
        "one-word answers about objects, attributes, relations",
        "GQA",
        "66 MB",
        12578,
        "MIT (hub's card)",
        also=("testdev_balanced_images",),
    ),
    **_lmms_entry(
        "textvqa_val",
        "reading text in images",
        "textvqa",
        "920 MB",
        5000,
        "CC BY 4.0",
        folder="textvqa",
        max_new_tokens=32,
    ),
    **_lmms_entry(
        "nocaps_val", "captions against ten human ones", "NoCaps", "1.4 GB", 4500, "CC BY 2.0", folder="nocaps"
    ),
    **_lmms_entry(
        "mmmu_val",
        "college exam questions in thirty subjects, most with four options",
        "MMMU",
        "341 MB",
        900,
        "Apache-2.0",
        folder="mmmu",
        trivial_baseline_note="Answers that its scorer cannot read are guessed by it.",
    ),
    **_lmms_entry("chartqa", "questions about charts; numbers may be off by 5 %", "ChartQA", "73 MB", 2500, "GPL-3.0"),
    **_lmms_entry(
        "mmvet",
        "open questions that need several abilities, graded by a judge",
        "MMVet",
        "67 MB",
        218,
        "CC BY-NC 4.0",
        judged=True,
    ),
    **_lmms_entry(
        "llava_in_the_wild",
        "open questions about 24 images, answers compared with GPT-4's by a judge (LLaVA-Bench)",
        "llava-bench-in-the-wild",
        "",
        60,
        "Apache-2.0",
        folder="llava-in-the-wild",
        judged=True,
    ),
    **_lmms_entry(
        "llava_bench_coco",
        "open questions about 30 COCO images, answers compared with GPT-4's by a judge (LLaVA-Bench)",
        "llava-bench-coco",
        "",
        90,
        "Apache-2.0",
        folder="llava-bench-coco",
        judged=True,
    ),
    **_lmms_entry("ocrbench", "reading text of ten types, points of 1,000", "echo840/OCRBench", "", 1000, "MIT"),
    **_lmms_entry(
        "scienceqa_img",
        "school science questions with an image, two to five options",
        "ScienceQA",
        "",
        2017,
        "CC BY-NC-SA 4.0",
        folder="scienceqa",
    ),
    **_lmms_entry(
        "seedbench",
        "multiple choice about images and frames of videos (SEED-Bench)",
        "SEED-Bench",
        "",
        17990,
        "CC BY-NC 4.0",
        max_new_tokens=16,
    ),
    **_lmms_entry(
        "mmbench_en_dev",
        "multiple choice in twenty abilities, with the options in every order (a judge reads unclear answers)",
        "MMBench",
        "97 MB",
        4329,
        "CC BY 4.0",
        folder="mmbench",
        judged=True,
    ),
    **_lmms_entry(
        "mmbench_en_dev_static",
        "the same without a judge: unclear answers are read by patterns",
        "MMBench",
        "97 MB",
        4329,
        "CC BY 4.0",
        folder="mmbench",
    ),
    **{
        name: entry
        for task, about, items, size in (
            ("cv_bench", "multiple choice about counts, positions, depth and distances (CV-Bench)", 2638, "405 MB"),
            ("cv_bench_2d", "its questions in the image plane: count, position", 1438, "185 MB"),
            ("cv_bench_3d", "its questions in space: depth, distance", 1200, "220 MB"),
        )
        for name, entry in _lmms_entry(
            task, about, "nyu-visionx/CV-Bench", size, items, "Apache-2.0", folder="cv_bench"
        ).items()
    },
    **_lmms_entry("ai2d", "multiple choice about diagrams of school science", "ai2d", "140 MB", 3088, "CC BY-SA"),
    **_lmms_entry(
        "docvqa_val",
        "reading scanned documents",
        "DocVQA",
        "5.0 GB",
        5349,
        "of its challenge (registration)",
        folder="docvqa",
    ),
    **_lmms_entry(
        "infovqa_val",
        "reading infographics",
        "DocVQA",
        "3.7 GB",
        2801,
        "of its challenge (registration)",
        folder="infovqa",
    ),
    **_lmms_entry(
        "refcoco_bbox_rec_val",
        "box of the object that an expression names, as text",
        "RefCOCO",
        "1.1 GB",
        8811,
        "Apache-2.0",
        folder="refcoco",
        max_new_tokens=64,
    ),
    **_lmms_entry(
        "vqav2_val",
        "short answers to open questions about COCO images",
        "VQAv2",
        "",
        214354,
        "CC BY 4.0",
        folder="vqav2",
    ),
    **_lmms_entry(
        "mmstar",
        "multiple choice that cannot be answered without the image, six abilities",
        "Lin-Chen/MMStar",
        "42 MB",
        1500,
        "as its sources",
    ),
    **_lmms_entry(
        "realworldqa",
        "spatial questions about photographs, many from cars",
        "RealWorldQA",
        "678 MB",
        765,
        "CC BY-ND 4.0",
    ),
    **_lmms_entry(
        "hallusion_bench_image",
        "yes-no questions on images and their edited copies, answers read by a judge (HallusionBench)",
        "HallusionBench",
        "147 MB",
        951,
        "BSD-3-Clause",
        folder="hallusion_bench",
        judged=True,
    ),
}


def get_benchmark(name: str) -> Benchmark:
    """The built-in benchmark ``name``, or else an lmms-eval task by its name or by the path of a custom one.

    Raises:
        UserError: unknown name (the message lists close matches), or a group of tasks (it lists the members).
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    from benchmarks.tasks.mllm.offline_tasks import dataset_name, own_task, task_folders, task_groups

    tasks = task_folders()
    if name in tasks:
        return _unlisted(lmms_benchmark(f"lmms-eval's task {name}", name, tasks[name], dataset_name(name)))
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
