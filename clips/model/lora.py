"""LoRA on the towers by PEFT: trained low-rank matrices next to frozen linear layers."""

from __future__ import annotations

import torch
from torch import nn

from clips.errors import UserError
from clips.model.architectures import LoraConfig
from clips.model.attention import AdaptableAttention, expose_projections, hide_projections
from clips.model.towers import ImageTower, Towers, text_tower


def add_adapters(towers: Towers, config: LoraConfig, seed: int) -> None:
    """Add adapters to the linear layers of frozen towers, in place; of these layers only the adapters are trained.

    Args:
        towers: an open_clip model with its initial weights, in which the adapters are 0.
        config: the towers, and the adapters' settings.
        seed: of the adapters' initial weights.

    Raises:
        UserError: a tower has no such layer.
    """
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in config.apply_to:
            if part == "text" and isinstance(towers, ImageTower):
                raise UserError("model.lora.apply_to: expected no text with a recipe that has no text tower")
            visual = towers.visual
            tower = text_tower(towers).transformer if part == "text" else getattr(visual, "trunk", visual)
            expose_projections(tower)
            peft.inject_adapter_in_model(config.for_peft(_called_linear_layers(tower)), tower)


def _called_linear_layers(tower: nn.Module) -> list[str]:
    """Return the names of the linear layers except for those whose weights a function reads."""
    from open_clip.modified_resnet import AttentionPool2d

    modules = dict(tower.named_modules())
    readers = {
        name
        for name, module in modules.items()
        if isinstance(module, nn.MultiheadAttention | AttentionPool2d) and not isinstance(module, AdaptableAttention)
    }
    linear = (name for name, module in modules.items() if isinstance(module, nn.Linear))
    return [name for name in linear if name.rpartition(".")[0] not in readers]


def merge_adapters(model: nn.Module) -> None:
    """Merge the adapters into the weights, in place: all weights have open_clip's names again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            model.set_submodule(name, layer.get_base_layer())
    hide_projections(model)
