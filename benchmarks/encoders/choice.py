"""Choosing the caption that fits a picture over one that differs in a detail, as SugarCrepe does it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.json_files import read_lines
from benchmarks.encoders.recall import TIE
from benchmarks.outcome import MetricSpec, Outcome, measure, thumbnail
from benchmarks.protocol import Entries
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row

PRIMARY = ("accuracy",)


@dataclass(frozen=True)
class Pairs:
    """Pictures with a right and a wrong caption each.

    Args:
        root: what the picture references are relative to.
        rows: objects with image, caption, negative and kind (empty where not stated).
    """

    root: Path
    rows: list[dict[str, str]]

    def kinds(self) -> list[str]:
        """The kinds of wrong caption, sorted."""
        return sorted({row["kind"] for row in self.rows})


def evaluate(row: Row, config: BenchmarkConfig) -> Outcome:
    """Share of pictures for which the encoder finds the right caption more similar; a tie counts half."""
    from benchmarks.encoders.embed import computed_by
    from benchmarks.encoders.vectors import image_vectors, text_vectors
    from clips.data.images import open_image, read_reference

    pairs = _load(config)
    pictures = list(dict.fromkeys(each["image"] for each in pairs.rows))
    contents = [hashlib.sha256(read_reference(pairs.root, picture)).hexdigest() for picture in pictures]
    image_features = image_vectors(row, lambda index: open_image(pairs.root, pictures[index]), pictures, contents)
    texts = [each[name] for name in ("caption", "negative") for each in pairs.rows]
    text_features = text_vectors(row, texts)
    place = {name: number for number, name in enumerate(pictures)}
    chosen = image_features[[place[each["image"]] for each in pairs.rows]]
    right, wrong = ((chosen * side).sum(dim=1) for side in text_features.chunk(2))
    items = _items(pairs, (right - wrong).cpu().numpy())
    specs = {"accuracy": MetricSpec(label="choice", columns=("score",))} | {
        f"accuracy_{kind}": MetricSpec(label=f"choice, {kind.replace('_', ' ')}", columns=(f"score_{kind}",))
        for kind in pairs.kinds()
        if kind
    }
    return Outcome(
        metrics={name: measure(items, spec) for name, spec in specs.items()},
        primary=PRIMARY,
        protocol=_protocol(pairs, config) | row.encoder.how | computed_by(row.encoder),
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """SHA-256 of the captions and pictures."""
    return _hash(_load(config))


def _load(config: BenchmarkConfig) -> Pairs:
    path = Path(config.data)
    rows = []
    for _, row in read_lines(path, texts=("image", "caption", "negative")):
        rows.append(row | {"kind": str(row.get("kind", ""))})
        if len(rows) == config.limit:
            break
    if not rows:
        raise UserError(f"{path}: holds no pair of captions")
    return Pairs(Path(config.images) if config.images else path.parent, rows)


def _hash(pairs: Pairs) -> str:
    from clips.data.images import read_reference

    pictures = sorted({row["image"] for row in pairs.rows})
    digest = hashlib.sha256(json.dumps(pairs.rows, sort_keys=True, ensure_ascii=False).encode())
    for picture in pictures:
        digest.update(hashlib.sha256(read_reference(pairs.root, picture)).digest())
    return digest.hexdigest()


def _protocol(pairs: Pairs, config: BenchmarkConfig) -> Entries:
    return {
        "task": "choice between a caption and one that differs in a detail",
        "benchmark": config.name,
        "data_hash": _hash(pairs),
        "pairs": len(pairs.rows),
        "caption_text": "as given, casing and punctuation kept; no prompt around it",
        "similarity": "cosine",
        "ties": f"half a hit within {TIE}",
        "scorer": "benchmarks.choice 1",
    }


def _items(pairs: Pairs, margin: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    from clips.data.images import open_image

    rows = pairs.rows
    score = np.where(np.abs(margin) <= TIE, 0.5, margin > 0).astype(float)
    seen: set[str] = set()
    thumbnails: list[bytes | None] = []
    for row in rows:
        thumbnails.append(None if row["image"] in seen else thumbnail(open_image(pairs.root, row["image"])))
        seen.add(row["image"])
    items = pd.DataFrame(
        {
            "item": [f"{number}/{row['image']}" for number, row in enumerate(rows)],
            "image": [row["image"] for row in rows],
            "direction": "",
            "category": [row["kind"] for row in rows],
            "question": [f"{row['caption']} | {row['negative']}" for row in rows],
            "prediction": [row["caption" if hit >= 0.5 else "negative"] for row, hit in zip(rows, score, strict=True)],
            "target": [row["caption"] for row in rows],
            "score": score,
            "thumbnail": thumbnails,
            "margin": margin.astype(float),
        }
    )
    for kind in pairs.kinds():
        if kind:
            items[f"score_{kind}"] = items["score"].where(items["category"] == kind)
    return items
