"""The losses of a recipe: each one an entry of ``OBJECTIVES``, a function of the recipe and the model's outputs.

The total loss is their sum, weighted by ``Recipe.loss_weights``, which has the names of those that a recipe uses. As in
`clips.model.losses`, the mean over processes is the loss of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from clips.method.recipes import Recipe
from clips.model import losses

Outputs = Mapping[str, Tensor]


def contrastive_loss(recipe: Recipe, outputs: Outputs) -> Tensor:
    """Return the recipe's contrastive loss () of the images with its texts."""
    texts = [outputs[name] for name in recipe.texts]
    scale, bias = outputs["logit_scale"], outputs.get("logit_bias")
    kind, weights = recipe.spec.loss, recipe.text_weights
    return losses.contrastive_loss(outputs["image"], texts, scale, bias, kind=kind, weights=weights)


def caption_loss(recipe: Recipe, outputs: Outputs) -> Tensor:
    """Return the captioner's cross-entropy () per counted token."""
    return losses.caption_loss(outputs["caption_loss_sum"], outputs["caption_tokens"])


OBJECTIVES: dict[str, Callable[[Recipe, Outputs], Tensor]] = {
    "contrastive_loss": contrastive_loss,
    "caption_loss": caption_loss,
}
"""Name in the log → function."""
