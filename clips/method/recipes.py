"""Recipes: the texts of a sample, the losses that they enter, and the captioner's target.

`RecipeSpec` is the definition of a named recipe, an entry of ``RECIPES``. `RecipeConfig` is the user's choice: the name
of one, and settings that override it, so an ablation is a config. `Recipe` applies both to samples and model outputs.

Sources: [P] is the paper (CLIPS, arXiv 2411.16828), [C] the authors' code (https://github.com/UCSC-VLAA/OpenVision).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from clips.errors import UserError, unknown_name_error
from clips.method.caption_strategies import STRATEGIES, sentences
from clips.model.tokenizer import PAD, ClipsTokenizer, TextTokenizer
from clips.ranges import Fraction, NonNegativeFloat, Positive

CONTRASTIVE_LOSSES = {"softmax": False, "sigmoid": True}
"""Name → whether it classifies each pair, with a learned bias and SigLIP's initial scale and bias."""


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """The decoder's size; unset fields, and the number of attention heads, are taken from the text tower.

    Args:
        width: channels.
        num_layers: number of blocks.
        max_length: number of learnable tokens, the maximum length of a target with begin and end token.
        teacher_forcing: whether it is fed the previous target tokens; null is the recipe's setting.
        max_loss_tokens: maximum number of target tokens per sample, sampled at random, in the caption loss; null is
            all, as the authors do. Fewer make the 32,000-way head cheaper and give long captions no larger weight.
    """

    width: Positive | None = None
    num_layers: Positive | None = None
    max_length: Annotated[int, Field(ge=3)] = 128
    teacher_forcing: bool | None = None
    max_loss_tokens: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The recipe of a training: a name of ``RECIPES``, and settings that override it; unset ones are the recipe's.

    Args:
        name: clip (the web caption), recap and veclip (the web or the synthetic caption, sampled for each use: the web
            caption in 80 % and 50 % of the cases), clipa (as recap, both cut to a block of words), coca (as recap, with
            a captioner that is fed the previous words of its target), clips (web and partial synthetic caption, and a
            captioner that predicts the full synthetic one from image and web caption), siglip (the web caption, sigmoid
            loss), siglip_captions (as siglip, with the partial synthetic caption and the captioner of clips),
            caption_only (no text tower and no contrast: a captioner predicts the full synthetic caption, fed its
            previous words, from a random 35 % of the visual tokens, as OpenVision 2), sentences (the web caption and
            three sentences of the synthetic one).
        positives: the texts that are contrasted with the image: web, partial (the shortened synthetic caption), mixed
            (one of the two), sentences (several sentences of the synthetic caption, as DreamLIP).
        num_sentences: number of different sentences that are sampled for sentences; a caption of fewer repeats them.
        loss: softmax (mean of a symmetric CLIP loss for each text, as CLIPS), sigmoid (each pair is classified
            separately, and the logits start with SigLIP's scale and bias).
        caption_strategy: how the synthetic caption is shortened: sub_caption (one sentence of any length), sub_captions
            (as many sentences as fit), block, random, truncate, full.
        web_caption_strategy: how the web caption is shortened.
        caption_tokens: maximum number of tokens for sub_captions, block, random and truncate.
        web_caption_prob: probability that mixed is the web caption.
        caption_loss_weight: factor of the caption loss, relative to the contrastive one; 0 trains without a captioner.
        captioner: the captioner's size and type.
    """

    name: str = "clips"
    positives: tuple[str, ...] | None = None
    num_sentences: Positive | None = None
    loss: str | None = None
    caption_strategy: str | None = None
    web_caption_strategy: str | None = None
    caption_tokens: Positive = 32
    web_caption_prob: Fraction | None = None
    caption_loss_weight: NonNegativeFloat = 2.0
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        names: list[tuple[str | None, Collection[str], str]] = [
            (self.name, RECIPES, "recipe"),
            (self.loss, CONTRASTIVE_LOSSES, "contrastive loss"),
            (self.caption_strategy, STRATEGIES, "caption strategy"),
            (self.web_caption_strategy, STRATEGIES, "caption strategy"),
            *((text, POSITIVES, "text of a recipe") for text in self.positives or ()),
        ]
        for name, known, what in names:
            if name is not None and name not in known:
                raise unknown_name_error(name, known, what)
        if self.positives is not None and len(set(self.positives)) != max(1, len(self.positives)):
            raise UserError(f"recipe.positives: expected one or more different texts, got {list(self.positives)}")
        if not Recipe(self).loss_weights:
            raise UserError(f"recipe.caption_loss_weight: expected a number above 0: {self.name} has no other loss")


@dataclass(frozen=True, kw_only=True)
class CaptionerTask:
    """The captioner of a recipe.

    Args:
        reads: the text that it attends to in addition to the image; None for the image only.
        predicts: "synthetic", the full synthetic caption, or "contrasted", the recipe's first text.
        teacher_forcing: whether it is fed the previous target tokens.
        visual_token_ratio: ratio of the image's tokens that it reads in training.
    """

    reads: str | None = None
    predicts: Literal["synthetic", "contrasted"] = "synthetic"
    teacher_forcing: bool = False
    visual_token_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RecipeSpec:
    """The definition of a named recipe: its captioner, and settings that a `RecipeConfig` may override.

    Without positives nothing is contrasted; unless the captioner reads a text, the model then has no text tower.
    """

    positives: tuple[str, ...] = ("web",)
    num_sentences: int = 3
    loss: str = "softmax"
    caption_strategy: str = "full"
    web_caption_strategy: str = "full"
    web_caption_prob: float = 0.8
    captioning: CaptionerTask | None = None


OPENVISION2_TOKEN_RATIO = 0.35
"""``keep_ratio`` of the authors' scripts (scripts/project/openvision2/train.sh of [C]), for both resolutions."""

RECIPES: dict[str, RecipeSpec] = {
    "clip": RecipeSpec(),
    "recap": RecipeSpec(positives=("mixed",)),
    "veclip": RecipeSpec(positives=("mixed",), web_caption_prob=0.5),
    "clipa": RecipeSpec(positives=("mixed",), caption_strategy="block", web_caption_strategy="block"),
    "coca": RecipeSpec(positives=("mixed",), captioning=CaptionerTask(predicts="contrasted", teacher_forcing=True)),
    "clips": RecipeSpec(
        positives=("web", "partial"), caption_strategy="sub_caption", captioning=CaptionerTask(reads="web")
    ),
    "siglip": RecipeSpec(loss="sigmoid"),
    "siglip_captions": RecipeSpec(
        positives=("web", "partial"),
        loss="sigmoid",
        caption_strategy="sub_caption",
        captioning=CaptionerTask(reads="web"),
    ),
    "caption_only": RecipeSpec(
        positives=(), captioning=CaptionerTask(teacher_forcing=True, visual_token_ratio=OPENVISION2_TOKEN_RATIO)
    ),
    "sentences": RecipeSpec(positives=("web", "sentences")),
}


@dataclass(frozen=True)
class CaptionPair:
    """The captions of one sample; a missing one is "", but not both."""

    web: str
    synthetic: str


def web_text(captions: CaptionPair, rng: np.random.Generator, recipe: Recipe) -> str:
    """Return the web caption, shortened by ``web_caption_strategy``; full if that is empty. It may be empty [C]."""
    return STRATEGIES[recipe.spec.web_caption_strategy](captions.web, rng, recipe.config.caption_tokens) or captions.web


def partial_text(captions: CaptionPair, rng: np.random.Generator, recipe: Recipe) -> str:
    """Return the synthetic caption, shortened by ``caption_strategy``; the full web caption if there is none [C]."""
    if not sentences(captions.synthetic):
        return full_synthetic_text(captions)
    return STRATEGIES[recipe.spec.caption_strategy](captions.synthetic, rng, recipe.config.caption_tokens)


def mixed_text(captions: CaptionPair, rng: np.random.Generator, recipe: Recipe) -> str:
    """Return the web caption with probability ``web_caption_prob``, else the synthetic one; if one is empty, the other.

    Source: [P], VeCLIP, Recap-DataComp.
    """
    chooses_web = rng.random() < recipe.spec.web_caption_prob
    return (web_text if chooses_web and captions.web else partial_text)(captions, rng, recipe)


def sampled_sentences(captions: CaptionPair, rng: np.random.Generator, recipe: Recipe) -> list[str]:
    """Return ``num_sentences`` sentences of the synthetic caption, each once before any is repeated.

    The full web caption if there is none, as for `partial_text`. Source: DreamLIP's sub-captions, arXiv 2403.17007.
    """
    pieces = sentences(captions.synthetic) or [full_synthetic_text(captions)]
    order = rng.permutation(len(pieces))
    return [pieces[order[number % len(pieces)]] for number in range(recipe.spec.num_sentences)]


def full_synthetic_text(captions: CaptionPair) -> str:
    """Return the synthetic caption, or the web caption if there is none [C]."""
    return captions.synthetic if sentences(captions.synthetic) or not captions.web else captions.web


POSITIVES: dict[str, Callable[[CaptionPair, np.random.Generator, Recipe], str | list[str]]] = {
    "web": web_text,
    "partial": partial_text,
    "mixed": mixed_text,
    "sentences": sampled_sentences,
}
"""Name → function that samples the text, or the texts of this type, from a sample's captions."""
_TARGET_TOKENIZER = ClipsTokenizer()  # of the captioner, for any tokenizer of the text tower


@dataclass(frozen=True)
class Recipe:
    """A recipe in use: a sample's captions → token tensors, a model's outputs → losses."""

    config: RecipeConfig

    @functools.cached_property
    def spec(self) -> RecipeSpec:
        """The definition in ``RECIPES``, with the overrides of the config."""
        named = RECIPES[self.config.name]
        overrides = {one.name: getattr(self.config, one.name, None) for one in fields(named)}
        return replace(named, **{name: value for name, value in overrides.items() if value is not None})

    @property
    def captioning(self) -> CaptionerTask | None:
        """The captioner; None if none is trained."""
        return self.spec.captioning if self.config.caption_loss_weight > 0 else None

    @property
    def reads(self) -> str | None:
        """The text whose tokens the captioner reads; None if it reads none or there is no captioner."""
        return self.captioning.reads if self.captioning else None

    @property
    def visual_token_ratio(self) -> float:
        """The ratio of an image's tokens that the captioner reads in training."""
        return self.captioning.visual_token_ratio if self.captioning else 1.0

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss of the recipe, by its name in ``clips.method.clips_model.OBJECTIVES``."""
        contrast = {"contrastive_loss": 1.0} if self.spec.positives else {}  # Adam ignores a common factor of both
        return contrast | ({"caption_loss": self.config.caption_loss_weight} if self.captioning else {})

    @property
    def needs_synthetic(self) -> bool:
        """Whether it uses synthetic captions; a missing one is replaced by the web caption."""
        predicts = self.captioning.predicts if self.captioning else None
        return predicts == "synthetic" or any(name != "web" for name in self.spec.positives)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names in the batch of the contrasted texts: the positives, ``sentences_1`` … for several texts."""
        return tuple(name for positive in self.spec.positives for name in self._names(positive))

    def _names(self, positive: str) -> tuple[str, ...]:
        count = self.spec.num_sentences if positive == "sentences" else None
        return (positive,) if count is None else tuple(f"{positive}_{number}" for number in range(1, count + 1))

    @property
    def encoded(self) -> tuple[str, ...]:
        """Names of the texts that the text tower encodes: the contrasted ones and the captioner's."""
        reads = self.reads
        return self.texts if reads is None or reads in self.texts else (*self.texts, reads)

    def prepare(self, web: str, synthetic: str, rng: np.random.Generator, tokenizer: TextTokenizer) -> dict[str, Any]:
        """Return the token tensors of one sample; default collation stacks them. Deterministic in ``rng``.

        Returns:
            For each encoded text its (L,) tokens; with a captioner also "target" (T,) tokens and "target_mask" (T,)
            bool, True where a label (the target shifted by one) counts, and "visual_seed" () int64 if it reads a
            sample of the visual tokens.
        """
        captions = CaptionPair(web, synthetic)
        texts: dict[str, str] = {}
        for positive in dict.fromkeys((*self.spec.positives, *([self.reads] if self.reads else ()))):
            positives = POSITIVES[positive](captions, rng, self)
            texts |= zip(self._names(positive), [positives] if isinstance(positives, str) else positives, strict=True)
        sample: dict[str, Any] = dict(zip(texts, tokenizer(list(texts.values())), strict=True))
        if self.captioning is not None:
            import torch

            from clips.model.captioner import shift_labels

            synthetic_target = self.captioning.predicts == "synthetic"
            text = full_synthetic_text(captions) if synthetic_target else texts[self.texts[0]]
            target = _TARGET_TOKENIZER.encode_target(text, self.config.captioner.max_length)[0]
            mask = shift_labels(target) != PAD
            counted, most = mask.nonzero()[:, 0].numpy(), self.config.captioner.max_loss_tokens
            if most is not None and len(counted) > most:
                mask = mask.new_zeros(mask.shape)
                mask[rng.choice(counted, most, replace=False)] = True
            sample |= {"target": target, "target_mask": mask}
            if self.visual_token_ratio < 1:
                sample["visual_seed"] = torch.tensor(rng.integers(1 << 62))
        return sample
