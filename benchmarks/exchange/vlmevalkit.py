"""VLMEvalKit's ``MODEL_DATASET_acc.csv``, ``_score.csv`` or ``_score.json``, and the xlsx with a verdict per question.

Scale: depends on the dataset. Multiple choice (``report_acc``) writes ratios from 0 to 1; VQA and yes/no datasets write
per cent; MME and OCRBench write points. `DATASETS` has the factor from the file's number to this suite's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.exchange.csv_rows import read_rows
from benchmarks.exchange.imported import NOT_STATED, Imported, make_imported, measured_metric, unknown_metric
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS
from clips.errors import UserError, error_reason
from clips.text_files import parse_object

if TYPE_CHECKING:
    import pandas as pd

TOOL = "VLMEvalKit"
_VERDICTS = ("hit", "eval_match", "score")
_MME_COGNITION = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
_MIN_ANLS = 0.5  # smaller similarities count as 0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of VLMEvalKit.

    Args:
        task: this suite's benchmark of the same questions and score.
        metrics: column of the csv, or name in the JSON → this suite's metric.
        factor: from the file's number to the metric's value.
        split: of the csv's rows, the one to read; empty if there is one.
    """

    task: str
    metrics: Mapping[str, str]
    factor: float = 1.0
    split: str = ""


def _choice(task: str, metric: str, **more: Any) -> Dataset:
    return Dataset(task=task, metrics={"Overall": metric}, **more)


def _percent(task: str, metric: str) -> Dataset:
    return _choice(task, metric, factor=0.01)


_POPE = {"Overall": "pope_f1_score", "acc": "pope_accuracy", "precision": "pope_precision", "recall": "pope_recall"}
DATASETS: dict[str, Dataset] = {
    "POPE": Dataset(task="pope", metrics=_POPE, factor=0.01, split="Overall"),
    "MME": Dataset(task="mme", metrics={"perception": "mme_perception_score", "reasoning": "mme_cognition_score"}),
    "MMStar": _choice("mmstar", "mmstar_accuracy"),
    "MMBench_DEV_EN": _choice("mmbench_en_dev", "gpt_eval_score", factor=100.0, split="dev"),
    "MMMU_DEV_VAL": _choice("mmmu_val", "mmmu_acc", split="validation"),
    "SEEDBench_IMG": _choice("seedbench", "seed_image"),
    "ScienceQA_TEST": _choice("scienceqa_img", "exact_match"),
    "AI2D_TEST": _choice("ai2d", "exact_match"),
    "RealWorldQA": _choice("realworldqa", "exact_match"),
    "ChartQA_TEST": _percent("chartqa", "relaxed_overall"),
    "TextVQA_VAL": _percent("textvqa_val", "exact_match"),
    "GQA_TestDev_Balanced": _percent("gqa", "exact_match"),
    "DocVQA_VAL": _percent("docvqa_val", "anls"),
    "InfoVQA_VAL": _percent("infovqa_val", "anls"),
    "CV-Bench-2D": _choice("cv_bench_2d", "cv_bench_2d"),  # the mean over the images' two datasets
    "CV-Bench-3D": _choice("cv_bench_3d", "cv_bench_3d"),
    "OCRBench": Dataset(task="ocrbench", metrics={"Final Score": "ocrbench_points"}, factor=0.001),  # of 1,000 points
}
_NEEDED = {"pope": ("category",), "mme": ("category",), "cv_bench_2d": ("source",), "cv_bench_3d": ()}
"""Columns of the tasks whose metrics lmms-eval derives from further entries of a sample."""
_NUMBERS = ("acc.csv", "score.csv", "score.json")
_NAME = re.compile(
    rf"(?P<model>.+)_(?P<dataset>{'|'.join(sorted(DATASETS, key=len, reverse=True))})"
    r"_(?:acc|score|auxmatch|results|(?:.+_)?result)"
)


def has_known_name(file: Path) -> bool:
    """Whether the name is that of a file of VLMEvalKit with results of a known dataset."""
    return _NAME.fullmatch(file.stem) is not None


def read(file: Path) -> list[Imported]:
    """One model on one dataset, from the csv or JSON, the xlsx, or both: the other is looked up in the same directory.

    Raises:
        UserError: an unknown dataset or column, an xlsx without verdicts, or no overall number.
    """
    parts = _NAME.fullmatch(file.stem)
    if parts is None:
        endings = "_acc.csv, _score.csv, _score.json, _auxmatch.xlsx, _JUDGE_result.xlsx or _results.xlsx"
        raise UserError(f"{file}: expected MODEL_DATASET{endings}, DATASET one of {', '.join(DATASETS)}")
    name, dataset = parts["dataset"], DATASETS[parts["dataset"]]
    prefix = f"{parts['model']}_{name}_"
    numbers = next((path for end in _NUMBERS if (path := file.with_name(f"{prefix}{end}")).is_file()), None)
    tables = (path for path in sorted(file.parent.glob("*.xlsx")) if path.name.startswith(prefix))
    table = file if file.suffix == ".xlsx" else next((path for path in tables if _NAME.fullmatch(path.stem)), None)
    values = _values(numbers, dataset) if numbers else dict.fromkeys(dataset.metrics.values())
    items = _items(table, dataset) if table else None
    task = TASK_METRICS[dataset.task]
    specs = {**task.metrics, **task.extra}
    return [
        make_imported(
            numbers or file,
            tool=TOOL,
            model=parts["model"],
            benchmark=dataset.task,
            benchmark_type="mllm",
            metrics={metric: measured_metric(specs[metric], value, items=items) for metric, value in values.items()},
            primary=(*task.primary, *dataset.metrics.values()),
            settings={"task": f"VLMEvalKit's {name}", "questions": NOT_STATED if items is None else len(items)},
            items=items,
        )
    ]


def _values(file: Path, dataset: Dataset) -> dict[str, float | None]:
    """Metric → value; the file's other numbers are means over a part of the questions."""
    rows = [parse_object(file.read_bytes(), str(file))] if file.suffix == ".json" else read_rows(file)
    chosen = [row for row in rows if not dataset.split or row.get("split", dataset.split) == dataset.split]
    if len(chosen) != 1 or not set(dataset.metrics) <= set(chosen[0]):
        raise unknown_metric(file, f"{TOOL}'s {dataset.task}", ", ".join(rows[0]) if rows else "", dataset.metrics)
    try:
        return {metric: float(chosen[0][column]) * dataset.factor for column, metric in dataset.metrics.items()}
    except (TypeError, ValueError):
        raise UserError(f"{file}: {', '.join(dataset.metrics)}: expected numbers") from None


def _items(file: Path, dataset: Dataset) -> pd.DataFrame:
    """The items of an xlsx with verdicts, with the columns that the task's metrics take."""
    import pandas as pd

    try:
        rows = pd.read_excel(file, keep_default_na=False)  # "None" and "NA" are answers
    except ImportError:
        raise UserError(f"{file}: reading xlsx needs openpyxl (pip install openpyxl)") from None
    except Exception as error:  # of zipfile, XML or openpyxl
        raise UserError(f"{file}: not a readable xlsx file ({error_reason(error)})") from None
    verdict = next((name for name in _VERDICTS if name in rows), None)
    needed = ["index", "question", "answer", "prediction", *_NEEDED.get(dataset.task, ())]
    if verdict is None or not set(needed) <= set(rows):
        raise UserError(
            f"{file}: expected a column of verdicts ({', '.join(_VERDICTS)}) and {', '.join(needed)}; of answers "
            "without verdicts use `clips-bench score`"
        )
    if dataset.split and "split" in rows:
        rows = rows[rows["split"] == dataset.split]
    scores = [_score(value, dataset.task) for value in rows[verdict]]
    if None in scores:
        raise UserError(f"{file} row {scores.index(None) + 2}: {verdict}: expected a verdict from 0 to 1")
    rows = rows.assign(verdict=scores)
    if dataset.task == "pope":  # a question of several samplings counts in each
        rows = rows.assign(category=rows["category"].astype(str).str.split(",")).explode("category")
    rows = rows.reset_index(drop=True)
    texts = rows.reindex(columns=["index", "question", "answer", "prediction", "category"], fill_value="").astype(str)
    columns = _columns(rows, dataset)
    repeated = texts["index"].duplicated(keep=False) & (dataset.task == "pope")
    return pd.DataFrame(
        {
            "item": texts["index"].where(~repeated, texts["index"] + ":" + texts["category"]),
            "image": rows["image_path" if "image_path" in rows else "index"].astype(str),
            "direction": "",
            "category": texts["category"],
            "question": texts["question"],
            "prediction": texts["prediction"],
            "target": texts["answer"],
            "score": columns.get(TASK_METRICS[dataset.task].score, rows["verdict"]),
            "thumbnail": None,
            **columns,
        }
    )


def _score(verdict: Any, task: str) -> float | None:
    """The score of a verdict as VLMEvalKit's ``hit_calculate`` computes it; None if it is none.

    ``eval_match`` lists one number for each expected answer: an agreement, or ANLS's distance. Its mean, the column
    ``eval_score``, is the score only of some datasets.
    """
    try:
        found = ast.literal_eval(str(verdict))
        numbers = [float(each) for each in found] if isinstance(found, list) else [float(found)]
        if not numbers or not all(0 <= number <= 1 for number in numbers):
            return None
    except (TypeError, ValueError, SyntaxError):
        return None
    if task in {"docvqa_val", "infovqa_val"}:
        return similarity if (similarity := 1 - min(numbers)) >= _MIN_ANLS else 0.0
    return max(numbers) if task == "chartqa" else sum(numbers) / len(numbers)


def _columns(rows: pd.DataFrame, dataset: Dataset) -> Mapping[str, Any]:
    """The metrics' columns, from lmms-eval's samples of the same answers where the task derives several from them."""
    task = TASK_METRICS[dataset.task]
    if dataset.task in _NEEDED:
        return task.columns([_sample(row, dataset.task) for row in rows.to_dict("records")], ImageCaptionScores())
    specs = {**task.metrics, **task.extra}
    found = [specs[metric] for metric in dataset.metrics.values()]
    return {spec.columns[0]: rows["verdict"] * spec.most for spec in found}


def _sample(row: Mapping[str, Any], task: str) -> dict[str, Any]:
    """lmms-eval's sample of a question of ``task``."""
    if task.startswith("cv_bench"):
        half = task.removeprefix("cv_bench_").upper()
        stated = {"source": str(row.get("source", "")), "task": str(row.get("category", ""))}
        return {"cv_bench_acc": {"is_correct": row["verdict"], "type": half, **stated}}
    part = "cognition" if row["category"] in _MME_COGNITION else "perception"
    shared = {"score": row["verdict"], "category": row["category"]}
    said, expected = (str(row.get(name, "")).lower() for name in ("extracted", "answer"))
    return {
        "doc": {"category": row["category"]},
        "pope_accuracy": shared | {"prediction": said, "ground_truth": expected},
        f"mme_{part}_score": shared | {"question_id": row.get("image_path", row["index"])},
    }
