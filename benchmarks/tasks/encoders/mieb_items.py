"""The items of mteb's tasks, from the predictions that mteb records: one row for each image, query or pair.

A column with a metric's name has each item's contribution to that metric. Clustering has none: its scores are no means
over images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.tasks.evaluation import MAX_THUMBNAILS, thumbnails

if TYPE_CHECKING:
    import pandas as pd

PART = "part"
"""The column with an item's split and subset."""
JUDGMENT = "judgment"
"""The column with people's similarity of a pair."""
CHANCE_PREFIX = "chance "
"""Begins the names of columns with the expected contribution of guesses."""
_CUTS = (1, 5, 10)
_QUERY_SCORES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
"""mteb's name of a score of retrieval → pytrec_eval's; both are followed by the cutoff."""
_MOST_ANSWERS = 5  # of a query's right documents, as text


def items_of(task: Any, predictions: Any, subset: str, split: str) -> pd.DataFrame:
    """The items of one split and subset of a task other than retrieval, from ``predictions`` as mteb saves them."""
    import datasets
    from mteb import abstasks

    rows = task.dataset[split] if subset not in task.dataset else task.dataset[subset][split]
    if isinstance(task, abstasks.AbsTaskImageTextPairClassification):
        columns = _pairs(task, [np.array(each) for each in predictions], rows)
    elif isinstance(task, abstasks.AbsTaskSTS):
        columns = _similarities(predictions, rows)
    elif isinstance(task, abstasks.AbsTaskZeroShotClassification):
        columns = _zero_shot(task, np.array(predictions), rows)
    elif isinstance(task, abstasks.AbsTaskClassification) and not task.is_cross_validation:
        columns = _probe(task, np.array(predictions), rows)
    else:
        columns = {}
    numbers = [str(number) for number in range(len(rows))]
    shown = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    return _table(
        task, f"{split} {subset}", numbers, numbers, [(rows, number, shown[0]) for number in range(len(rows))], columns
    )


def query_items(
    task: Any, scores: Mapping[str, Any], qrels: Mapping[str, Any], results: Mapping[str, Any], subset: str, split: str
) -> pd.DataFrame:
    """The queries of one split and subset of a retrieval task.

    The cluster of a query with an image is this image, by content, that of a text its right documents.

    Args:
        task: mteb's, with its data.
        scores: query → pytrec_eval's scores.
        qrels: query → document → relevance.
        results: query → document → similarity.
    """
    queries, corpus = (task.dataset[subset][split][name] for name in ("queries", "corpus"))
    names = [name for name in queries["id"] if name in scores]
    right = [sorted(each for each, grade in qrels[name].items() if grade > 0) for name in names]
    asked, texts = _by_id(queries), _by_id(corpus)
    if task.metadata.category.startswith("i"):
        contents = dict(zip(queries["id"], content_names(queries, ["image"]), strict=True))
        images, source, shown = [contents[name] for name in names], queries, names
    else:
        images, source, shown = [" ".join(each) for each in right], corpus, [each[0] for each in right]
    place = {name: number for number, name in enumerate(source["id"])}
    skipped = int(task.skip_first_result)  # the query itself
    ranked = [sorted(results[name], key=lambda each: (results[name][each], each), reverse=True) for name in names]
    columns: dict[str, Any] = {
        f"{name}_at_{cut}": [scores[query][f"{theirs}_{cut}"] for query in names]
        for name, theirs in _QUERY_SCORES.items()
        for cut in _CUTS
    }
    columns["accuracy"] = columns["recall_at_1"]  # mteb's definition, for multiple choice
    columns["direction"] = task.metadata.category if task.metadata.category in {"t2i", "i2t"} else ""
    columns["question"] = [asked.get(name, "") for name in names]
    columns["prediction"] = [
        "".join(texts.get(each, each) for each in found[skipped : skipped + 1]) for found in ranked
    ]
    columns["target"] = [" | ".join(texts.get(each, each) for each in found[:_MOST_ANSWERS]) for found in right]
    opened = [(source, place.get(name, 0), "image") for name in shown]
    return _table(task, f"{split} {subset}", names, images, opened, columns)


def content_names(rows: Any, columns: Sequence[str]) -> list[str]:
    """(N,) hashes of the images in some columns, so that equal images have equal names."""
    import datasets

    stored = rows.select_columns(list(columns))
    for column in columns:
        if isinstance(stored.features[column], datasets.Image):
            stored = stored.cast_column(column, datasets.Image(decode=False))
    return [hashlib.sha256(b"".join(map(_content, row.values()))).hexdigest()[:16] for row in stored]


def _content(image: Any) -> bytes:
    return image["bytes"] or image["path"].encode() if isinstance(image, Mapping) else image.tobytes()


def _by_id(rows: Any) -> dict[str, str]:
    """Id → text, of rows that have one."""
    if "text" not in rows.features:
        return {}
    return {name: text for name, text in zip(rows["id"], rows["text"], strict=True) if isinstance(text, str)}


def _table(
    task: Any,
    part: str,
    names: Sequence[str],
    images: Sequence[str],
    opened: Sequence[tuple[Any, int, str]],
    columns: Mapping[str, Any],
) -> pd.DataFrame:
    """The table of items; ``opened`` is the place of each item's image: dataset, row and column."""
    import pandas as pd

    def opener(number: int) -> Any:
        rows, place, column = opened[number]
        return rows[place][column]

    shown = thumbnails(images, opener, max(1, MAX_THUMBNAILS // len(task.hf_subsets)))
    empty = dict.fromkeys(("direction", "category", "question", "prediction", "target"), "")
    score = columns.get(task.metadata.main_score, np.nan)
    own = {"item": list(names), "image": list(images), "thumbnail": shown}
    return pd.DataFrame({**own, **empty, "score": score, PART: part, **columns})


def _class_names(rows: Any, column: str) -> list[str]:
    """(N,) the names of the classes, or the labels."""
    known = getattr(rows.features[column], "names", None)
    return [known[label] if known else str(label) for label in rows[column]]


def _zero_shot(task: Any, scores: np.ndarray, rows: Any) -> dict[str, Any]:
    """From (N, C) probabilities."""
    classes, labels = task.get_candidate_labels(), rows[task.label_column_name]
    targets = [classes.index(label) if isinstance(label, str) else label for label in labels]
    return {
        "category": [f"{target} {classes[target]}" for target in targets],
        "prediction": [classes[index] for index in scores.argmax(axis=1)],
        "target": [classes[target] for target in targets],
        "accuracy": (scores.argmax(axis=1) == np.array(targets)).astype(float),
        f"{CHANCE_PREFIX}accuracy": 1 / len(classes),
    }


def _probe(task: Any, predictions: np.ndarray, rows: Any) -> dict[str, Any]:
    """From (E, N) labels of E classifiers; an item's accuracy is the ratio of classifiers that are right."""
    labels, targets = np.array(rows[task.label_column_name]), _class_names(rows, task.label_column_name)
    names = dict(zip(labels.tolist(), targets, strict=True))
    return {
        "category": targets,
        "prediction": [names.get(label, str(label)) for label in predictions[0].tolist()],
        "target": targets,
        "accuracy": (predictions == labels).mean(axis=0),
        f"{CHANCE_PREFIX}accuracy": 1 / len(names),
    }


def _pairs(task: Any, scores: Sequence[np.ndarray], rows: Any) -> dict[str, Any]:
    """From (images, texts) similarities of each item; the image and the text of equal index belong together.

    Of more images than texts, mteb counts no item as right in ``text_acc``, of more texts none in ``image_acc``.
    """
    given = (task.images_column_names, task.texts_column_names)
    images, texts = ([names] if isinstance(names, str) else list(names) for names in given)
    text_right = np.array([(each.argmax(axis=1) == np.arange(len(images))).all() for each in scores], float)
    image_right = np.array([(each.argmax(axis=0) == np.arange(len(texts))).all() for each in scores], float)
    return {
        "image": content_names(rows, images),
        "question": list(rows[texts[0]]),
        "text_acc": text_right,
        "image_acc": image_right,
        "accuracy": text_right * image_right,
        f"{CHANCE_PREFIX}text_acc": (len(images) <= len(texts)) * len(texts) ** -float(len(images)),
        f"{CHANCE_PREFIX}image_acc": (len(texts) <= len(images)) * len(images) ** -float(len(texts)),
    }


def _similarities(predictions: Mapping[str, Sequence[float]], rows: Any) -> dict[str, Any]:
    """Each kind of similarity of the two images of a pair, by the prefix of its metrics, and people's judgment."""
    judged = np.array(rows["score"], float)
    found = {name.partition("_")[0]: np.array(values) for name, values in predictions.items()}
    shown = {
        "prediction": [f"{cosine:.4f}" for cosine in found["cosine"]],
        "target": [f"{score:g}" for score in judged],
    }
    return {**shown, **found, JUDGMENT: judged}
