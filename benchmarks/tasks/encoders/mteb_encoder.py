"""An encoder directory as a model of mteb, whose own loaders read no directory.

mteb.evaluate(MtebEncoder("runs/clips"), mteb.get_benchmark("MIEB(lite)"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from clips.core.artifact import directory_hash
from clips.encoder import load_encoder


class MtebEncoder(AbsEncoder):
    """The encoder in ``directory``; ``device`` is by default a GPU if available.

    Vectors are the model's outputs, not normalized, and that of an image with a text is the sum of both, as of mteb's
    own models of open_clip.
    """

    def __init__(self, directory: str, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = load_encoder(directory)
        self.encoder.model.to(self.device)
        # mteb keeps results by name and revision: those of another directory, or of one that changed, are not read
        named = {"name": f"local/{Path(directory).resolve().name}", "revision": directory_hash(directory)}
        self.mteb_model_meta = ModelMeta.create_empty({**named, "modalities": ["image", "text"]})

    def encode(self, inputs: Any, **_: Any) -> torch.Tensor:
        """Return (N, D) vectors of the rows of mteb's ``DataLoader``."""
        model, rows = self.encoder.model, []
        with torch.inference_mode():
            for batch in inputs:
                vectors = []
                if "text" in batch:
                    vectors.append(model.encode_text(self.encoder.tokenizer(batch["text"]).to(self.device)))
                if "image" in batch:
                    pixels = torch.stack([self.encoder.preprocess(image) for image in batch["image"]])
                    vectors.append(model.encode_image(pixels.to(self.device)))
                rows.append(sum(vectors[1:], vectors[0]).float().cpu())
        return torch.cat(rows)
