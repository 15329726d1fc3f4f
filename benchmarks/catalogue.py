"""The benchmarks that are known by name: one entry each. Any other name is taken for a task of lmms-eval."""

from __future__ import annotations

from typing import Any

from benchmarks.registry import Benchmark


def lmms_task(about: str, task: str, folder: str, dataset: str, **more: Any) -> Benchmark:
    """The entry of a task of lmms-eval's."""
    return Benchmark(
        kind="mllm",
        about=about,
        needs="llava",
        evaluate="benchmarks.mllm.evaluate:evaluate",
        data_hash="benchmarks.mllm.evaluate:data_hash",
        task=task,
        folder=folder,
        dataset=dataset,
        takes=("max_new_tokens", "without"),
        **more,
    )


BENCHMARKS: dict[str, Benchmark] = {
    "retrieval": Benchmark(
        kind="retrieval",
        about="zero-shot retrieval between pictures and their captions, both ways (COCO and Flickr30K protocol)",
        needs="encoder",
        evaluate="benchmarks.encoders.retrieval:evaluate",
        data_hash="benchmarks.encoders.retrieval:data_hash",
        takes=("split", "images", "captions_per_image"),
    ),
    "classification": Benchmark(
        kind="classification",
        about="zero-shot classification by prompts: ImageNet, its shifts, any set of CLIP_benchmark's layout",
        needs="encoder",
        evaluate="benchmarks.encoders.classification:evaluate",
        data_hash="benchmarks.encoders.classification:data_hash",
        takes=("split", "templates"),
        without_skill="Guessing one of C classes gives an accuracy of 100 / C.",
    ),
    "linear_probe": Benchmark(
        kind="classification",
        about="logistic regression on an image tower's features, learnt from a train split",
        needs="tower",
        evaluate="benchmarks.encoders.linear_probe:evaluate",
        data_hash="benchmarks.encoders.linear_probe:data_hash",
        takes=("split", "train_split"),
        without_skill="Always naming the commonest class gives its share as accuracy.",
    ),
    "choice": Benchmark(
        kind="choice",
        about="which of two captions fits the picture, the other differing in one detail (SugarCrepe)",
        needs="encoder",
        evaluate="benchmarks.encoders.choice:evaluate",
        data_hash="benchmarks.encoders.choice:data_hash",
        takes=("images",),
        without_skill=(
            "Guessing gives an accuracy of 50; a model that ignores the picture may prefer one kind of caption, and "
            "end above or below that."
        ),
    ),
    "pope": lmms_task(
        "is an object in the picture: yes or no",
        "pope",
        "pope",
        "lmms-lab-encoder/POPE",
        without_skill=(
            "Where half of the questions are to be answered yes, always saying yes gives an accuracy of 50 and an F1 "
            "of 66.7."
        ),
    ),
    "mme": lmms_task(
        "yes-no questions in pairs, fourteen abilities",
        "mme",
        "mme",
        "lmms-lab-encoder/MME",
        without_skill="Of the 200 points of each ability, always saying yes gives 50 and a coin 75.",
    ),
    "gqa": lmms_task("one-word answers about objects, attributes, relations", "gqa", "gqa", "lmms-lab-encoder/GQA"),
    "textvqa_val": lmms_task(
        "reading text in pictures", "textvqa_val", "textvqa", "lmms-lab-encoder/textvqa", max_new_tokens=32
    ),
    "nocaps_val": lmms_task("captions against ten human ones", "nocaps_val", "nocaps", "lmms-lab-encoder/NoCaps"),
}
