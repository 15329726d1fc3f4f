"""The benchmarks that are known by name: one entry each. Any other name is taken for a task of lmms-eval."""

from __future__ import annotations

from typing import Any

from benchmarks.registry import Benchmark, Needs


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


_CAPTION_SETS = ("split", "images", "captions_per_image", "layout", "subset", "image_column", "caption_columns")


def compositional(name: str, layout: str, about: str) -> dict[str, Benchmark]:
    """The entries of a compositional benchmark: by similarity, and of a LLaVA by likelihood and asked in words."""
    pair = (
        "Guessing gives a text score of 25, an image score of 25 and a group score of 16.7."
        if name == "winoground"
        else "Guessing gives an accuracy of 50; a model that ignores the picture may prefer one kind of caption, and "
        "end above or below that."
    )
    ways: dict[str, tuple[str, Needs, str, tuple[str, ...]]] = {
        name: ("similarity", "encoder", "by similarity", ()),
        f"{name}_likelihood": ("likelihood", "llava", "by likelihood", ("prompt", "likelihood")),
        f"{name}_asked": ("asked", "llava", "asked as A or B", ("prompt",)),
    }
    return {
        entry: Benchmark(
            kind="choice",
            about=f"{about}, {how}",
            needs=needs,
            evaluate=f"benchmarks.compositional.{module}:evaluate",
            data_hash="benchmarks.compositional.scoring:data_hash",
            layout=layout,
            takes=("images", *takes),
            without_skill=pair,
        )
        for entry, (module, needs, how, takes) in ways.items()
    }


BENCHMARKS: dict[str, Benchmark] = {
    "retrieval": Benchmark(
        kind="retrieval",
        about="zero-shot retrieval between pictures and their captions, both ways (COCO and Flickr30K protocol)",
        needs="encoder",
        evaluate="benchmarks.encoders.retrieval:evaluate",
        data_hash="benchmarks.encoders.retrieval:data_hash",
        takes=(*_CAPTION_SETS, "language"),
    ),
    "long_retrieval": Benchmark(
        kind="retrieval",
        about="the same with long captions, whole and cut to their first words (DOCCI, DCI, Urban-1k, ShareGPT4V, IIW)",
        needs="encoder",
        evaluate="benchmarks.encoders.long_retrieval:evaluate",
        data_hash="benchmarks.encoders.retrieval:data_hash",
        takes=(*_CAPTION_SETS, "language", "words"),
    ),
    "multilingual_retrieval": Benchmark(
        kind="retrieval",
        about="the same in several languages, and their mean (XM3600, Flickr30k-200, XTD10, XTD200)",
        needs="encoder",
        evaluate="benchmarks.encoders.multilingual:evaluate",
        data_hash="benchmarks.encoders.multilingual:data_hash",
        takes=(*_CAPTION_SETS, "languages"),
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
    **compositional("choice", "lines", "a caption or one that differs in a detail: JSON lines of pairs"),
    **compositional(
        "sugarcrepe", "sugarcrepe", "a caption or one with something added, replaced or swapped (SugarCrepe)"
    ),
    **compositional("aro_relation", "aro_relation", "what is related to what: 'A on B' or 'B on A' (ARO, VG-Relation)"),
    **compositional("aro_attribution", "aro_attribution", "which thing has which attribute (ARO, VG-Attribution)"),
    **compositional("valse", "valse", "a caption or a foil: existence, number, relation, action, reference (VALSE)"),
    **compositional("winoground", "winoground", "two pictures and two captions of the same words (Winoground)"),
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
