"""Samples become batches: tokens padded on the right or packed, labels, pixels.

Legend: B samples, R rows, T tokens of a row, P pictures in the batch, N tiles of a picture (the overview included), S
side in pixels, K positions whose logits are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clips.data.formats.dataset_format import Conversation
from clips.data.invalid_samples import Invalid
from clips.errors import UserError
from llava_bridge.conversation import IGNORE_INDEX, IMAGE, ConversationEncoder, InvalidConversationError

_TEXTS_AT_ONCE = 1000


class ConversationDataset(Dataset):
    """Samples as tokens and pictures, made when asked for.

    A sample that cannot be used is replaced by the next one that can; the item says so under ``skipped``.

    Raises:
        UserError: the chat template trains answers behind other prompts than it asks for them with.
    """

    def __init__(self, samples: Sequence[Conversation], chat: ConversationEncoder, max_length: int) -> None:
        chat.check_prompts()
        self.samples = samples
        self.chat = chat
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        skipped: list[Invalid] = []
        for step in range(len(self.samples)):
            place = (index + step) % len(self.samples)
            sample = self.samples[place]
            try:
                return {**self.encode(sample), "skipped": skipped}
            except (InvalidConversationError, UserError) as error:
                skipped.append((place, sample.name, str(error)))
            except Exception as error:  # templates and pictures fail in every way; max_invalid_ratio bounds how often
                skipped.append((place, sample.name, f"{type(error).__name__}: {error}"))
        raise UserError(f"none of {len(self.samples)} samples can be used; the first: {': '.join(skipped[0][1:])}")

    def sizes(self) -> list[tuple[bool, int]]:
        """Of each sample, to put like with like: whether it shows pictures, and about how long it is.

        Lengths are characters, a picture's tokens counted as four each.
        """
        tokens = self.chat.usual_tokens * 4
        return [
            (bool(sample.images), sum(len(turn.content) for turn in sample.turns) + tokens * len(sample.images))
            for sample in self.samples
        ]

    def encode(self, sample: Conversation) -> dict[str, Any]:
        """Tokens, labels and opened pictures of one sample.

        Raises:
            SampleError: its text does not fit its pictures or the length, or an answer is empty.
            UserError: a picture is missing or broken.
        """
        if not sample.turns:
            raise InvalidConversationError("nothing is said")
        if any(turn.role == "assistant" and not turn.content.strip() for turn in sample.turns):
            raise InvalidConversationError(
                "an answer is empty"
            )  # it would teach that an answer may end before it begins
        messages = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
        marks = [message["content"].count(IMAGE) for message in messages if message["role"] != "assistant"]
        if sum(marks) != len(sample.images) or any(
            IMAGE in turn.content for turn in sample.turns if turn.role == "assistant"
        ):
            raise InvalidConversationError(
                f"{len(sample.images)} pictures but {sum(marks)} {IMAGE} marks in what the user says"
            )
        pictures = [picture.open() for picture in sample.images]
        encoded = self.chat.encode(messages, self.max_length, pictures)
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "pictures": pictures}


class ConversationCollator:
    """Items of :class:`ConversationDataset` to a batch for :class:`llava_bridge.training.loss.LlavaLoss`.

    Args:
        image_processor: of the LLaVA's processor; None for an LLM alone.
        pad: id of the padding token.
        room: tokens of a row that samples are packed into, one behind the other; None pads each to a row of its own.
    """

    def __init__(self, image_processor: Any, pad: int, room: int | None = None) -> None:
        self.image_processor = image_processor
        self.pad = pad
        self.room = room

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Returns:
            ``input_ids`` and ``labels`` (R, T); ``attention_mask``, or for packed rows ``position_ids`` (R, T);
            ``pixel_values`` (P, 3, S, S) in the order in which the tokens mention them; ``skipped``, the
            `Invalid` samples. For a LLaVA with tiles ``pixel_values`` (P, N, 3, S, S), zeros behind those of pictures
            with fewer, and ``image_sizes`` (P, 2), heights and widths.
        """
        lengths = [len(item["input_ids"]) for item in items]
        rows = [[index] for index in range(len(items))] if self.room is None else pack_lengths(lengths, self.room)
        labels = _right_padded([_end_to_end([_learned(items[index]) for index in row]) for row in rows], IGNORE_INDEX)
        tokens = [_end_to_end([items[index]["input_ids"] for index in row]) for row in rows]
        batch: dict[str, Any] = {
            "input_ids": _right_padded(tokens, self.pad),
            "labels": labels,
            "skipped": [skip for item in items for skip in item["skipped"]],
        }
        places = [_end_to_end([list(range(lengths[index])) for index in row]) for row in rows]
        if self.room is None:
            batch["attention_mask"] = _right_padded([[1] * len(row) for row in places], 0)
        else:
            batch["position_ids"] = _right_padded(places, 0)
        pictures = [picture for row in rows for index in row for picture in items[index]["pictures"]]
        if pictures:
            batch.update(self.image_processor(pictures, return_tensors="pt"))
        return batch


class TextCollator(ConversationCollator):
    """Items without pictures to a batch for a transformers causal LM.

    The logits of positions after which no row has a learned token are not needed: ``logits_to_keep`` (K,) lists
    the others, and ``shift_labels`` (R, K) says which token follows each.
    """

    def __init__(self, pad: int) -> None:
        super().__init__(None, pad)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        batch = super().__call__(items)
        return {**batch, **supervised_positions(batch["labels"])}


def pack_lengths(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which samples share a row of ``room`` tokens: few rows, and those as even as may be, for all are padded alike.

    The longest sample first, each goes into the row that is the least full. A sample longer than ``room`` is in a row
    of its own.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for count in range(max(1, math.ceil(sum(lengths) / room)), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for index in longest_first:
            row = filled.index(min(filled))
            rows[row].append(index)
            filled[row] += lengths[index]
        if all(tokens <= room or len(row) == 1 for tokens, row in zip(filled, rows, strict=True)):
            return [row for row in rows if row]
    return [[index] for index in longest_first]


def _learned(item: dict[str, Any]) -> list[int]:
    """Its labels; what stands before its first token is no part of it, and so that is never learned."""
    return [IGNORE_INDEX, *item["labels"][1:]]


def _end_to_end(parts: Sequence[Sequence[int]]) -> list[int]:
    return [value for part in parts for value in part]


def supervised_positions(labels: Tensor) -> dict[str, Tensor]:
    """``labels`` (B, T) with the positions (K,) whose logits some row needs, and their next tokens (B, K)."""
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    positions = (following != IGNORE_INDEX).any(0).nonzero()[:, 0]
    return {"labels": labels, "logits_to_keep": positions, "shift_labels": following[:, positions].contiguous()}


class PackedTextDataset(Dataset):
    """Texts in random order, end to end, in blocks of ``length`` tokens; all tokens are learned.

    Each text stands between the begin and end tokens. The rest of the last block is dropped.

    Args:
        texts: the texts.
        tokenizer: with an end token; a begin token is used if it has one.
        length: tokens in a block.
        seed: of the order.
        enough: no more blocks than this are made; None makes them of all texts.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: Any, length: int, *, seed: int, enough: int | None = None
    ) -> None:
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        stream: list[int] = []
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            if enough is not None and len(stream) >= enough * length:
                break
            some = [texts[index] for index in order[start : start + _TEXTS_AT_ONCE]]
            for ids in tokenizer(some, add_special_tokens=False)["input_ids"]:
                stream += [*begin, *ids, tokenizer.eos_token_id]
        blocks = min(len(stream) // length, enough or len(stream))
        if blocks == 0:
            raise UserError(f"llm_pretrain.max_length: the texts have {len(stream)} tokens, not one block of {length}")
        self.blocks = torch.tensor(stream[: blocks * length]).view(blocks, length)

    def __len__(self) -> int:
        return len(self.blocks)

    def sizes(self) -> list[tuple[bool, int]]:
        """No pictures, and the length of each block, all alike."""
        return [(False, self.blocks.shape[1])] * len(self)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def _right_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
