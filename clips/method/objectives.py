"""The losses of a recipe: each an entry of ``OBJECTIVES``, a function of the recipe, the model's outputs and the batch.

The total loss is their sum, weighted by ``Recipe.loss_weights``, which has the names of those that a recipe uses. As in
`clips.model.losses`, the mean over processes is the loss of the global batch.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping

from torch import Tensor

from clips.method.recipes import Recipe
from clips.model import losses

Tensors = Mapping[str, Tensor]


def contrastive_loss(recipe: Recipe, outputs: Tensors) -> Tensor:
    """Return the recipe's contrastive loss () of the images with its texts."""
    return losses.contrastive_loss(
        outputs["image"],
        [outputs[text] for text in recipe.texts],
        outputs["logit_scale"],
        outputs.get("logit_bias"),
        kind=recipe.spec.loss,
    )


def caption_loss(recipe: Recipe, outputs: Tensors) -> Tensor:
    """Return the captioner's cross-entropy () per counted token."""
    return losses.caption_loss(outputs["caption_loss_sum"], outputs["caption_tokens"])


OBJECTIVES: dict[str, Callable[[Recipe, Tensors], Tensor]] = {
    "contrastive_loss": contrastive_loss,
    "caption_loss": caption_loss,
}
"""Name in the log → function."""


def compute_losses(recipe: Recipe, outputs: Tensors) -> dict[str, Tensor]:
    """Return named losses (): "loss" is the weighted total; the others are for logging, without gradients.

    The means of the losses over processes are the global values. "cosine_gap" is the mean cosine margin between an
    image's own first text and those of this process's other images.
    """
    parts = {name: OBJECTIVES[name](recipe, outputs) for name in recipe.loss_weights}
    loss = total_loss(recipe, parts)
    if recipe.spec.positives:
        parts["cosine_gap"] = cosine_margin(outputs["image"].detach(), outputs[recipe.texts[0]].detach())
    return {"loss": loss} | {name: part.detach() for name, part in parts.items()}


def total_loss(recipe: Recipe, parts: Tensors) -> Tensor:
    """Return the weighted sum () of the named losses."""
    first, *others = [weight * parts[name] for name, weight in recipe.loss_weights.items()]
    return functools.reduce(operator.add, others, first)


def cosine_margin(image: Tensor, text: Tensor) -> Tensor:
    """Return the mean cosine () of matching rows of ``image`` and ``text`` (B, E) minus the others'; 0 for one row."""
    count = len(image)
    matching, all_pairs = (image * text).sum(), image.sum(0) @ text.sum(0)
    return matching / count - (all_pairs - matching) / max(1, count * (count - 1)) if count > 1 else matching * 0
