"""timm's models as image towers of open_clip; torch and timm are imported when they are needed."""

from __future__ import annotations

import functools
from typing import Any

from clips.errors import UserError, error_reason, unknown_name_error
from clips.lazy_import import without_wandb
from clips.model_refs import TIMM_PREFIX

_FIELD = "model.architecture"


@functools.cache
def timm_vision_cfg(name: str) -> dict[str, Any]:
    """Return open_clip's ``vision_cfg`` of a timm model, as of its own architectures.

    Raises:
        UserError: timm has no such model, or its features are not of one type.
    """
    import torch

    with without_wandb():
        import timm

    try:
        if not timm.is_model(name):
            raise unknown_name_error(
                f"{TIMM_PREFIX}{name}", [f"{TIMM_PREFIX}{known}" for known in timm.list_models()], _FIELD
            )
        pretrained = pretrained_cfg(name)
        size = 224 if pretrained is None else int(pretrained.input_size[-1])
        with torch.device("meta"), torch.no_grad():
            trunk: Any = timm.create_model(name, num_classes=0)
            features: Any = trunk.eval().forward_features(torch.zeros(1, 3, size, size))
    except RuntimeError as error:  # including an unknown weights tag
        raise UserError(f"{_FIELD}: {TIMM_PREFIX}{name}: timm cannot build it ({error_reason(error)})") from None
    if not isinstance(features, torch.Tensor):
        raise UserError(f"{_FIELD}: {TIMM_PREFIX}{name}: expected a model with one set of features, not several")
    own_head = getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features
    # A head with its own layers stays, and its classifier is the projection; otherwise open_clip adds a linear one.
    pool, projection = ("avg", "") if own_head else ("", "linear")
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": projection}
    return vision | {"image_size": size}


def pretrained_cfg(name: str) -> Any | None:
    """Return timm's config of a model's input; None if it has none."""
    with without_wandb():
        import timm

    return timm.get_pretrained_cfg(name)
