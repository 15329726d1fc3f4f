"""From samples to batches: their order, tokens and labels, rows padded on the right or packed, pixels.

Legend: B samples, R rows, T tokens of a row, P images in the batch, N tiles of an image (including the base image), S
image size in pixels, K positions whose logits are needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from clips.data.formats.dataset_format import Conversation
from clips.errors import UserError
from clips.loader.invalid_samples import Invalid
from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, InvalidConversationError
from llava_bridge.data.sources import Samples, find_fault


class ConversationDataset(Dataset):
    """Samples as tokens and images, computed on access.

    An invalid sample is replaced by the next usable one; the item lists it under ``invalid_samples``.
    """

    def __init__(self, samples: Sequence[Conversation], chat: ConversationEncoder, max_length: int) -> None:
        chat.check_prompts()
        self.samples, self.chat, self.max_length = samples, chat, max_length

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
        except UserError as error:
            # without the image's name, so that samples with the same fault are counted together
            for where in (image.where() for image in sample.images):
                if str(error).startswith(f"{where}: "):
                    return index, f"{sample.name} ({where})", str(error).removeprefix(f"{where}: ")
            return index, sample.name, str(error)
        except InvalidConversationError as error:
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

        InvalidConversationError: the images do not match the text, the sample is too long, or an answer is empty.

        Raises:
            UserError: an image is missing or undecodable.
        """
        if fault := find_fault(sample):
            raise InvalidConversationError(fault)
        messages = [{"role": turn.role, "content": turn.content, "train": turn.trained} for turn in sample.turns]
        images = [image.open() for image in sample.images]
        encoded = self.chat.encode(messages, self.max_length, images)
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "images": images}


class ConversationCollator:
    """Items of :class:`ConversationDataset` to a batch for :class:`llava_bridge.training.loss.LlavaLoss`.

    Without ``packed_length`` each sample is padded to a row of its own. Otherwise several are packed into rows of so
    many tokens; ``math.inf`` packs all samples into one row, for FlashAttention, which gets their bounds.
    ``image_processor`` is None for an LLM without images.
    """

    def __init__(self, image_processor: Any, pad: int, packed_length: float | None = None) -> None:
        self.image_processor, self.pad, self.packed_length = image_processor, pad, packed_length
        self.read_features: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
        """Adds cached features to a batch (:class:`llava_bridge.training.setup.FeatureReader`)."""

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate items into a batch.

        ``input_ids`` and ``labels`` (R, T); ``supervised`` (K,), the positions, row after row, whose next token is
        supervised; for packed rows ``position_ids`` (R, T), and for a single row of all samples transformers' arguments
        for FlashAttention, ``cu_seq_lens_q`` (B + 1,) …; ``pixel_values`` (P, 3, S, S) in the order of their tokens;
        ``invalid_samples``, a list of `Invalid`. For a LLaVA with tiles ``pixel_values`` (P, N, 3, S, S), padded with
        zero tiles, and ``image_sizes``, P pairs of height and width. What the host needs to know of a batch is not in
        tensors, for which it would have to wait on a GPU.
        """
        lengths = [len(item["input_ids"]) for item in items]
        rows = [[index] for index in range(len(items))]
        if self.packed_length is not None:
            rows = pack_lengths(lengths, self.packed_length)
        # The token before a sample's first one may belong to another sample, so the first label is not supervised.
        labels = [[IGNORE_INDEX, *item["labels"][1:]] for item in items]
        batch: dict[str, Any] = {
            "input_ids": _padded_rows([item["input_ids"] for item in items], rows, self.pad),
            "labels": _padded_rows(labels, rows, IGNORE_INDEX),
            "invalid_samples": [skip for item in items for skip in item["invalid_samples"]],
        }
        batch["supervised"] = supervised_indices(batch["labels"])
        if self.packed_length is not None:
            batch["position_ids"] = _padded_rows([range(length) for length in lengths], rows, 0)
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


def _padded_rows(sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """The concatenated sequences of each row of indices, padded on the right."""
    joined = [torch.tensor([token for index in row for token in sequences[index]]) for row in rows]
    return pad_sequence(joined, batch_first=True, padding_value=value)


def supervised_indices(labels: Tensor) -> Tensor:
    """The positions (K,) in ``labels`` (R, T), row after row, whose next token is supervised."""
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    return (following != IGNORE_INDEX).flatten().nonzero()[:, 0]


# ---------------------------------------------------------------- the order
# The order of samples over all epochs of a stage is a pure function of the seed: a run that resumes from a checkpoint
# needs only the number of samples seen, ``skipped``. Source: `llava/train/llava_trainer.py` in haotian-liu/LLaVA
# (`LengthGroupedSampler`).


class RandomOrder(Sampler[int]):
    """``total`` sample indices: concatenated shuffled epochs, LLaVA's order in its first stage.

    The last step of an epoch is filled with the next one's first samples; LLaVA leaves it smaller. Of a resumed run
    the first ``skipped`` indices are -1, for a loader that drops them.
    """

    def __init__(self, samples: int, total: int, seed: int, skipped: int = 0) -> None:
        self.samples, self.total, self.seed, self.skipped = samples, total, seed, skipped

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        rng = torch.Generator().manual_seed(self.seed)
        yield from itertools.repeat(-1, self.skipped)
        for start in range(0, self.total, self.samples):
            epoch = torch.randperm(self.samples, generator=rng)
            yield from epoch[max(0, self.skipped - start) : self.total - start].tolist()


class LengthGroupedSampler(Sampler[int]):
    """``total`` sample indices: in each optimizer step samples with images or samples without, else at random.

    The first epoch equals LLaVA's ``group_by_modality_length``, index for index; its last one or two steps are mixed.
    Lengths determine only a sample's micro-batch within its step: all micro-batches of a step have about the same
    length, so that no process waits for another. Sorting more samples than those of one step would pad less, but steps
    of short answers would weigh as much as steps of long ones (docs/bridge.md). The last step of an epoch, even of a
    single one, is filled with random samples of the next epoch, which continues with the others; LLaVA leaves that step
    smaller.

    Args:
        sizes: whether each sample has images, and its length in any unit that grows with its tokens.
        batch_size: samples per optimizer step, over all processes.
        total: number of indices to return.
        seed: seed of all shuffling.
        micro_batches: per step, over all processes. The samples of a step do not depend on it.
        skipped: of a resumed run, as for `RandomOrder`.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[bool, int]],
        batch_size: int,
        total: int,
        seed: int,
        micro_batches: int = 1,
        skipped: int = 0,
    ) -> None:
        self.has_images = torch.tensor([has_images for has_images, _ in sizes], dtype=torch.bool)
        self.lengths = [length for _, length in sizes]
        self.batch_size, self.total = batch_size, total
        self.seed, self.micro_batches, self.skipped = seed, micro_batches, skipped

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        rng = torch.Generator().manual_seed(self.seed)
        yield from itertools.repeat(-1, self.skipped)
        samples = len(self.lengths)
        for start in range(0, self.total, samples):
            # The random choices, for a skipped epoch too, since the state of ``rng`` depends on them: milliseconds.
            missing = -start % self.batch_size  # samples of the step that the epoch before has begun
            first = torch.randperm(samples, generator=rng)[:missing] if missing else torch.tensor([], dtype=torch.int64)
            with_images, without = self.has_images.clone(), ~self.has_images
            with_images[first] = without[first] = False
            modalities = [mask.nonzero()[:, 0] for mask in (with_images, without)]
            orders = [torch.randperm(len(modality), generator=rng) for modality in modalities]
            is_mixed = all(len(modality) for modality in modalities)
            num_full = sum((len(modality) - 1) // self.batch_size for modality in modalities)
            order_of_full = torch.randperm(num_full, generator=rng).tolist() if is_mixed else []
            if start + samples <= self.skipped:
                continue

            # LLaVA's ``get_modality_length_grouped_indices``: steps of one modality, then the rest of both in one.
            of_modality = [
                modality[order].split(self.batch_size) for modality, order in zip(modalities, orders, strict=True)
            ]
            steps, rest = [step for modality in of_modality for step in modality], torch.tensor([], dtype=torch.int64)
            if is_mixed:
                full = [step for modality in of_modality for step in modality[:-1]]
                steps = [full[number] for number in order_of_full]
                rest = torch.cat([modality[-1] for modality in of_modality]).sort().values

            # Grouping by length takes seconds for a whole epoch, so that it is done when a step is read.
            end = start
            for step in (first, *steps, rest):
                begin, end = end, end + len(step)
                if end <= self.skipped or begin >= self.total:
                    continue
                indices = step.tolist() if step is first or step is rest else self.group_by_length(step.tolist())
                yield from indices[max(0, self.skipped - begin) : self.total - begin]

    def group_by_length(self, step: list[int]) -> list[int]:
        """A step of LLaVA's ``get_length_grouped_indices``: the longest first, in even micro-batches."""
        return self._in_even_chunks(sorted(step, key=lambda index: -self.lengths[index]))

    def _in_even_chunks(self, step: list[int]) -> list[int]:
        """LLaVA's ``split_to_even_chunks``: the longest sample first, each into the shortest micro-batch."""
        count = self.micro_batches
        if len(step) % count:
            return [index for chunk in range(count) for index in step[chunk::count]]
        chunks: list[list[int]] = [[] for _ in range(count)]
        lengths: list[float] = [0] * count
        for index in step:
            shortest = lengths.index(min(lengths))
            chunks[shortest].append(index)
            full = len(chunks[shortest]) == len(step) // count
            lengths[shortest] = math.inf if full else lengths[shortest] + self.lengths[index]
        return [index for chunk in chunks for index in chunk]
