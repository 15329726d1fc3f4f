"""The trained model: open_clip towers and, if the recipe has one, the captioner, in a single forward call.

    model = build_model(ModelConfig(architecture="clips-tiny"), RecipeConfig(name="clips"), seed=0)
    losses = compute_losses(model.recipe, model(batch))

All parameters are used inside ``ClipsModel.forward``, so that DDP or DeepSpeed can wrap it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clips.core.artifact import log_info
from clips.method.recipes import Recipe, RecipeConfig
from clips.model import architectures, towers
from clips.model.architectures import ModelConfig
from clips.model.captioner import Captioner, CaptionerDims, sample_tokens
from clips.model.initialization import check_pretrained_compatible, initialize_openvision, load_pretrained
from clips.model.text_tokenizer import Architecture, TextTokenizer, resolve_architecture
from clips.model.tokenizer import VOCAB_SIZE

_MAX_LOGIT_SCALE = math.log(100.0)
"""Upper bound of the logit scale, as CLIP's, for stability."""
_SIGMOID_START = {"init_logit_scale": math.log(10.0), "init_logit_bias": -10.0}  # as SigLIP


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

    def forward(self, batch: Mapping[str, Tensor], *, bf16: bool = False, captions: bool = True) -> dict[str, Tensor]:
        """Encode a batch.

        Args:
            batch: "image" (B, 3, H, W) on the model's device; each text of the
                recipe (B, L) tokens; with a captioner "target" (B, T) tokens and "target_mask" (B, T) bool, and
                "visual_seed" (B,) if it reads a sample of the visual tokens. All but the image on the CPU, so that no
                length has to be read from the device.
            bf16: activations in bfloat16 by autocast; entered here, because DeepSpeed's engine exits one around it.
            captions: whether the captioner, if there is one, is computed.

        Returns:
            With a text tower "image" and each text: (B, E) float32 features of unit length; "logit_scale" (): the
            factor that multiplies the cosines; with a sigmoid loss "logit_bias" (): added to the logits. With
            ``captions`` "caption_loss_sum" () and "caption_tokens" (), the sum-reduced cross-entropy over the counted
            target tokens and their number.
        """
        autocast = torch.autocast(batch["image"].device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        with autocast:
            return self._encode(batch, captions=captions)

    def _encode(self, batch: Mapping[str, Tensor], *, captions: bool) -> dict[str, Tensor]:
        image, image_tokens = towers.encode_image(self.clip, batch["image"])
        texts, text_tokens = self._encode_texts(batch)
        # No output is a view of another tensor, because FSDP attaches hooks to them.
        features = {"image": image, **texts} if texts else {}
        outputs = {name: F.normalize(value.float(), dim=-1) for name, value in features.items()}
        for name, value in (("logit_scale", self.clip.logit_scale), ("logit_bias", self.clip.logit_bias)):
            if value is not None:
                outputs[name] = (value.float().exp() if name == "logit_scale" else value.float()).sum()
        if captions and self.captioner is not None:
            target, target_mask = batch["target"], batch["target_mask"]
            if "visual_seed" in batch:
                ratio = self.recipe.visual_token_ratio
                image_tokens = sample_tokens(image_tokens, batch["visual_seed"], ratio)
            outputs["caption_loss_sum"] = self.captioner(image_tokens, text_tokens, target, target_mask)
            outputs["caption_tokens"] = target_mask.sum().to(image.device, non_blocking=True)
        return outputs

    def _encode_texts(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return features of the recipe's texts by name, and the tokens of the one that the captioner reads."""
        features, tokens, reads = {}, None, self.recipe.reads
        if reads is not None:
            features[reads], tokens = towers.encode_text(self.clip, batch[reads])
        others = [name for name in self.recipe.encoded if name != reads]
        if others:
            found = towers.encode_text_features(self.clip, torch.cat([batch[name] for name in others]))
            features |= zip(others, found.chunk(len(others)), strict=True)
        return features, tokens

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
        return math.inf if architectures.CONTRASTIVE_LOSSES[self.recipe.spec.loss] else _MAX_LOGIT_SCALE

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
        return {name for name, value in self.named_parameters() if name in tables or not _is_matrix(name, value)}


def _is_matrix(name: str, value: Tensor) -> bool:
    """Whether a parameter of open_clip or timm is a weight matrix, by its name."""
    last = name.rpartition(".")[2]
    return value.ndim > 1 and ("weight" in last or "proj" in last)


def build_model(
    config: ModelConfig, recipe_config: RecipeConfig, seed: int, architecture: Architecture | None = None
) -> ClipsModel:
    """Build a model; towers depend only on ``config`` and ``seed``, so recipes start from equal weights.

    A recipe that encodes no text has no text tower.

    Args:
        config: the towers and their initial weights.
        recipe_config: the recipe.
        seed: of random weights.
        architecture: that of ``config``, if it is resolved already.

    Raises:
        UserError: an unknown architecture, sizes that do not fit together, trunk weights that do not match.
    """
    recipe = Recipe(recipe_config)
    is_pairwise = architectures.CONTRASTIVE_LOSSES[recipe.spec.loss]
    resolved = resolve_architecture(config) if architecture is None else architecture
    cfg, preprocess = copy.deepcopy((resolved.model_cfg, resolved.preprocess_cfg))
    cfg |= _SIGMOID_START if is_pairwise else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = towers.build_towers(cfg)
        if config.architecture in architectures.list_architectures():
            initialize_openvision(clip)
        if config.pretrained_trunk is not None:
            towers.load_trunk(clip, config.pretrained_trunk)
        captioner = None if recipe.captioning is None else Captioner(captioner_dims(clip, cfg, recipe))
    if not recipe.encoded:
        clip = towers.ImageTower(clip.visual)
        cfg = {name: cfg[name] for name in ("embed_dim", "vision_cfg", "quick_gelu") if name in cfg}
    if config.pretrained is not None:
        check_pretrained_compatible(cfg, preprocess, config)
        for line in load_pretrained(clip, captioner, config, cfg.get("text_cfg")):
            log_info(f"model.pretrained: {line}")
    towers.lock_towers(clip, config)
    if isinstance(clip, towers.ImageTower):
        clip.freeze_unused(preprocess["size"])
    towers.cache_features(clip, config, preprocess)
    return ClipsModel(clip, captioner, recipe, cfg, preprocess, resolved.tokenizer)


def captioner_dims(clip: towers.Towers, cfg: dict[str, Any], recipe: Recipe) -> CaptionerDims:
    """Return the captioner's resolved size: unset fields are those of the architecture's text tower."""
    image_width, text_width = towers.token_widths(clip)
    text, config, task = cfg["text_cfg"], recipe.config.captioner, recipe.captioning
    assert task is not None
    return CaptionerDims(
        image_width=image_width,
        text_width=None if task.reads is None else text_width,
        width=config.width or text["width"],
        layers=config.num_layers or text["layers"],
        heads=text["heads"],
        length=config.max_length,
        vocabulary=VOCAB_SIZE,
        teacher_forced=task.teacher_forcing if config.teacher_forcing is None else config.teacher_forcing,
    )
