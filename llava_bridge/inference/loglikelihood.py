"""Log-likelihood of a text as a LLaVA's answer to a prompt.

>>> loglikelihoods(model, processor, [image] * 2, ["Describe it."] * 2, ["A dog.", "A cat."])

Legend: B texts per batch, T positions, N scored tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors
from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, EncodedConversation
from llava_bridge.inference.generate import (
    ImageInput,
    check_image_tokens,
    context_length,
    prepend_image_tokens,
    preprocess_images,
    rgb_images,
)

_CHUNK_ROWS = 512  # of logits, which are V wide and in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """The log-likelihood of one continuation.

    Args:
        total: its natural log-likelihood, summed over its tokens.
        tokens: number of tokens.
        greedy: whether each is the most probable token at its position, that is the greedy answer up to ties.
    """

    total: float
    tokens: int
    greedy: bool


@torch.inference_mode()
def loglikelihoods(
    model: Any,
    processor: Any,
    images: Sequence[ImageInput],
    prompts: Sequence[str],
    continuations: Sequence[str],
    batch_size: int = 32,
    *,
    end: bool = True,
) -> list[LogLikelihood]:
    """The log-likelihood of each continuation as the answer to its prompt, in batches of similar length.

    The tokens are those of training: the prompt as chat asks it, then the continuation, whose tokens are scored.
    Whitespace around it is stripped, because the template writes its own.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
        images: for each prompt one image, several, or None.
        prompts: the user's messages. Images precede the text unless it contains ``<image>``.
        continuations: the answers to score.
        batch_size: texts per batch.
        end: also score the EOS token: the likelihood of the complete answer, not of a prefix.

    Returns:
        In the order of the prompts.

    Raises:
        UserError: a continuation without tokens, or longer with its prompt than the LLM's context.
    """
    from llava_bridge.model.build import make_conversation_encoder

    chat = make_conversation_encoder(model, processor, ends_answers=True)
    image_lists = rgb_images(images)
    rows = [
        _encode(chat, prompt, own, continuation, context_length(model), end=end)
        for prompt, own, continuation in zip(prompts, image_lists, continuations, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    results: dict[int, LogLikelihood] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        batch_images = [image for index in batch for image in image_lists[index]]
        scored = _score(model, [rows[index] for index in batch], preprocess_images(batch_images, processor, model))
        results.update(zip(batch, scored, strict=True))
    return [results[index] for index in range(len(rows))]


def _encode(
    chat: ConversationEncoder, prompt: str, images: Sequence[Image.Image], continuation: str, context: int, *, end: bool
) -> EncodedConversation:
    """The tokens of prompt and continuation, with labels of the tokens to score."""
    if not continuation.strip():
        raise UserError(f"expected a string to score, got {continuation!r}")
    question = {"role": "user", "content": prepend_image_tokens(prompt, images)}
    with library_errors_as_user_errors("the LLM's chat template does not support this prompt and its continuation"):
        encoded = chat.encode([question, {"role": "assistant", "content": continuation}], 2**31, images)
    ids, labels = encoded.input_ids, list(encoded.labels)
    check_image_tokens(chat, ids, images)
    last = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
    if not end and labels[last] == chat.tokenizer.convert_tokens_to_ids(chat.end_token):
        labels[last] = IGNORE_INDEX
    if len(ids) > context:
        raise UserError(
            f"prompt and continuation have {len(ids)} tokens, images included; expected at most the LLM's context of "
            f"{context} ('{continuation:.40}')"
        )
    return EncodedConversation(ids, labels)


def _score(model: Any, rows: Sequence[EncodedConversation], pixels: dict[str, Tensor]) -> list[LogLikelihood]:
    """One forward pass. Rows are padded on the right: no token attends to the padding, and positions do not shift."""
    end = rows[0].input_ids[-1]  # any token other than an image's
    ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True, padding_value=end)
    labels = pad_sequence([torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=IGNORE_INDEX)
    mask = pad_sequence([torch.ones(len(row.input_ids), dtype=torch.long) for row in rows], batch_first=True)
    device = model.device
    hidden = model.model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **pixels
    ).last_hidden_state
    next_labels = labels[:, 1:].to(device)
    owners, positions = (next_labels != IGNORE_INDEX).nonzero(as_tuple=True)
    scored = (
        hidden[owners, positions].split(_CHUNK_ROWS),
        next_labels[owners, positions].split(_CHUNK_ROWS),
    )  # (N, D), (N,)
    log_probs, greedy = [], []
    for states, targets in zip(*scored, strict=True):
        logits = model.lm_head(states).float()
        log_probs.append(logits.gather(1, targets[:, None])[:, 0].double() - logits.logsumexp(dim=1).double())
        greedy.append(logits.argmax(dim=1) == targets)
    owners = owners.cpu()
    totals = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owners, torch.cat(log_probs).cpu())
    misses = torch.zeros(len(rows)).index_add_(0, owners, (~torch.cat(greedy).cpu()).float())
    tokens = torch.bincount(owners, minlength=len(rows))
    return [
        LogLikelihood(total=total, tokens=count, greedy=missed == 0)
        for total, count, missed in zip(totals.tolist(), tokens.tolist(), misses.tolist(), strict=True)
    ]
