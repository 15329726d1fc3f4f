"""A LLaVA and the loss that it is trained with, in one forward call.

Legend: R rows, T places of a row, P pictures, S side in pixels, G tiles of a picture (the overview included), N learned
tokens, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from clips.model.losses import linear_cross_entropy
from llava_bridge.conversation import IGNORE_INDEX


class LlavaLoss(nn.Module):
    """Mean cross-entropy over the learned tokens of a batch; their logits (N, V) never exist whole.

    Wrapped by DeepSpeed or FSDP as a whole, since the output layer's weights are used beside its own forward.

    Args:
        llava: a transformers LLaVA.
    """

    accepts_loss_kwargs = True  # HF's Trainer then tells the number of learned tokens of all processes

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.llava = llava
        self.config = llava.config  # DeepSpeed's "auto" settings read the width there

    def forward(
        self,
        *,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **pictures: Tensor,
    ) -> dict[str, Tensor]:
        """The loss ().

        Args:
            input_ids: (R, T).
            labels: (R, T), ``IGNORE_INDEX`` where nothing is learned; of a packed row's first tokens too.
            attention_mask: (R, T), 0 where a row is padded; None for packed rows.
            position_ids: (R, T) for packed rows: they begin again with each sample, which keeps samples apart.
            num_items_in_batch: learned tokens over which to average; those of this batch if not given.
            pictures: ``pixel_values`` (P, 3, S, S) if there are pictures; for a LLaVA with tiles (P, G, 3, S, S), and
                ``image_sizes`` (P, 2).
        """
        with contextlib.nullcontext() if "pixel_values" in pictures else self._shown_a_blank():
            hidden = self.llava.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
                **pictures,
            ).last_hidden_state
        following = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        learned = following != IGNORE_INDEX
        total = chunked_cross_entropy(hidden[learned], self.llava.lm_head, following[learned])
        loss = total / (learned.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return {"loss": loss}

    @contextlib.contextmanager
    def _shown_a_blank(self) -> Iterator[None]:
        """A blank picture goes through vision tower and projector meanwhile, and 0 of it into the LLM.

        Processes whose batch has no picture must do what the others do, and in the same order: those wait for their
        gradients, and under ZeRO-3 for the parts of their weights, module by module. A LLaVA calls its tower between
        the embedding of the tokens and the LLM; so does this, and computes again in the backward pass what it does.
        Only batch norms do not learn what a blank looks like.
        """
        model = self.llava.model

        def add_nothing(_: Any, __: Any, embedded: Tensor) -> Tensor:
            blank = blank_image_inputs(self.llava.config, embedded)
            norms = [one for one in model.vision_tower.modules() if isinstance(one, _BatchNorm) and one.training]
            for norm in norms:
                norm.eval()
            features = torch.cat(tuple(model.get_image_features(**blank, return_dict=True).pooler_output))
            for norm in norms:
                norm.train()
            return embedded + 0.0 * features.sum().to(embedded.dtype)

        hook = model.get_input_embeddings().register_forward_hook(add_nothing)
        try:
            yield
        finally:
            hook.remove()


def blank_image_inputs(config: Any, like: Tensor) -> dict[str, Tensor]:
    """What a LLaVA of this config is shown of one picture, all zeros, in the precision and at the place of ``like``."""
    size = config.vision_config.image_size
    if not hasattr(config, "image_grid_pinpoints"):
        return {"pixel_values": torch.zeros(1, 3, size, size, dtype=like.dtype, device=like.device)}
    tiles = image_size_to_num_patches([size, size], config.image_grid_pinpoints, size)
    return {
        "pixel_values": torch.zeros(1, tiles, 3, size, size, dtype=like.dtype, device=like.device),
        "image_sizes": torch.tensor([[size, size]]),
    }


def chunked_cross_entropy(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Summed cross-entropy () of an output layer, as `clips.model.losses.linear_cross_entropy` computes it.

    Args:
        hidden: (N, D).
        head: a linear layer to V logits.
        labels: (N,).
    """
    weight: Any = head.weight
    if (bias := getattr(head, "bias", None)) is not None:  # as one more input that is always 1
        hidden, weight = F.pad(hidden, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], dim=1)
    return linear_cross_entropy(hidden, weight, labels, _product_dtype(weight))


def _product_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
