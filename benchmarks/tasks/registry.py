"""The benchmarks that are known by name: one entry each. Any other name is taken for a task of lmms-eval."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.run_config import RequiredModel
from clips.errors import UserError


def lmms_benchmark(about: str, task: str, folder: str, dataset: str, **more: Any) -> Benchmark:
    """The entry of a task of lmms-eval's."""
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
        takes=("max_new_tokens", "exclude_metrics", *judge),
        **more,
    )


_CAPTION_SETS = ("split", "image_root", "captions_per_image", "format", "subset", "image_column", "caption_columns")


def compositional_benchmarks(name: str, format: str, about: str, **more: Any) -> dict[str, Benchmark]:
    """The entries of a compositional benchmark: by similarity, and of a LLaVA by likelihood and as multiple choice."""
    pair = (
        "A model that ignores the picture may prefer one kind of caption, and end above or below chance."
        if name != "winoground"
        else ""
    )
    ways: dict[str, tuple[str, RequiredModel, str, tuple[str, ...]]] = {
        name: ("similarity", "encoder", "by similarity", ()),
        f"{name}_likelihood": ("loglikelihood", "llava", "by likelihood", ("prompt", "likelihood_score")),
        f"{name}_mcq": ("multiple_choice", "llava", "multiple choice, A or B", ("prompt",)),
    }
    return {
        entry: Benchmark(
            benchmark_type="choice",
            about=f"{about}, {how}",
            needs=needs,
            evaluate=f"benchmarks.tasks.compositional.{module}:evaluate",
            data_hash="benchmarks.tasks.compositional.caption_scores:data_hash",
            format=format,
            takes=("image_root", *takes),
            trivial_baseline_note=pair,
            **more,
        )
        for entry, (module, needs, how, takes) in ways.items()
    }


BENCHMARKS: dict[str, Benchmark] = {
    "retrieval": Benchmark(
        benchmark_type="retrieval",
        about="zero-shot retrieval between pictures and their captions, both ways (COCO and Flickr30K protocol)",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.retrieval:evaluate",
        data_hash="benchmarks.tasks.encoders.retrieval:data_hash",
        takes=(*_CAPTION_SETS, "language"),
    ),
    "long_retrieval": Benchmark(
        benchmark_type="retrieval",
        about="the same with long captions, whole and cut to their first words (DOCCI, DCI, Urban-1k, ShareGPT4V, IIW)",
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
        about="zero-shot classification by prompts: ImageNet, its shifts, any set of CLIP_benchmark's layout",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.classification:evaluate",
        data_hash="benchmarks.tasks.encoders.classification:data_hash",
        takes=("split", "templates"),
    ),
    "linear_probe": Benchmark(
        benchmark_type="classification",
        about="logistic regression on an image tower's features, learned from a train split",
        needs="tower",
        evaluate="benchmarks.tasks.encoders.linear_probe:evaluate",
        data_hash="benchmarks.tasks.encoders.linear_probe:data_hash",
        takes=("split", "train_split"),
    ),
    "pointing": Benchmark(
        benchmark_type="pointing",
        about="does the map of similarity with a phrase point at what it names: JSON lines with boxes, or scenes",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.pointing:evaluate",
        data_hash="benchmarks.tasks.encoders.pointing:data_hash",
        takes=("image_root",),
        trivial_baseline_note="What a map finds without the phrase, 'all phrases at once' shows.",
    ),
    "recaption": Benchmark(
        benchmark_type="captions",
        about="an encoder's captioner: what it writes of a picture and its web caption, against a synthetic caption",
        needs="encoder",
        evaluate="benchmarks.tasks.encoders.recaption:evaluate",
        data_hash="benchmarks.tasks.encoders.recaption:data_hash",
        takes=("format", "image_root", "split", "subset", "web_caption", "synthetic_caption"),
        trivial_baseline_note=(
            "What a captioner gets that says the same of every picture, 'CIDEr of another picture's caption' shows."
        ),
    ),
    **compositional_benchmarks("choice", "jsonl", "a caption or one that differs in a detail: JSON lines of pairs"),
    **compositional_benchmarks(
        "sugarcrepe",
        "sugarcrepe",
        "a caption or one with something added, replaced or swapped (SugarCrepe)",
        items=7511,
        license="MIT",
    ),
    **compositional_benchmarks(
        "aro_relation",
        "aro_relation",
        "what is related to what: 'A on B' or 'B on A' (ARO, VG-Relation)",
        items=23937,
        license="MIT",
    ),
    **compositional_benchmarks(
        "aro_attribution",
        "aro_attribution",
        "which thing has which attribute (ARO, VG-Attribution)",
        items=28700,  # its authors print it rounded
        license="MIT",
    ),
    **compositional_benchmarks(
        "valse",
        "valse",
        "a caption or a foil: existence, number, relation, action, reference (VALSE)",
        license="as its sources",
    ),
    **compositional_benchmarks(
        "winoground",
        "winoground",
        "two pictures and two captions of the same words (Winoground)",
        items=400,
        license="its own terms, for research",
    ),
    # Numbers of items are those of the split that the task takes, sizes those of the files that it reads, where the
    # hub's pages show them; licenses are what the sources state, and cover the questions: most pictures are other
    # people's (docs/protocols.md).
    "pope": lmms_benchmark(
        "is an object in the picture: yes or no",
        "pope",
        "pope",
        "lmms-lab-encoder/POPE",
        size="255 MB",
        items=9000,
        license="MIT",
    ),
    "mme": lmms_benchmark(
        "yes-no questions in pairs, fourteen abilities",
        "mme",
        "mme",
        "lmms-lab-encoder/MME",
        size="865 MB",
        items=2374,
        license="for research",
    ),
    "gqa": lmms_benchmark(
        "one-word answers about objects, attributes, relations",
        "gqa",
        "gqa",
        "lmms-lab-encoder/GQA",
        also=("testdev_balanced_images",),
        size="66 MB",
        items=12578,
        license="MIT (hub's card)",
    ),
    "textvqa_val": lmms_benchmark(
        "reading text in pictures",
        "textvqa_val",
        "textvqa",
        "lmms-lab-encoder/textvqa",
        max_new_tokens=32,
        size="920 MB",
        items=5000,
        license="CC BY 4.0",
    ),
    "nocaps_val": lmms_benchmark(
        "captions against ten human ones",
        "nocaps_val",
        "nocaps",
        "lmms-lab-encoder/NoCaps",
        size="1.4 GB",
        items=4500,
        license="CC BY 2.0",
    ),
    "mmmu_val": lmms_benchmark(
        "college exam questions in thirty subjects, most with four options",
        "mmmu_val",
        "mmmu",
        "lmms-lab-encoder/MMMU",
        trivial_baseline_note="Answers that its scorer cannot read are guessed by it.",
        size="341 MB",
        items=900,
        license="Apache-2.0",
    ),
    "chartqa": lmms_benchmark(
        "questions about charts; numbers may be off by 5 %",
        "chartqa",
        "chartqa",
        "lmms-lab-encoder/ChartQA",
        size="73 MB",
        items=2500,
        license="GPL-3.0",
    ),
    "mmvet": lmms_benchmark(
        "open questions that need several abilities, marked by a judge",
        "mmvet",
        "mmvet",
        "lmms-lab-encoder/MMVet",
        judged=True,
        size="67 MB",
        items=218,
        license="CC BY-NC 4.0",
    ),
    "llava_in_the_wild": lmms_benchmark(
        "open questions about 24 pictures, answers compared with GPT-4's by a judge (LLaVA-Bench)",
        "llava_in_the_wild",
        "llava-in-the-wild",
        "lmms-lab-encoder/llava-bench-in-the-wild",
        judged=True,
        items=60,
        license="Apache-2.0",
    ),
    "llava_bench_coco": lmms_benchmark(
        "open questions about 30 COCO pictures, answers compared with GPT-4's by a judge (LLaVA-Bench)",
        "llava_bench_coco",
        "llava-bench-coco",
        "lmms-lab-encoder/llava-bench-coco",
        judged=True,
        items=90,
        license="Apache-2.0",
    ),
    "ocrbench": lmms_benchmark(
        "reading text of ten kinds, points of 1,000",
        "ocrbench",
        "ocrbench",
        "echo840/OCRBench",
        items=1000,
        license="MIT",
    ),
    "scienceqa_img": lmms_benchmark(
        "school science questions with a picture, two to five options",
        "scienceqa_img",
        "scienceqa",
        "lmms-lab-encoder/ScienceQA",
        items=2017,
        license="CC BY-NC-SA 4.0",
    ),
    "seedbench": lmms_benchmark(
        "multiple choice about pictures and frames of videos (SEED-Bench)",
        "seedbench",
        "seedbench",
        "lmms-lab-encoder/SEED-Bench",
        max_new_tokens=16,
        items=17990,
        license="CC BY-NC 4.0",
    ),
    "mmbench_en_dev": lmms_benchmark(
        "multiple choice in twenty abilities, asked with the options in every order (a judge reads unclear answers)",
        "mmbench_en_dev",
        "mmbench",
        "lmms-lab-encoder/MMBench",
        judged=True,
        size="97 MB",
        items=4329,
        license="CC BY 4.0",
    ),
    "ai2d": lmms_benchmark(
        "multiple choice about diagrams of school science",
        "ai2d",
        "ai2d",
        "lmms-lab-encoder/ai2d",
        size="140 MB",
        items=3088,
        license="CC BY-SA",
    ),
    "docvqa_val": lmms_benchmark(
        "reading scanned documents",
        "docvqa_val",
        "docvqa",
        "lmms-lab-encoder/DocVQA",
        size="5.0 GB",
        items=5349,
        license="of its challenge (registration)",
    ),
    "infovqa_val": lmms_benchmark(
        "reading infographics",
        "infovqa_val",
        "infovqa",
        "lmms-lab-encoder/DocVQA",
        size="3.7 GB",
        items=2801,
        license="of its challenge (registration)",
    ),
    "refcoco_bbox_rec_val": lmms_benchmark(
        "where in the picture is what the expression says: a box as text",
        "refcoco_bbox_rec_val",
        "refcoco",
        "lmms-lab-encoder/RefCOCO",
        max_new_tokens=64,
        size="1.1 GB",
        items=8811,
        license="Apache-2.0",
    ),
    "vqav2_val": lmms_benchmark(
        "short answers to open questions about COCO pictures",
        "vqav2_val",
        "vqav2",
        "lmms-lab-encoder/VQAv2",
        items=214354,
        license="CC BY 4.0",
    ),
    "mmstar": lmms_benchmark(
        "multiple choice that cannot be answered without the picture, six abilities",
        "mmstar",
        "mmstar",
        "Lin-Chen/MMStar",
        size="42 MB",
        items=1500,
        license="as its sources",
    ),
    "realworldqa": lmms_benchmark(
        "where things are in photographs, many from cars",
        "realworldqa",
        "realworldqa",
        "lmms-lab-encoder/RealWorldQA",
        size="678 MB",
        items=765,
        license="CC BY-ND 4.0",
    ),
    "hallusion_bench_image": lmms_benchmark(
        "yes-no questions on pictures and their edited copies, answers read by a judge (HallusionBench)",
        "hallusion_bench_image",
        "hallusion_bench",
        "lmms-lab-encoder/HallusionBench",
        judged=True,
        size="147 MB",
        items=951,
        license="BSD-3-Clause",
    ),
}


def get_benchmark(name: str) -> Benchmark:
    """The entry called ``name``; any other name is one of lmms-eval's tasks, or the path of one's own.

    Raises:
        UserError: neither knows it (near misses are named), or it is a group of tasks (its members are).
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    from benchmarks.tasks.mllm.offline_tasks import dataset_name, task_folders, task_groups
    from benchmarks.tasks.mllm.own_tasks import own_task

    tasks = task_folders()
    if name in tasks:
        return _unlisted(lmms_benchmark(f"lmms-eval's task {name}", name, tasks[name], dataset_name(name)))
    if members := task_groups().get(name):
        raise UserError(f"benchmarks: '{name}' is a group of lmms-eval's; name its members: {', '.join(members)}")
    if own := own_task(name):
        task, path = own
        folder = str(path.parent.resolve())
        entry = lmms_benchmark(
            f"the task {task} of {path}", task, folder, dataset_name(task, path), own=str(path.resolve())
        )
        return _unlisted(entry)
    near = difflib.get_close_matches(name, {**BENCHMARKS, **tasks}, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
    raise UserError(f"benchmarks: unknown benchmark '{name}'{hint} (`clips-bench list` names them)")


def _unlisted(entry: Benchmark) -> Benchmark:
    """A task whose metrics' scale nobody has looked up."""
    return dataclasses.replace(entry, takes=(*entry.takes, "scale"))
