"""Load a LLaVA directory and generate answers.

>>> model, processor = load_llava("runs/demo/llava/clips-s0")
>>> answer(model, processor, [image], ["Is there a dog in the picture?"], max_new_tokens=8)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from llava_bridge.conversation import IMAGE, ConversationEncoder, Message
from llava_bridge.inference.directory import resolve_llava_dir
from llava_bridge.inference.prefix_cache import Prefix, PrefixCache, batch_prefixes, find_shared_prefixes
from llava_bridge.training.lora import ADAPTER_DIR, load_adapter

Pictures = Image.Image | Sequence[Image.Image] | None


def load_llava(directory: str | Path, device: str | None = None, *, adapter: bool = True) -> tuple[Any, Any]:
    """Load (model, processor) from a LLaVA directory, ready to generate.

    Args:
        directory: written by ``llava-bridge train``, or any LLaVA in transformers' layout; or its name on the Hub, as
            of :func:`~clips.model_refs.resolve_model_dir`.
        device: None takes the GPU if there is one, where the model runs in bfloat16; on CPU in float32.
        adapter: add the unmerged adapter in its directory ``adapter``, if any.

    Raises:
        UserError: it is not a LLaVA directory, or weights are missing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = resolve_llava_dir(directory)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    model = load_pretrained(AutoModelForImageTextToText, path, f"{path}: this LLaVA", dtype=dtype)
    if adapter and (path / ADAPTER_DIR).is_dir():
        with library_errors_as_user_errors(f"{path / ADAPTER_DIR}: these adapters do not fit the model"):
            model = load_adapter(model, path / ADAPTER_DIR)
    with library_errors_as_user_errors(f"{path}: the processor of this LLaVA cannot be loaded"):
        processor = AutoProcessor.from_pretrained(path)
    return model.to(chosen).eval(), processor


def answer(
    model: Any,
    processor: Any,
    images: Sequence[Pictures],
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """Answer each prompt about its image, greedily, in batches of similar length.

    Args:
        model: from :func:`load_llava`.
        processor: from :func:`load_llava`.
        images: for each prompt one image, several, or None. Prompts with the same image objects share their
            computation.
        prompts: the user's messages. Images precede the text unless it contains ``<image>``.
        max_new_tokens: maximum length of an answer.
        batch_size: prompts per batch.
        generation: other arguments of transformers' ``generate``, for instance ``do_sample=True``.

    Returns:
        The answers, in the order of the prompts.
    """
    generation |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return _in_order(len(prompts), iter_answer_batches(model, processor, images, prompts, **generation))


def iter_answer_batches(
    model: Any,
    processor: Any,
    images: Sequence[Pictures],
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **generation: Any,
) -> Iterator[dict[int, str]]:
    """Like :func:`answer`, but yields each batch: prompt indices → answers."""
    conversations = [[{"role": "user", "content": prepend_image_tokens(prompt, to_image_list(image))}]
                     for prompt, image in zip(prompts, images, strict=True)]  # fmt: skip
    generation["max_new_tokens"] = max_new_tokens
    yield from _answered(model, processor, images, conversations, batch_size, generation)


def answer_conversations(
    model: Any,
    processor: Any,
    images: Sequence[Pictures],
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """Like :func:`answer`, for conversations whose last message is the user's."""
    generation["max_new_tokens"] = max_new_tokens
    return _in_order(len(conversations), _answered(model, processor, images, conversations, batch_size, generation))


def _in_order(count: int, batches: Iterator[dict[int, str]]) -> list[str]:
    answers = {place: text for batch in batches for place, text in batch.items()}
    return [answers[place] for place in range(count)]


def _answered(
    model: Any,
    processor: Any,
    images: Sequence[Pictures],
    conversations: Sequence[Sequence[Message]],
    batch_size: int,
    generation: dict[str, Any],
) -> Iterator[dict[int, str]]:
    from llava_bridge.model.build import make_conversation_encoder

    chat = make_conversation_encoder(model, processor)
    pictures = [to_image_list(image) for image in images]
    ids = [encode_prompt(chat, messages, own) for messages, own in zip(conversations, pictures, strict=True)]
    asked = _Asked(model, processor, ids, pictures, generation)
    alone = set(range(len(ids)))
    for prefixes in batch_prefixes(find_shared_prefixes(ids, pictures, chat.image_id), batch_size):
        for batch in asked.with_prefixes(prefixes, batch_size):
            alone -= set(batch)
            yield batch
    order = sorted(alone, key=lambda row: len(ids[row]))
    for start in range(0, len(order), batch_size):
        yield asked.one_by_one(order[start : start + batch_size])


class _Asked:
    """Prompts that are to be answered.

    Args:
        model: the LLaVA.
        processor: its processor.
        ids: each prompt's tokens.
        pictures: each prompt's images.
        generation: settings of ``generate``.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        ids: Sequence[Sequence[int]],
        pictures: Sequence[Sequence[Image.Image]],
        generation: dict[str, Any],
    ) -> None:
        self.model, self.processor = model, processor
        self.ids, self.pictures = ids, pictures
        self.generation = {
            "use_cache": True,
            **generation,
        }  # otherwise a trainer's settings in the config would be used
        self.can_share = generation.get("num_beams", 1) == 1  # beams would have to be copied with the cache

    @torch.inference_mode()
    def one_by_one(self, rows: Sequence[int]) -> dict[int, str]:
        """The answers to a batch of prompts, each with its own images."""
        shown = [image for row in rows for image in self.pictures[row]]
        return self._generate(
            rows, prepare_generate_inputs(self.model, self.processor, [self.ids[row] for row in rows], shown)
        )

    def with_prefixes(self, prefixes: Sequence[Prefix], batch_size: int) -> Iterator[dict[int, str]]:
        """The answers to all prompts with shared prefixes; None if this LLM's cache cannot be shared."""
        computed = self._compute(prefixes) if self.can_share else None
        if computed is None or not computed.can_be_shared:
            self.can_share = False
            return
        places = [(place, row) for place, prefix in enumerate(prefixes) for row in prefix.rows]
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            rest = [self.ids[row][len(prefixes[place].ids) :] for place, row in batch]
            following = _left_padded(rest, self.processor.tokenizer.pad_token_id, self.model.device)
            with torch.inference_mode():
                inputs = computed.inputs_for([place for place, _ in batch], following)
                found = self._generate([row for _, row in batch], inputs)
            yield found

    @torch.inference_mode()
    def _compute(self, prefixes: Sequence[Prefix]) -> PrefixCache:
        shown = [image for prefix in prefixes for image in prefix.pictures]
        begun = [prefix.ids for prefix in prefixes]
        return PrefixCache(self.model, prepare_generate_inputs(self.model, self.processor, begun, shown))

    def _generate(self, rows: Sequence[int], inputs: dict[str, Any]) -> dict[int, str]:
        made = self.model.generate(**inputs, **self.generation)
        texts = self.processor.tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {row: text.strip() for row, text in zip(rows, texts, strict=True)}


def encode_prompt(chat: ConversationEncoder, messages: Sequence[Message], pictures: Sequence[Image.Image]) -> list[int]:
    """The tokens of a conversation up to where the next answer begins.

    Raises:
        UserError: the messages have not one ``<image>`` for each of the images, or the chat template rejects them.
    """
    with library_errors_as_user_errors("this conversation does not suit the LLM's chat template"):
        text = chat.prompt(messages, pictures)
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids.count(chat.image_id) != sum(chat.tokens_of(pictures)):
        raise UserError(f"a prompt has {len(pictures)} images but not as many {IMAGE} marks")
    return ids


def prepare_generate_inputs(
    model: Any, processor: Any, ids: Sequence[Sequence[int]], pictures: Sequence[Image.Image]
) -> dict[str, Tensor]:
    """What ``model.generate`` reads: prompts padded on the left to (B, L), all their images in order (P, 3, S, S).

    For a LLaVA with tiles images are (P, N, 3, S, S), and there are ``image_sizes`` (P, 2).
    """
    return _left_padded(ids, processor.tokenizer.pad_token_id, model.device) | preprocess_images(
        pictures, processor, model
    )


def prepend_image_tokens(prompt: str, pictures: Sequence[Any]) -> str:
    """``prompt`` with one ``<image>`` line per image before it, unless it contains them already."""
    return prompt if IMAGE in prompt else f"{IMAGE}\n" * len(pictures) + prompt


def to_image_list(pictures: Pictures) -> list[Image.Image]:
    """The images of one prompt."""
    if pictures is None:
        return []
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


def _left_padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    length = max(map(len, ids))
    rows = [[pad] * (length - len(row)) + list(row) for row in ids]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in ids]
    return {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def preprocess_images(pictures: Sequence[Image.Image], processor: Any, model: Any) -> dict[str, Tensor]:
    """The LLaVA's image inputs, as of :func:`prepare_generate_inputs`; empty if there are no images."""
    if not pictures:
        return {}
    rgb = [image.convert("RGB") for image in pictures]
    shown = processor.image_processor(rgb, return_tensors="pt")
    return {**shown, "pixel_values": shown["pixel_values"].to(model.device, model.dtype)}
