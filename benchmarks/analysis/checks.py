"""Checks of ``clips-bench verify``: recall, scorers on small cases with a known score, published tables, lmms-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.results.reference_results import ReferenceResult, load_reference_results, select_reference_results
from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.results.statistics import aggregate, holm_correction, wilson_interval
from benchmarks.tasks.encoders.recall import RECALL_KS, compute_ranks
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores, patched_caption_scorers
from benchmarks.tasks.mllm.offline_tasks import data_root, go_offline, suppress_output
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS
from benchmarks.tasks.registry import configure
from benchmarks.tasks.run_benchmarks import RunConfig, run_benchmarks
from clips.errors import UserError
from clips.ranges import Positive

if TYPE_CHECKING:
    import torch


class CheckFailedError(Exception):
    """The harness misbehaves; the message states the found and the expected value."""


class CheckSkippedError(Exception):
    """The check could not run; the message states its requirement."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check the harness against known values, and print a table of checks.

    Args:
        include: names of checks; all if empty.
        llava: a LLaVA directory, to run lmms-eval's own command next to the harness.
        data: the data of its tasks, as in ``clips-bench run``.
        tasks: lmms-eval's tasks for that check.
        limit: number of questions per task.
        results: a model's directory of results, for a model with results published by open_clip.
        reference_model: that model, ``ViT-B-32/openai``.
    """

    include: tuple[str, ...] = ()
    llava: str | None = None
    data: str | None = None
    tasks: tuple[str, ...] = ("pope",)
    limit: Positive = 32
    results: str | None = None
    reference_model: str | None = None

    def __post_init__(self) -> None:
        for one, other in (("llava", "data"), ("results", "reference_model")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                missing = one if getattr(self, one) is None else other
                raise UserError(f"{missing}: required, since the check needs both '{one}' and '{other}'")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    Args:
        about: the checked property.
        run: config → finding; raises `CheckFailedError` or `CheckSkippedError`.
    """

    about: str
    run: Callable[[VerifyConfig], str]


def expect_close(found: float, expected: float, what: str, tolerance: float = 1e-6) -> None:
    """Fail the check unless two numbers are equal."""
    if not abs(found - expected) <= tolerance:
        raise CheckFailedError(f"{what}: expected {expected:.6g}, found {found:.6g}")


_NUM_IMAGES, _WIDTH = 300, 32


def check_recall_by_definition(_: VerifyConfig) -> str:
    """Sort the results of every query and find the first correct one."""
    images, captions, owner = make_test_embeddings()
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    similarity = (images @ captions.T).numpy()
    correct = owner[None, :] == np.arange(_NUM_IMAGES)[:, None]
    for name, ranks, scores, positive in (
        ("I→T", to_captions, similarity, correct),
        ("T→I", to_images, similarity.T, correct.T),
    ):
        order = np.argsort(-scores, axis=1, kind="stable")
        first = np.take_along_axis(positive, order, axis=1).argmax(axis=1)
        for k in RECALL_KS:
            expect_close(float(ranks.hit(k).mean()), float((first < k).mean()), f"{name} R@{k}")
    return f"{2 * len(RECALL_KS)} recalls of {_NUM_IMAGES} images with {len(captions)} captions are equal"


def check_constant_model(_: VerifyConfig) -> str:
    """With equal similarities, the expected recall is chance: 1 in N for a caption."""
    import torch

    images, owner = torch.ones(50, 4) / 2, np.repeat(np.arange(50), 5)
    _captions, to_images = compute_ranks(images, images[owner], _pairs(owner))
    for k in RECALL_KS:
        expect_close(float(to_images.hit(k).mean()), k / 50, f"T→I R@{k} of a constant model")
    return "R@1, 5, 10 of 50 images are 2, 10, 20 %, for any order of them"


def check_clip_benchmark(_: VerifyConfig) -> str:
    """CLIP_benchmark's function on the same similarities, without ties, which it orders as ``topk`` does."""
    try:
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
    except ImportError:
        raise CheckSkippedError("CLIP_benchmark is not installed (pip install 'clips-suite[verify]')") from None
    import torch

    images, captions, owner = make_test_embeddings()
    to_captions, to_images = compute_ranks(images, captions, _pairs(owner))
    scores = captions @ images.T
    correct = torch.as_tensor(owner)[:, None] == torch.arange(_NUM_IMAGES)[None, :]
    for k in RECALL_KS:
        for ranks, expected in (
            (to_images, recall_at_k(scores, correct, k)),
            (to_captions, recall_at_k(scores.T, correct.T, k)),
        ):
            num_different = int((ranks.hit(k) != (expected > 0).numpy()).sum())
            if num_different:
                raise CheckFailedError(f"R@{k}: {num_different} of {len(expected)} queries differ")
    equal = torch.ones(_NUM_IMAGES, 4) / 2
    by_order = (recall_at_k(equal @ equal[owner].T, correct.T, 5) > 0).float().mean()
    chance = compute_ranks(equal, equal[owner], _pairs(owner))[0].hit(5).mean()
    return (
        f"all queries agree. If all similarities are equal, CLIP_benchmark's I→T R@5 is {by_order:.1%} and depends on "
        f"the order of the captions; the harness gives {chance:.1%}, which is chance"
    )


def make_test_embeddings() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Unit vectors of images and of one to five captions each, without ties, and each caption's image index."""
    import torch

    generator = torch.Generator().manual_seed(0)
    owner = np.repeat(np.arange(_NUM_IMAGES), 1 + np.arange(_NUM_IMAGES) % 5)
    images = torch.nn.functional.normalize(torch.randn(_NUM_IMAGES, _WIDTH, generator=generator), dim=1)
    noise = torch.randn(len(owner), _WIDTH, generator=generator) / _WIDTH**0.5
    return images, torch.nn.functional.normalize(images[owner] + 1.5 * noise, dim=1), owner


def _pairs(owner: np.ndarray) -> np.ndarray:
    """(M, 2) pairs of image and caption, from each caption's image (M,)."""
    return np.stack([owner, np.arange(len(owner))], axis=1)


_COCO_IMAGES = 5000


def check_averages(_: VerifyConfig) -> str:
    """open_clip's average is the mean of all its other columns (12 recalls, 7 WinoGAViL scores)."""
    rows = [row for row in load_reference_results() if row.set == "openclip"]
    for row in rows:
        others = [value for name, value in row.values.items() if name != "average"]
        expect_close(fmean(others), row.values["average"], f"average of {row.name}", tolerance=0.011)
    return f"{len(rows)} averages are the means of their {len(rows[0].values) - 1} columns"


def check_recalls(_: VerifyConfig) -> str:
    """Recall grows with its cutoff, and corresponds to an integer number of COCO's 5,000 images."""
    rows = load_reference_results()
    for row in rows:
        for name in ("coco/i2t", "coco/t2i", "flickr30k/i2t", "flickr30k/t2i"):
            found = [row.values[f"{name}_r{cut}"] for cut in (1, 5, 10) if f"{name}_r{cut}" in row.values]
            if found != sorted(found):
                raise CheckFailedError(f"{row.name}: recalls of {name} do not grow with K: {found}")
        if row.set == "openclip":
            correct = row.values["coco/i2t_r1"] / 100 * _COCO_IMAGES
            what = f"{row.name}: number of correct images in coco/i2t_r1"
            expect_close(correct, round(correct), what, tolerance=1e-3)
    return f"recalls of {len(rows)} models grow with K and correspond to integer numbers of images"


def check_rerun(config: VerifyConfig) -> str:
    """The published recalls of an open_clip model are in the intervals of its re-run."""
    if config.results is None:
        raise CheckSkippedError("needs --results DIR and --reference_model NAME, a model in open_clip's table")
    (published,) = select_reference_results([f"openclip:{config.reference_model}"])[:1]
    found = [
        line
        for results in find_results_by_row(config.results, "results").values()
        for result in results.values()
        for line in compare_with_published(result, published)
    ]
    if not found:
        raise CheckSkippedError("its results have no benchmark named coco… or flickr30k… with intervals")
    outside = [text for inside, text in found if not inside]
    if outside:
        raise CheckFailedError(f"{len(outside)} of {len(found)} outside: {'; '.join(outside)}")
    return "; ".join(text for _, text in found)


def compare_with_published(result: Result, published: ReferenceResult) -> list[tuple[bool, str]]:
    """(whether the published value is in the re-run's interval, both as text) for each recall that both have."""
    lines = []
    for name, metric in result.metrics.items():
        for dataset in ("coco", "flickr30k"):
            printed = published.values.get(f"{dataset}/{name}")
            if printed is None or metric.ci_low is None or metric.ci_high is None:
                continue
            if not result.benchmark.startswith(dataset):
                continue
            low, high = metric.ci_low * metric.scale, metric.ci_high * metric.scale
            found = f"{metric.value * metric.scale:.1f} [{low:.1f}, {high:.1f}]"
            lines.append((low <= printed <= high, f"{dataset} {metric.label} {found}, printed {printed:.1f}"))
    return lines


_NEW_TOKENS = 16  # answer length on both sides: tasks that set none have different defaults


def check_lmms_eval(config: VerifyConfig) -> str:
    """Run both in a temporary directory and compare."""
    if config.llava is None or config.data is None:
        raise CheckSkippedError("needs --llava DIR and --data DIR")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        expected = _run_lmms_eval(config, directory)
        benchmarks = [
            configure(name=task, data=config.data, limit=config.limit, max_new_tokens=_NEW_TOKENS)
            for task in config.tasks
        ]
        output = str(directory / "harness")
        run_benchmarks(
            RunConfig(model_name="model", output=output, llava=config.llava, benchmarks=benchmarks, device="cpu")
        )
        return "; ".join(_compare(task, directory, expected) for task in config.tasks)


def _run_lmms_eval(config: VerifyConfig, directory: Path) -> dict[str, Any]:
    assert config.data is not None
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_bridge", "--batch_size", "1", "--log_samples"]
    command += ["--model_args", f"pretrained={Path(str(config.llava)).resolve()},device=cpu"]
    command += ["--gen_kwargs", f"max_new_tokens={_NEW_TOKENS}", "--limit", str(config.limit)]
    command += ["--tasks", ",".join(config.tasks), "--output_path", str(directory / "lmms_eval")]
    caches = {name: str(directory / "cache") for name in ("HF_DATASETS_CACHE", "LMMS_EVAL_DATASETS_CACHE")}
    environment = os.environ | caches | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    process = subprocess.run(
        command, cwd=data_root(config.data), env=environment, capture_output=True, text=True, check=False
    )
    files = [*(directory / "lmms_eval").rglob("*_results.json")]
    if not files:  # its exit status is always 0
        last_line = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckFailedError(f"lmms-eval's command wrote no results: {last_line:.200}")
    return json.loads(files[0].read_text(encoding="utf-8"))["results"]


def _compare(task: str, directory: Path, expected: dict[str, Any]) -> str:
    result = read_result(result_path(directory / "harness", "model", task))
    (samples,) = (directory / "lmms_eval").rglob(f"*_samples_{task}.jsonl")
    lines = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    expected_answers = [str(line["filtered_resps"]) for line in sorted(lines, key=lambda line: line["doc_id"])]
    answers = read_items(result)["prediction"].tolist()
    num_different = sum(one != other for one, other in zip(answers, expected_answers, strict=True))
    if num_different:
        raise CheckFailedError(f"{task}: {num_different} of {len(answers)} answers differ")
    scores = {key.partition(",")[0]: value for key, value in expected[task].items()}
    shared = [name for name in result.metrics if isinstance(scores.get(name), int | float)]
    if not shared:
        raise CheckFailedError(f"{task}: no score in common")
    for name in shared:
        expect_close(result.metrics[name].value, float(scores[name]), f"{task} {name}")
    return f"{task}: {len(answers)} answers equal, and so {', '.join(shared)}"


def check_pope(_: VerifyConfig) -> str:
    """Five questions: two true positives, one false positive, one false negative, one true negative."""
    utils = _scorers("pope")
    answers = [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    samples = [
        utils.pope_process_results({"question_id": number, "answer": truth}, [answer.capitalize()])
        for number, (answer, truth) in enumerate(answers)
    ]
    expected = {
        "pope_accuracy": 3 / 5,
        "pope_precision": 2 / 3,  # two of three answers yes are correct
        "pope_recall": 2 / 3,  # two of three present objects are found
        "pope_f1_score": 2 * 2 / (3 + 3),  # twice the true positives over predicted plus present
    }
    for name, value in expected.items():
        scores, aggregate_name = [sample[name] for sample in samples], f"pope_aggregate_{name.removeprefix('pope_')}"
        expect_close(getattr(utils, aggregate_name)(scores), value, f"lmms-eval's {name}")
    _expect_from_items("pope", samples, expected)
    return "accuracy 3/5, precision 2/3, recall 2/3, F1 2·2/(3+3)"


def check_mme(_: VerifyConfig) -> str:
    """Colors: a pair right (100 + 100), a pair half right (50 + 0), on average 125; existence: a pair wrong, 0."""
    utils = _scorers("mme")
    right = {("color", "1"): (1, 1), ("color", "2"): (1, 0), ("existence", "3"): (0, 0)}
    samples = [
        utils.mme_process_results(
            {"question_id": image, "category": kind, "answer": truth}, ["Yes" if hit == (truth == "Yes") else "No"]
        )
        for (kind, image), hits in right.items()
        for hit, truth in zip(hits, ("Yes", "No"), strict=True)
    ]
    scores = [sample["mme_perception_score"] for sample in samples]
    with suppress_output():
        expect_close(utils.mme_aggregate_results(scores), 125 + 0, "lmms-eval's MME points")
    categories = np.array([score["category"] for score in scores])
    _expect_from_items("mme", samples, {"mme_perception_score": 125.0}, category=categories)
    return "(200 + 50)/2 + 0 = 125 points"


def check_vqa(_: VerifyConfig) -> str:
    """Three of ten people say "cat": leaving out one of these three gives 2/3, one of the other seven 3/3."""
    utils = _scorers("textvqa")
    sample = utils.textvqa_process_results({"question_id": 0, "answers": ["Cat."] * 3 + ["dog"] * 7}, ["a cat"])
    expect_close(sample["exact_match"], (3 * 2 / 3 + 7 * 1) / 10, "lmms-eval's VQA accuracy")
    _expect_from_items("textvqa_val", [sample], {"exact_match": 0.9})
    return "(3 · 2/3 + 7 · 1)/10 = 0.9, without articles and full stops"


def check_exact_match(_: VerifyConfig) -> str:
    """GQA's settings: case and punctuation do not count, other words do."""
    go_offline()
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    found = exact_match_hf_evaluate(
        predictions=["Yes.", "red", "a dog"],
        references=["yes", "Red", "dog"],
        ignore_case=True,
        ignore_punctuation=True,
    )
    expect_close(float(found["exact_match"]), 2 / 3, "lmms-eval's exact match")
    return "yes = Yes., red = Red, dog ≠ a dog: 2/3"


def check_captions(_: VerifyConfig) -> str:
    """For two images, one caption equals its reference, the other shares no word with its own.

    Each n-gram occurs in one of two images, so that its weight is log 2 > 0; equal captions have cosine 1 for every n,
    and CIDEr-D is ten times their mean.
    """
    go_offline()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {1: ["a dog runs on green grass"], 2: ["two boats lie in the harbour"]}
    answers = {1: ["a dog runs on green grass"], 2: ["people eat some pizza"]}
    with suppress_output(), patched_caption_scorers() as scores:
        corpus, _each = Cider().compute_score(references, answers)
        Rouge().compute_score(references, answers)
        bleu, _each = Bleu(4).compute_score(references, answers, verbose=0)
    expect_close(float(corpus), (10 + 0) / 2, "CIDEr", tolerance=1e-3)
    items = _columns("nocaps_val", [{"doc": {"image_id": number}} for number in (1, 2)], scores)
    for name, value in (("nocaps_CIDEr", float(corpus)), ("nocaps_Bleu_1", bleu[0])):
        spec = TASK_METRICS["nocaps_val"].metrics[name]
        expect_close(aggregate(str(spec.aggregation), items, spec.columns), float(value), f"{name} from the items")
    # 6 of 10 words match; 10 words versus 12: e^(1 - 12/10)
    expect_close(float(bleu[0]), 0.6 * np.exp(1 - 12 / 10), "BLEU-1", tolerance=1e-4)
    return "CIDEr (10 + 0)/2 = 5, BLEU-1 6/10 · e^(1 − 12/10)"


def check_statistics(_: VerifyConfig) -> str:
    """Wilson's interval of 81 in 263 (Newcombe 1998, table I), and Holm's correction of three p-values."""
    low, high = wilson_interval(81, 263)
    expect_close(low, 0.2553, "Wilson's lower end", tolerance=1e-4)
    expect_close(high, 0.3662, "Wilson's upper end", tolerance=1e-4)
    for found, value in zip(holm_correction([0.01, 0.04, 0.03]), (3 * 0.01, 0.06, 2 * 0.03), strict=True):
        expect_close(found, value, "Holm's correction")
    return "81/263: 25.53 to 36.62 %; p 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06"


def _scorers(task: str) -> Any:
    import importlib

    go_offline()
    with suppress_output():
        return importlib.import_module(f"lmms_eval.tasks.{task}.utils")


def _columns(task: str, samples: Sequence[Mapping[str, Any]], scores: ImageCaptionScores) -> Mapping[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in TASK_METRICS[task].columns(samples, scores).items()}


def _expect_from_items(
    task: str, samples: Sequence[Mapping[str, Any]], expected: Mapping[str, float], **more: np.ndarray
) -> None:
    """Fail unless the aggregations, the base of intervals and tests, give the same values from the items."""
    columns = {**_columns(task, samples, ImageCaptionScores()), **more}
    for name, value in expected.items():
        spec = TASK_METRICS[task].metrics[name]
        expect_close(aggregate(str(spec.aggregation), columns, spec.columns), value, f"{name} from the items")
