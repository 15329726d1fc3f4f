"""The trained model: open_clip towers and, if the recipe has one, the captioner, in one forward call; and its losses.

model = build_model(ModelConfig(architecture="clips-tiny"), RecipeConfig(name="clips"), seed=0)
losses = compute_losses(model.recipe, model(batch))
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clips.method.recipes import CONTRASTIVE_LOSSES, Recipe, RecipeConfig
from clips.model import losses, towers
from clips.model.architectures import (
    Architecture,
    ModelConfig,
    list_architectures,
    resolve_architecture,
    resolve_preprocessing,
)
from clips.model.captioner import Captioner, CaptionerDims, sample_tokens
from clips.model.initialization import initialize_openvision, load_pretrained
from clips.model.tokenizer import VOCAB_SIZE, TextTokenizer
from clips.safe_text import log_info

Tensors = Mapping[str, Tensor]


class ClipsModel(nn.Module):
    """Towers and captioner.

    Args:
        clip: an open_clip model; its state dict is exported.
        captioner: the decoder, or None.
        recipe: defines the texts of a batch and the one that the captioner reads.
        model_cfg: the open_clip configuration that ``clip`` was built from.
        preprocess_cfg: open_clip's preprocessing of the images.
        tokenizer: texts to token sequences for the text tower.
    """

    def __init__(
        self,
        clip: towers.Towers,
        captioner: Captioner | None,
        recipe: Recipe,
        model_cfg: dict[str, Any],
        preprocess_cfg: dict[str, Any],
        tokenizer: TextTokenizer,
    ) -> None:
        super().__init__()
        self.clip: towers.Towers = clip
        self.captioner = captioner
        self.recipe = recipe
        self.model_cfg = model_cfg
        self.preprocess_cfg = preprocess_cfg
        self.tokenizer = tokenizer

    @property
    def context_length(self) -> int:
        """Tokens of a text sequence; only with a text tower."""
        return int(self.model_cfg["text_cfg"]["context_length"])

    @property
    def image_size(self) -> int:
        """Image size in pixels."""
        return int(self.preprocess_cfg["size"][0])

    def forward(self, batch: Tensors, *, bf16: bool = False, captions: bool = True) -> dict[str, Tensor]:
        """Encode a batch. All parameters are used here, so that DDP or DeepSpeed can wrap it.

        Args:
            batch: "image" (B, 3, H, W) on the model's device; each text of the recipe (B, L) tokens; with a captioner
                "target" (B, T) tokens and "target_mask" (B, T) bool, and "visual_seed" (B,) if it reads a sample of
                the visual tokens. All but the image on the CPU, so that no length has to be read from the device.
            bf16: activations in bfloat16 by autocast; entered here, because DeepSpeed's engine exits one around it.
            captions: whether the captioner, if there is one, is computed.

        Returns:
            With a text tower "image" and each text: (B, E) float32 features of unit length; "logit_scale" (): the
            factor that multiplies the cosines; with a sigmoid loss "logit_bias" (): added to the logits. With
            ``captions`` "caption_loss_sum" () and "caption_tokens" (), the sum-reduced cross-entropy over the counted
            target tokens and their number.
        """
        with torch.autocast(batch["image"].device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            image, image_tokens = towers.encode_image(self.clip, batch["image"])
            texts, text_tokens, reads = {}, None, self.recipe.reads
            if reads is not None:
                texts[reads], text_tokens = towers.encode_text(self.clip, batch[reads])
            if others := [name for name in self.recipe.encoded if name != reads]:
                text_features = towers.encode_text_features(self.clip, torch.cat([batch[name] for name in others]))
                texts |= zip(others, text_features.chunk(len(others)), strict=True)
            # No output is a view of another tensor, because FSDP attaches hooks to them.
            features = {"image": image, **texts} if texts else {}
            outputs = {name: F.normalize(value.float(), dim=-1) for name, value in features.items()}
            if self.clip.logit_scale is not None:
                outputs["logit_scale"] = self.clip.logit_scale.float().exp().sum()
            if self.clip.logit_bias is not None:
                outputs["logit_bias"] = self.clip.logit_bias.float().sum()
            if captions and self.captioner is not None:
                target, target_mask = batch["target"], batch["target_mask"]
                if "visual_seed" in batch:
                    image_tokens = sample_tokens(image_tokens, batch["visual_seed"], self.recipe.visual_token_ratio)
                outputs["caption_loss_sum"] = self.captioner(image_tokens, text_tokens, target, target_mask)
                outputs["caption_tokens"] = target_mask.sum().to(image.device, non_blocking=True)
            return outputs

    def train(self, mode: bool = True) -> ClipsModel:
        """Set the training mode, except for the batch norms of frozen layers, whose statistics stay fixed."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                value.requires_grad for value in module.parameters()
            ):
                module.eval()
        return self

    @property
    def max_logit_scale(self) -> float:
        """The logarithm of the largest logit scale: CLIP's 100; none for SigLIP's loss, whose own models exceed it."""
        return math.inf if CONTRASTIVE_LOSSES[self.recipe.spec.loss] else math.log(100.0)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the logit scale, if there is one, to 1 and its maximum; call after each optimizer step."""
        if self.clip.logit_scale is not None:
            self.clip.logit_scale.clamp_(0.0, self.max_logit_scale)

    def no_decay_names(self) -> set[str]:
        """Return the names of the parameters without weight decay: all except weight matrices [C].

        open_clip's own list lacks the token embeddings, and all of timm's trunks.
        """
        tables = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        names = set()
        for name, value in self.named_parameters():
            last = name.rpartition(".")[2]
            if name in tables or value.ndim < 2 or not ("weight" in last or "proj" in last):
                names.add(name)
        return names


def build_model(
    config: ModelConfig,
    recipe_config: RecipeConfig,
    seed: int,
    architecture: Architecture | None = None,
    preprocess: dict[str, Any] | None = None,
) -> ClipsModel:
    """Build a model; towers depend only on ``config`` and ``seed``, so recipes start from equal weights.

    A recipe that encodes no text has no text tower.

    Args:
        config: the towers and their initial weights.
        recipe_config: the recipe.
        seed: of random weights.
        architecture: that of ``config``, if it is resolved already.
        preprocess: the ``preprocess_cfg``, if it is resolved already: of a run that is resumed, or of a checkpoint,
            whose initial weights may be gone.

    Raises:
        UserError: an unknown architecture, sizes that do not fit together, trunk weights that do not match.
    """
    recipe = Recipe(recipe_config)
    resolved = resolve_architecture(config) if architecture is None else architecture
    cfg = copy.deepcopy(resolved.model_cfg)
    if preprocess is None:
        preprocess, _ = resolve_preprocessing(config, cfg)
    if CONTRASTIVE_LOSSES[recipe.spec.loss]:
        cfg |= {"init_logit_scale": math.log(10.0), "init_logit_bias": -10.0}  # as SigLIP
    captioner = None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = towers.build_towers(cfg)
        if config.architecture in list_architectures():
            initialize_openvision(clip)
        if config.pretrained_trunk is not None:
            towers.load_trunk(clip, config.pretrained_trunk)
        if (task := recipe.captioning) is not None:
            image_width, text_width = towers.token_widths(clip)
            text, size = cfg["text_cfg"], recipe_config.captioner  # whose unset fields are those of the text tower
            dims = CaptionerDims(
                image_width=image_width,
                text_width=None if task.reads is None else text_width,
                width=size.width or text["width"],
                layers=size.num_layers or text["layers"],
                heads=text["heads"],
                length=size.max_length,
                vocabulary=VOCAB_SIZE,
                teacher_forced=task.teacher_forcing if size.teacher_forcing is None else size.teacher_forcing,
            )
            captioner = Captioner(dims)
    if not recipe.encoded:
        clip = towers.ImageTower(clip.visual)
        cfg = {name: cfg[name] for name in ("embed_dim", "vision_cfg", "quick_gelu") if name in cfg}
    if config.pretrained is not None:
        for line in load_pretrained(clip, captioner, config, cfg):
            log_info(f"model.pretrained: {line}")
    towers.lock_towers(clip, config)
    if isinstance(clip, towers.ImageTower):
        clip.freeze_unused(preprocess["size"])
    towers.cache_features(clip, config, preprocess)
    return ClipsModel(clip, captioner, recipe, cfg, preprocess, resolved.tokenizer)


def contrastive_loss(recipe: Recipe, outputs: Tensors) -> Tensor:
    """Return the recipe's contrastive loss () of the images with its texts."""
    texts = [outputs[text] for text in recipe.texts]
    scale, bias = outputs["logit_scale"], outputs.get("logit_bias")
    return losses.contrastive_loss(outputs["image"], texts, scale, bias, kind=recipe.spec.loss)


def caption_loss(recipe: Recipe, outputs: Tensors) -> Tensor:
    """Return the captioner's cross-entropy () per counted token."""
    return losses.caption_loss(outputs["caption_loss_sum"], outputs["caption_tokens"])


OBJECTIVES: dict[str, Callable[[Recipe, Tensors], Tensor]] = {
    "contrastive_loss": contrastive_loss,
    "caption_loss": caption_loss,
}
"""Name in the log → function; the names in ``Recipe.loss_weights`` are those that a recipe uses."""


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
