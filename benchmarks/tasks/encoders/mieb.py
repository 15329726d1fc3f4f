"""One task of mteb with one of this suite's encoders as mteb's model.

mteb loads the data, calls the encoder and computes the scores; this module gives it the encoder, records the
predictions of each item, and adds intervals where the items determine a score.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.results.protocol import Entries
from benchmarks.results.results import CHANCE, Metric
from benchmarks.tasks.encoders.cached_embeddings import embedding_cache
from benchmarks.tasks.encoders.embedding import DualEncoder, embed_images, embed_texts
from benchmarks.tasks.encoders.mieb_items import CHANCE_PREFIX, JUDGMENT, PART, items_of, query_items
from benchmarks.tasks.encoders.mieb_tasks import METRIC_NAMES, find_task, import_mteb, parts
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from benchmarks.tasks.mllm.download import dataset_hash
from benchmarks.tasks.mllm.offline_tasks import disable_hub, error_reason, find_broken_parquet, without_workers
from benchmarks.tasks.output_cache import CACHE_DIR
from benchmarks.tasks.registry import get_benchmark
from clips.core.identity import digest
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig, RequiredModel

_ROUNDING = 5e-6  # mteb rounds the scores of retrieval to five digits


class MtebEncoder:
    """An encoder with the interface of mteb's models, ``EncoderProtocol``.

    Its vectors are the model's outputs, not normalized, and that of an image with a text is the sum of both: as in
    mteb's own models of open_clip and transformers.

    Args:
        model: the model under evaluation.
        part: ``encoder``, or ``tower`` for an encoder without a text tower.
        content: hash of the task's data, for the cache of vectors.
    """

    def __init__(self, model: EvalModel, part: RequiredModel, content: str) -> None:
        self.model, self.part, self.content = model, part, content
        self.encoder: DualEncoder = dataclasses.replace(getattr(model, part), normalized=False)
        self.calls = 0

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **_: Any) -> torch.Tensor:
        """Return (N, D) vectors of the rows of mteb's ``DataLoader``."""
        rows, size = inputs.dataset, self.model.config.batch_size
        vectors = []
        if "text" in rows.features:
            texts = [row["text"] for row in rows.select_columns(["text"])]
            cache = embedding_cache(self.model, self.encoder, self.part, texts=texts)
            vectors.append(embed_texts(self.encoder, texts, size, cache))
        if "image" in rows.features:
            self.calls += 1
            task = f"{task_metadata.name} {hf_split} {hf_subset}"
            key = f"{self.content} {task} {self.calls} {len(rows)}"
            cache = embedding_cache(self.model, self.encoder, self.part, images=key)
            names = [f"{task} {index}" for index in range(len(rows))]
            vectors.append(embed_images(self.encoder, lambda index: _image(rows, index), names, size, cache))
        total: torch.Tensor = sum(vectors[1:], vectors[0])
        return total

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return (N, M) cosines."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return (N,) cosines."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb checks of a model; it stores nothing."""
        from mteb.models import ModelMeta

        return ModelMeta.create_empty({"modalities": ["image", "text"]})


def _part(model: EvalModel, needs: RequiredModel) -> RequiredModel:
    """The encoder with both towers if there is one, because mteb's models embed images with it in every task."""
    with contextlib.suppress(UserError):
        model.path("encoder")
        return "encoder"
    return needs


def _image(rows: Any, index: int) -> Any:
    return rows[index]["image"].convert("RGB")


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
    """Compute mteb's scores of a task. All processes embed and score; others than rank 0 return None."""
    entry, content = get_benchmark(config.entry), data_hash(config)
    task = find_task(entry.task)
    encoder = MtebEncoder(model, _part(model, entry.needs), content)
    with warnings.catch_warnings(action="ignore"), without_workers():
        _load_data(task, Path(config.data), Path(model.config.output) / CACHE_DIR / "datasets" / content[:32])
        with _recorded_items(task) as found:
            scores = import_mteb().evaluate(
                encoder,
                task,
                cache=None,
                co2_tracker=False,
                encode_kwargs={"batch_size": model.config.batch_size, "show_progress_bar": False},
                prediction_folder=Path(model.config.output) / CACHE_DIR,  # not written: the predictions are recorded
                show_progress_bar=False,
            )
    if not model.processes.is_main:
        return None
    items = _join(found)
    return Evaluation(
        metrics=_metrics(items, scores.task_results[0]),
        primary=(task.metadata.main_score,),
        protocol=_protocol(task, config, content, items) | encoder.encoder.settings,
        items=items.drop(columns=_chance_columns(items)),
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return a hash of the task's files and of the version of mteb, whose code defines the task.

    Raises:
        UserError: a limit, or data that are missing or differ from their download record.
    """
    if config.limit is not None:
        raise UserError(f"benchmarks.limit: mteb's tasks are evaluated completely (benchmark '{config.name}')")
    entry = get_benchmark(config.entry)
    return digest([dataset_hash(Path(config.data).resolve(), entry.dataset, config.entry), import_mteb().__version__])


def _load_data(task: Any, root: Path, cache: Path) -> None:
    """Load the data below ``root``; the Arrow tables are written to ``cache``.

    The cache must be that of these data alone, because ``datasets`` names entries by the last part of a path.
    """
    disable_hub()
    import datasets

    for part in parts(task):
        dataset = part.metadata.dataset
        path = root.resolve() / dataset["path"]
        part.metadata = part.metadata.model_copy(update={"dataset": {**dataset, "path": str(path)}})
        try:
            with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
                part.load_data()
        except Exception as error:
            broken = find_broken_parquet(path) or path
            what = f"cannot be read as the data of {task.metadata.name} ({error_reason(error)})"
            raise UserError(f"{broken}: {what}") from None


@contextlib.contextmanager
def _recorded_items(task: Any) -> Iterator[list[pd.DataFrame]]:
    """Collect the items of each split and subset when mteb has their predictions; the data are released at the end."""
    found: list[pd.DataFrame] = []

    def hooks(part: Any) -> dict[str, Any]:
        own = getattr(part, "task_specific_scores", None)  # of retrieval, which has no prediction of an item's own

        def save(predictions: Any, *_: Any, hf_split: str, hf_subset: str) -> None:
            if own is None and hf_split in task.eval_splits:
                found.append(items_of(part, predictions, hf_subset, hf_split))

        def score(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> Any:
            found.append(query_items(part, scores, qrels, results, hf_subset, hf_split))
            return own(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset) if own else {}

        return {"_save_task_predictions": save, **({"task_specific_scores": score} if own else {})}

    with contextlib.ExitStack() as stack:
        for part in parts(task):
            stack.enter_context(mock.patch.multiple(part, **hooks(part)))
            stack.callback(part.unload_data)
        yield found


def _join(found: list[pd.DataFrame]) -> pd.DataFrame:
    """All items; if there are several splits or subsets, they are part of an item's name."""
    import pandas as pd

    items = pd.concat(found, ignore_index=True)
    if len(found) > 1:
        items["item"] = items[PART] + "/" + items["item"]
        items["category"] = items["category"].where(items["category"] != "", items[PART])
    return items


def _metrics(items: pd.DataFrame, result: Any) -> dict[str, Metric]:
    """mteb's scores by their names, the mean over splits and subsets; with an interval if the items give this value."""
    scores = [each for subsets in result.scores.values() for each in subsets]
    chance = {name.removeprefix(CHANCE_PREFIX): items[name].to_numpy() for name in _chance_columns(items)}

    def value(name: str) -> float:
        return float(result.get_score(getter=lambda each: each[name]))

    known = [pattern for pattern, kind in METRIC_NAMES.items() if kind]
    names = [name for name in scores[0] if all(isinstance(each.get(name), int | float) for each in scores)]
    names = [name for name in names if name != "main_score" and any(re.fullmatch(pattern, name) for pattern in known)]
    return {name: compute_metric(items, _spec(name, items), value(name), {CHANCE: chance}) for name in names}


def _chance_columns(items: pd.DataFrame) -> list[str]:
    return [name for name in items if name.startswith(CHANCE_PREFIX)]


def _spec(name: str, items: pd.DataFrame) -> MetricSpec:
    part = (PART,) if items[PART].nunique() > 1 else ()
    spec = MetricSpec(label=name.replace("_", " "), aggregation=None, rounded=_ROUNDING)
    if (found := re.fullmatch(r"(?:(.+)_)?(pearson|spearman)", name)) and JUDGMENT in items:
        columns = (found[1] or "similarity", JUDGMENT, *part)
        return dataclasses.replace(spec, aggregation=found[2], columns=columns)
    if name not in items:
        return spec
    return dataclasses.replace(spec, aggregation="mean_of_group_means" if part else "mean", columns=(name, *part))


def _protocol(task: Any, config: BenchmarkConfig, content: str, items: pd.DataFrame) -> Entries:
    from importlib.metadata import version

    return {
        "task": f"mteb's {task.metadata.name}",
        "benchmark": config.name,
        "data_hash": content,
        "split": ", ".join(task.eval_splits),
        "subsets": int(items[PART].nunique()),
        "items": len(items),
        "similarity": "cosine",
        "scorer": f"mteb {import_mteb().__version__}",
        "scikit-learn": version("scikit-learn"),
    }
