"""Samples become batches: tokens padded on the right, labels, pixels.

Legend: B samples, T tokens, P pictures in the batch, S side in pixels, K positions whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clips.data import open_image
from clips.errors import UserError
from llava_bridge.chat import IGNORED, IMAGE, Chat, SampleError
from llava_bridge.data.samples import Sample

_TEXTS_AT_ONCE = 1000


class Conversations(Dataset):
    """Samples as tokens and pictures, made when asked for.

    A sample that cannot be used is replaced by the next one that can; the item says so under ``skipped``.
    """

    def __init__(self, samples: Sequence[Sample], chat: Chat, max_length: int) -> None:
        self.samples = samples
        self.chat = chat
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        skipped: list[tuple[str, str]] = []
        for step in range(len(self.samples)):
            sample = self.samples[(index + step) % len(self.samples)]
            try:
                return {**self.encode(sample), "skipped": skipped}
            except (SampleError, UserError) as error:
                skipped.append((sample.name, str(error)))
            except Exception as error:  # templates and pictures fail in every way; max_bad_share bounds how often
                skipped.append((sample.name, f"{type(error).__name__}: {error}"))
        raise UserError(f"none of {len(self.samples)} samples can be used; the first: {skipped[0][0]}: {skipped[0][1]}")

    def sizes(self) -> list[int]:
        """How long each sample is, in characters and picture tokens: near enough to put like with like."""
        tokens = self.chat.image_tokens * 4  # about four characters make a token
        return [
            sum(len(turn.content) for turn in sample.turns) + tokens * len(sample.images) for sample in self.samples
        ]

    def encode(self, sample: Sample) -> dict[str, Any]:
        """Tokens, labels and opened pictures of one sample.

        Raises:
            SampleError: its text does not fit its pictures or the length.
            UserError: a picture is missing or broken.
        """
        if not sample.turns:
            raise SampleError("nothing is said")
        messages = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
        marks = [message["content"].count(IMAGE) for message in messages if message["role"] != "assistant"]
        if sum(marks) != len(sample.images) or any(
            IMAGE in turn.content for turn in sample.turns if turn.role == "assistant"
        ):
            raise SampleError(f"{len(sample.images)} pictures but {sum(marks)} {IMAGE} marks in what the user says")
        encoded = self.chat.encode(messages, self.max_length)
        pictures = [open_image(sample.root, reference) for reference in sample.images]
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "pictures": pictures}


class Collator:
    """Items of :class:`Conversations` to a batch for transformers' LLaVA.

    The logits of positions after which no row has a learnt token are not needed: ``logits_to_keep`` (K,) lists
    the others, and ``shift_labels`` (B, K) says which token follows each. With a large vocabulary this saves
    most of the memory that pictures and questions would take in the output layer.

    Args:
        image_processor: of the LLaVA's processor.
        pad: id of the padding token.
    """

    def __init__(self, image_processor: Any, pad: int) -> None:
        self.image_processor = image_processor
        self.pad = pad

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch: tokens (B, T), labels, ``pixel_values`` (P, 3, S, S), and ``skipped`` (name, reason) pairs."""
        input_ids = _right_padded([item["input_ids"] for item in items], self.pad)
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        labels = _right_padded([item["labels"] for item in items], IGNORED)
        batch: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            **needed_logits(labels),
            "skipped": [skip for item in items for skip in item["skipped"]],
        }
        pictures = [picture for item in items for picture in item["pictures"]]
        if pictures:
            batch["pixel_values"] = self.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return batch


def needed_logits(labels: Tensor) -> dict[str, Tensor]:
    """``labels`` (B, T) with the positions (K,) whose logits some row needs, and their next tokens (B, K)."""
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    positions = (following != IGNORED).any(0).nonzero()[:, 0]
    return {"labels": labels, "logits_to_keep": positions, "shift_labels": following[:, positions].contiguous()}


class PackedText(Dataset):
    """Texts in random order, end to end, in blocks of ``length`` tokens; all tokens are learnt.

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
            raise UserError(f"pretrain.max_length: the texts have {len(stream)} tokens, not one block of {length}")
        self.blocks = torch.tensor(stream[: blocks * length]).view(blocks, length)

    def __len__(self) -> int:
        return len(self.blocks)

    def sizes(self) -> list[int]:
        """The length of each block, all alike."""
        return [self.blocks.shape[1]] * len(self)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def _right_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
