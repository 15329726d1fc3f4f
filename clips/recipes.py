"""Recipes: which captions a sample yields, which losses they enter, and whether a captioner is built.

A recipe is one entry of ``RECIPES``. It states how each text that is contrasted with the image is drawn from the
pair (web caption, synthetic caption), and which of them the captioner reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clips.captioner import CaptionerConfig, shifted
from clips.captions import STRATEGIES, sentences
from clips.errors import UserError, suggest
from clips.losses import caption_loss, contrastive_loss
from clips.tokenizer import PAD, ClipsTokenizer


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """What is trained on a sample's captions.

    Args:
        name: clip (web captions only) or clips (web and partial synthetic captions, and the captioner).
        strategy: how the synthetic caption is shortened: sub_caption, block, random, truncate, full.
        target_tokens: tokens that block, random and truncate keep.
        contrastive_weight: factor of the contrastive loss.
        caption_weight: factor of the caption loss; 0 trains without a captioner.
        captioner: the captioner's size.
    """

    name: str = "clips"
    strategy: str = "sub_caption"
    target_tokens: int = 32
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise suggest(self.name, RECIPES, "recipe")
        if self.strategy not in STRATEGIES:
            raise suggest(self.strategy, STRATEGIES, "caption strategy")
        if self.target_tokens < 1:
            raise UserError(f"recipe.target_tokens: expected at least 1, got {self.target_tokens}")
        for name in ("contrastive_weight", "caption_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"recipe.{name}: expected a number not below 0, got {getattr(self, name)}")


Draw = Callable[[str, str, np.random.Generator, RecipeConfig], str]


def web_caption(web: str, synthetic: str, rng: np.random.Generator, config: RecipeConfig) -> str:
    """The web caption as it is."""
    return web


def partial_caption(web: str, synthetic: str, rng: np.random.Generator, config: RecipeConfig) -> str:
    """The synthetic caption, shortened; the whole web caption where there is no synthetic one [C]."""
    return STRATEGIES[config.strategy](synthetic, rng, config.target_tokens) if sentences(synthetic) else web


def target_caption(web: str, synthetic: str) -> str:
    """What the captioner predicts: the whole synthetic caption, or the web caption where there is none [C]."""
    return synthetic if sentences(synthetic) else web


@dataclass(frozen=True, kw_only=True)
class RecipeSpec:
    """One entry of ``RECIPES``.

    Args:
        positives: the texts contrasted with the image: name in the batch → how it is drawn.
        captioner_reads: the text among them that conditions the captioner; None for no captioner.
    """

    positives: Mapping[str, Draw]
    captioner_reads: str | None = None


RECIPES: dict[str, RecipeSpec] = {
    "clip": RecipeSpec(positives={"web": web_caption}),
    "clips": RecipeSpec(positives={"web": web_caption, "partial": partial_caption}, captioner_reads="web"),
}


@dataclass(frozen=True)
class Recipe:
    """A recipe with its settings: from a sample's captions to tensors, from a model's outputs to losses."""

    config: RecipeConfig

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the texts that are contrasted with the image, in the batch and in the model's outputs."""
        return tuple(RECIPES[self.config.name].positives)

    @property
    def captioner_reads(self) -> str | None:
        """Name of the text that the captioner reads; None where no captioner is trained."""
        return RECIPES[self.config.name].captioner_reads if self.config.caption_weight > 0 else None

    def prepare(
        self, web: str, synthetic: str, rng: np.random.Generator, tokenizer: ClipsTokenizer
    ) -> dict[str, Tensor]:
        """The token tensors of one sample; default collation stacks them. Deterministic in ``rng``.

        Returns:
            For each text of the recipe its (L,) tokens; with a captioner also "target" (T,) tokens and
            "target_mask" (T,) bool, True where a label (the target shifted by one) counts.
        """
        draws = RECIPES[self.config.name].positives
        drawn = [draw(web, synthetic, rng, self.config) for draw in draws.values()]
        sample = dict(zip(draws, tokenizer(drawn), strict=True))
        if self.captioner_reads is not None:
            target = tokenizer.encode_target(target_caption(web, synthetic), self.config.captioner.length)[0]
            sample |= {"target": target, "target_mask": _counted(target, rng, self.config.captioner.positions)}
        return sample

    def losses(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses (): "loss" is the weighted total; its parts are for the record, without gradients.

        Their means over processes are the global values.
        """
        texts = [outputs[name] for name in self.texts]
        parts = {"contrastive_loss": contrastive_loss(outputs["image"], texts, outputs["logit_scale"])}
        loss = self.config.contrastive_weight * parts["contrastive_loss"]
        if self.captioner_reads is not None:
            parts["caption_loss"] = caption_loss(outputs["caption_loss_sum"], outputs["caption_tokens"])
            loss = loss + self.config.caption_weight * parts["caption_loss"]
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}


def build(config: RecipeConfig) -> Recipe:
    """The recipe that ``config`` names."""
    return Recipe(config)


def _counted(target: Tensor, rng: np.random.Generator, positions: int | None) -> Tensor:
    counted = shifted(target) != PAD
    places = counted.nonzero()[:, 0].numpy()
    if positions is not None and len(places) > positions:
        counted = torch.zeros_like(counted)
        counted[rng.choice(places, positions, replace=False)] = True
    return counted
