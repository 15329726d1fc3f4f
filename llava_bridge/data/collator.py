"""Collation of samples into batches: tokens padded on the right or packed, labels, pixels.

Legend: B samples, R rows, T tokens of a row, P images in the batch, N tiles of an image (including the base image), S
image size in pixels, K positions whose logits are needed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from clips.data.formats.dataset_format import Conversation
from clips.data.invalid_samples import Invalid
from clips.errors import UserError
from llava_bridge.conversation import IGNORE_INDEX, IMAGE, ConversationEncoder, InvalidConversationError
from llava_bridge.data.sources import Samples

_OTHER_MEDIA = re.compile(r"^<(?:video|audio)>\s*$", re.MULTILINE)
"""Placeholders of other data sets; within a line they may be text, such as a question about HTML."""


class ConversationDataset(Dataset):
    """Samples as tokens and images, computed on access.

    An invalid sample is replaced by the next usable one; the item lists it under ``invalid_samples``.

    Raises:
        UserError: the chat template's training prompts differ from its generation prompts.
    """

    def __init__(self, samples: Sequence[Conversation], chat: ConversationEncoder, max_length: int) -> None:
        chat.check_prompts()
        self.samples = samples
        self.chat = chat
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        invalid: list[Invalid] = []
        for offset in range(len(self.samples)):
            item = self.read((index + offset) % len(self.samples))
            if isinstance(item, dict):
                return {**item, "invalid_samples": invalid}
            invalid.append(item)
        raise UserError(f"none of {len(self.samples)} samples can be used; the first: {': '.join(invalid[0][1:])}")

    def read(self, index: int) -> dict[str, Any] | Invalid:
        """The sample at ``index``, see `encode`, or why it cannot be used."""
        sample = self.samples[index]
        try:
            return self.encode(sample)
        except (InvalidConversationError, UserError) as error:
            return index, sample.name, str(error)
        except Exception as error:  # of any template or image library; max_invalid_ratio limits their number
            return index, sample.name, f"{type(error).__name__}: {error}"

    def sizes(self) -> list[tuple[bool, int]]:
        """Whether each sample has images, and its approximate length in characters, four per image token."""
        tokens = self.chat.typical_image_tokens * 4
        samples = self.samples if isinstance(self.samples, Samples) else Samples([self.samples])
        images, characters = samples.sizes().T
        return list(zip((images > 0).tolist(), (characters + tokens * images).tolist(), strict=True))

    def encode(self, sample: Conversation) -> dict[str, Any]:
        """Tokens, labels and opened images of one sample.

        Raises:
            InvalidConversationError: the images do not match the text, the sample is too long, or an answer is empty.
            UserError: an image is missing or undecodable.
        """
        if sample.fault:
            raise InvalidConversationError(sample.fault)
        if not sample.turns:
            raise InvalidConversationError("the conversation is empty")
        answers = [turn.content for turn in sample.turns if turn.role == "assistant"]
        if not all(answer.strip() for answer in answers):  # they would teach the LLM to end an answer immediately
            raise InvalidConversationError("an answer is empty")
        messages = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
        if any(IMAGE in answer for answer in answers):
            raise InvalidConversationError(f"an answer contains {IMAGE}, which stands for an image")
        if found := next(filter(None, (_OTHER_MEDIA.search(turn.content) for turn in sample.turns)), None):
            raise InvalidConversationError(f"a message contains {found[0].strip()}, but only images are read")
        marks = sum(turn.content.count(IMAGE) for turn in sample.turns if turn.role != "assistant")
        if marks != len(sample.images):
            raise InvalidConversationError(
                f"{len(sample.images)} images but {marks} {IMAGE} tokens in the user's messages"
            )
        images = [image.open() for image in sample.images]
        encoded = self.chat.encode(messages, self.max_length, images)
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "images": images}


class ConversationCollator:
    """Items of :class:`ConversationDataset` to a batch for :class:`llava_bridge.training.loss.LlavaLoss`.

    Args:
        image_processor: the LLaVA's image processor; None for an LLM without images.
        pad: id of the padding token.
        packed_length: tokens per row for packing several samples; None pads each sample to a row of its own.
            ``math.inf`` packs all samples into one row, for FlashAttention, which gets their bounds.
    """

    def __init__(self, image_processor: Any, pad: int, packed_length: float | None = None) -> None:
        self.image_processor = image_processor
        self.pad = pad
        self.packed_length = packed_length
        self.read_features: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
        """Adds cached features to a batch (:class:`llava_bridge.training.cached_features.FeatureReader`)."""

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate items into a batch.

        Returns:
            ``input_ids`` and ``labels`` (R, T); ``supervised`` (K,), the positions, row after row, whose next token is
            supervised; for packed rows ``position_ids`` (R, T), and for a single row of all samples
            transformers' arguments for FlashAttention, ``cu_seq_lens_q`` (B + 1,) …;
            ``pixel_values`` (P, 3, S, S) in the order of their tokens; ``invalid_samples``, a list of `Invalid`. For a
            LLaVA with tiles ``pixel_values`` (P, N, 3, S, S), padded with zero tiles, and ``image_sizes``, P pairs of
            height and width. What the host needs to know of a batch is not in tensors, for which it would have to
            wait on a GPU.
        """
        lengths = [len(item["input_ids"]) for item in items]
        rows = [[index] for index in range(len(items))]
        if self.packed_length is not None:
            rows = pack_lengths(lengths, self.packed_length)
        # The token before a sample's first one may belong to another sample, so the first label is not supervised.
        labels = [[IGNORE_INDEX, *item["labels"][1:]] for item in items]
        batch: dict[str, Any] = {
            "input_ids": _right_padded(_joined([item["input_ids"] for item in items], rows), self.pad),
            "labels": _right_padded(_joined(labels, rows), IGNORE_INDEX),
            "invalid_samples": [skip for item in items for skip in item["invalid_samples"]],
        }
        batch["supervised"] = supervised_indices(batch["labels"])
        if self.packed_length is not None:
            batch["position_ids"] = _right_padded(_joined([range(length) for length in lengths], rows), 0)
        if self.packed_length == math.inf:
            ends = torch.tensor([0, *itertools.accumulate(lengths[index] for index in rows[0])], dtype=torch.int32)
            batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
        images = [image for row in rows for index in row for image in items[index]["images"]]
        if images:
            batch.update(self.image_processor(images, return_tensors="pt"))
        if "image_sizes" in batch:
            batch["image_sizes"] = batch["image_sizes"].tolist()
        if self.read_features is not None:
            batch |= self.read_features(batch)
        return batch


def pack_lengths(lengths: Sequence[int], max_tokens: float) -> list[list[int]]:
    """Assignment of samples to rows of ``max_tokens``: few rows, of similar length because of the padding.

    In descending order of length, each sample goes into the least full row. A longer sample than ``max_tokens`` gets a
    row of its own.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for count in range(max(1, math.ceil(sum(lengths) / max_tokens)), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for index in longest_first:
            row = filled.index(min(filled))
            rows[row].append(index)
            filled[row] += lengths[index]
        if all(tokens <= max_tokens or len(row) == 1 for tokens, row in zip(filled, rows, strict=True)):
            return [row for row in rows if row]
    return [[index] for index in longest_first]


def _joined(sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The concatenated sequences of each row of indices."""
    return [[value for index in row for value in sequences[index]] for row in rows]


def supervised_indices(labels: Tensor) -> Tensor:
    """The positions (K,) in ``labels`` (R, T), row after row, whose next token is supervised."""
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    return (following != IGNORE_INDEX).flatten().nonzero()[:, 0]


def _right_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
