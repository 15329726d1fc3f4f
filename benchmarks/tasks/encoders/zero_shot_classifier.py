"""The prompts of a class and its embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import torch


TEMPLATE_SETS = {"openai_imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""Config value → open_clip's list: CLIP's 80 templates for ImageNet, and the seven that its authors found as good."""
_SLOTS = ("{}", "{c}")


def check_templates(templates: str | Sequence[str], field: str) -> None:
    """Reject values that are neither a name in :data:`TEMPLATE_SETS` nor strings with a slot for the class.

    Raises:
        UserError: the message names ``field``.
    """
    if isinstance(templates, str) and templates not in TEMPLATE_SETS:
        raise unknown_name_error(templates, TEMPLATE_SETS, f"set of {field}, or a list of strings,")
    for template in [] if isinstance(templates, str) else templates:
        if not any(slot in template for slot in _SLOTS):
            raise UserError(f"{field}: expected {{}} where the class goes, got '{template:.80}'")
    if not templates:
        raise UserError(f"{field}: expected at least one string")


def class_prompts(templates: str | Sequence[str], name: str) -> list[str]:
    """Return the prompts of the class ``name``."""
    if isinstance(templates, str):
        from clips.lazy_import import without_wandb

        with without_wandb():
            import open_clip
        return [template(name) for template in getattr(open_clip, TEMPLATE_SETS[templates])]
    return [template.replace("{c}", name).replace("{}", name) for template in templates]


def class_embeddings(
    vectors_of: Callable[[Sequence[str]], torch.Tensor], templates: str | Sequence[str], classes: Sequence[str]
) -> torch.Tensor:
    """(C, D) unit vectors of the classes: the normalized mean of each class's normalized text vectors.

    Source: open_clip's ``build_zero_shot_classifier``. ``vectors_of`` maps texts to their unit vectors.
    """
    import torch

    texts = [class_prompts(templates, name) for name in classes]
    features = vectors_of([text for group in texts for text in group])
    means = features.reshape(len(classes), len(texts[0]), -1).mean(dim=1)
    return torch.nn.functional.normalize(means, dim=-1)
