"""A LLaVA with its training loss, in one forward call.

Legend: R rows, T tokens of a row, P images, S image size in pixels, G tiles of an image (including the base image), N
supervised tokens, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from clips.model.losses import chunk_rows, linear_cross_entropy
from llava_bridge.data.batches import supervised_indices
from llava_bridge.model.modeling_llava import use_square_images

MATCHES = "matches"


class LlavaLoss(nn.Module):
    """Mean cross-entropy over the supervised tokens of a batch, without materializing their logits (N, V).

    DeepSpeed wraps this module as one, since the output layer's weights are used outside the layer's forward. With
    ``square_images`` a LLaVA with tiles reads one square for each image.
    """

    accepts_loss_kwargs = True  # HF's Trainer then passes num_items_in_batch

    def __init__(self, llava: Any, square_images: bool = False) -> None:
        super().__init__()
        self.square_images = square_images
        if square_images:
            use_square_images(llava)
        self.llava = llava
        self.config = llava.config  # DeepSpeed's "auto" settings read the width from it
        llava.model.get_placeholder_mask = functools.partial(image_token_mask, llava.config.image_token_id)

    def forward(
        self,
        *,
        input_ids: Tensor,
        labels: Tensor,
        supervised: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cached_features: Tensor | None = None,
        feature_keys: Sequence[str] = (),
        count_matches: bool = False,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """The ``loss`` (), and with ``count_matches`` the ``matches`` (2,) of :func:`count_matching_answers`.

        Args:
            input_ids: (R, T), padded on the right, so that no token of a sample sees padding.
            labels: (R, T), ``IGNORE_INDEX`` for unsupervised tokens and for the first token of each packed sample.
            supervised: (N,), see :class:`llava_bridge.data.batches.ConversationCollator`; None computes them.
            position_ids: (R, T) for packed rows: they restart with each sample, which separates samples.
            num_items_in_batch: number of supervised tokens to average over; None uses those of this batch.
            cached_features: see :class:`llava_bridge.training.setup.FeatureReader`, as for ``feature_keys``.
            feature_keys: keys of the images' features in the cache.
            count_matches: whether to count the answers that greedy decoding would generate.
            inputs: ``pixel_values`` (P, 3, S, S) if there are images; for tiles (P, G, 3, S, S), and
                ``image_sizes``, P pairs. For packed rows under FlashAttention transformers' arguments for it.
        """
        if feature_keys:
            images = self.llava.model.vision_tower.with_features(cached_features, feature_keys)
        else:
            images = contextlib.nullcontext() if "pixel_values" in inputs else self._blank_image()
        with images:
            output = self.llava.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **inputs)
        hidden = output.last_hidden_state
        supervised = supervised_indices(labels) if supervised is None else supervised
        targets = labels.flatten()[supervised + 1]
        states = hidden.flatten(0, 1)[supervised]
        total = chunked_cross_entropy(states, self.llava.lm_head, targets)
        loss = total / (max(1, len(supervised)) if num_items_in_batch is None else num_items_in_batch)
        if not count_matches:
            return {"loss": loss}
        return {"loss": loss, MATCHES: count_matching_answers(states, self.llava.lm_head, targets, supervised)}

    @contextlib.contextmanager
    def _blank_image(self) -> Iterator[None]:
        """Meanwhile the LLM's input has the features of a blank image, multiplied by 0.

        A process without images in its batch must call the same modules as the others in the same order: these wait for
        its gradients, and under ZeRO-3 for its shards, module by module. A LLaVA calls its tower after the embedding of
        the tokens; so does this hook. Batch norms do not update their statistics with the blank image.
        """
        model = self.llava.model

        def add_blank_features(_: Any, __: Any, embedded: Tensor) -> Tensor:
            config = self.llava.config
            size = config.vision_config.image_size
            options: dict[str, Any] = {"dtype": embedded.dtype, "device": embedded.device}
            if self.square_images or not hasattr(config, "image_grid_pinpoints"):
                blank: dict[str, Any] = {"pixel_values": torch.zeros(1, 3, size, size, **options)}
            else:
                tiles = image_size_to_num_patches([size, size], config.image_grid_pinpoints, size)
                blank = {"pixel_values": torch.zeros(1, tiles, 3, size, size, **options), "image_sizes": [[size, size]]}
            norms = [one for one in model.vision_tower.modules() if isinstance(one, _BatchNorm) and one.training]
            for norm in norms:
                norm.eval()
            features = torch.cat(tuple(model.get_image_features(**blank, return_dict=True).pooler_output))
            for norm in norms:
                norm.train()
            return embedded + 0.0 * features.sum().to(embedded.dtype)

        hook = model.get_input_embeddings().register_forward_hook(add_blank_features)
        try:
            yield
        finally:
            hook.remove()


def image_token_mask(image_token: int, input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
    """transformers' mask (R, T, 1) of the tokens (R, T) that have the id ``image_token``, one for each image feature.

    The host does not wait for the comparison of their number, as it does in transformers.
    """
    mask = input_ids == image_token
    tokens = image_features.numel() // inputs_embeds.shape[-1]
    torch._assert_async(mask.sum() == tokens, f"expected {tokens} image tokens, one for each of the image features")
    return mask[..., None]


def chunked_cross_entropy(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Summed cross-entropy () of a linear layer to V logits on states (N, D), for labels (N,).

    As `clips.model.losses.linear_cross_entropy` computes it; on a GPU by Liger's kernel if that is installed: the same
    values in fewer passes over the logits.
    """
    weight: Any = head.weight
    if (bias := getattr(head, "bias", None)) is not None:  # the weights of one more input, which is always 1
        hidden, weight = F.pad(hidden, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], dim=1)
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if hidden.is_cuda and len(hidden) > 0 and importlib.util.find_spec("liger_kernel") is not None:
        return liger_cross_entropy(hidden.to(dtype), weight.to(dtype), labels)
    return linear_cross_entropy(hidden, weight, labels, dtype)


def count_matching_answers(hidden: Tensor, head: nn.Module, labels: Tensor, positions: Tensor) -> Tensor:
    """The number of answers whose tokens are all the most probable ones, and that of all answers, (2,).

    Greedy decoding would generate exactly these answers, with their end: each token is predicted from the ones before.
    ``hidden`` is (N, D), ``labels`` (N,); in the ascending ``positions`` (N,) an answer's tokens follow each other
    without a gap.
    """
    weight: Any = head.weight
    best = [head(rows.to(weight.dtype)).argmax(dim=-1) for rows in hidden.split(chunk_rows(weight))]
    wrong = torch.cat(best) != labels if best else labels.new_zeros(0)
    starts = F.pad(positions.diff() != 1, (1, 0), value=True)[: len(positions)]
    answer_of = starts.cumsum(0) - 1
    answers = starts.sum()
    has_error = torch.zeros(len(labels), device=labels.device).index_add_(0, answer_of, wrong.float()) > 0
    return torch.stack([answers - has_error.sum(), answers])


def liger_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy () of the logits of ``hidden`` (N, D) and ``weight`` (V, D), by Liger's kernel.

    Its own chunks have N · D logits, 128 rows of a large vocabulary; the weights' gradient is summed in float32.
    """
    liger: Any = importlib.import_module("liger_kernel.transformers.functional")
    return liger.liger_fused_linear_cross_entropy(
        hidden,
        weight,
        labels,
        reduction="sum",
        accum_dtype=torch.float32,
        chunk_mem_const=max(1, chunk_rows(weight) * len(weight) // hidden.numel()),
    )
