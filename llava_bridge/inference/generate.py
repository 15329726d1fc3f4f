"""Load a LLaVA directory and generate answers.

>>> model, processor = load_llava("runs/demo/llava/clips-tiny-s0")
>>> answer(model, processor, [image], ["Is there a dog in the image?"], max_new_tokens=8)
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clips.core.artifact import MANIFEST, read_manifest
from clips.data.images import InvalidImageError, to_rgb
from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained, merge_adapters
from llava_bridge.conversation import IMAGE, ConversationEncoder, Message
from llava_bridge.model.llava_checks import check_image_token, resolve_llava_dir
from llava_bridge.training.launch import log_rank0

ImageInput = Image.Image | Sequence[Image.Image] | None
"""The images of one prompt, of any mode."""


def load_llava(directory: str | Path, device: str | None = None, *, adapter: bool = True) -> tuple[Any, Any]:
    """Load (model, processor) from a LLaVA directory, ready to generate; its decoding is greedy by default.

    Args:
        directory: written by ``llava-bridge train``, or any LLaVA in the transformers format; or its Hub repo id, as
            for :func:`~clips.model_refs.resolve_model_dir`.
        device: None uses a GPU if available. The model runs in bfloat16 on a GPU, in float32 on CPU.
        adapter: add the unmerged adapter in its directory ``adapter``, if any.

    Raises:
        UserError: it is not a LLaVA directory, or weights are missing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from llava_bridge.model.build import state_image_tokens
    from llava_bridge.model.modeling_llava import register

    register()
    path = resolve_llava_dir(directory)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    model = load_pretrained(AutoModelForImageTextToText, path, f"{path}: this LLaVA", dtype=dtype)
    if adapter:
        model = merge_adapters(model, path)
    with library_errors_as_user_errors(f"{path}: the processor of this LLaVA cannot be loaded"):
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    check_image_token(processor.tokenizer, model.config, str(path))
    state_image_tokens(model.config, processor)
    if processor.tokenizer.pad_token is None:  # any token serves, because the mask excludes it
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        log_rank0(f"{path}: it has no chat template, so that prompts have that of Vicuna, which may not be its own")
    decoding = model.generation_config  # which may state sampling; lmms-eval's llava_hf switches it off, too
    decoding.do_sample, decoding.temperature, decoding.top_p, decoding.top_k = False, None, None, None
    if (path / MANIFEST).is_file() and read_manifest(path).get("projector") == "untrained":
        log_rank0(f"{path}: the projector is untrained, so that answers do not describe the image")
    return model.to(chosen).eval(), processor


def answer(
    model: Any,
    processor: Any,
    images: Sequence[ImageInput],
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """Answer each prompt about its image, greedily, in batches of similar length.

    Args:
        model: from :func:`load_llava`.
        processor: from :func:`load_llava`.
        images: for each prompt one image, several, or None, upright and on white as `clips.data.images.to_rgb` makes
            them. Prompts with the same image objects share their computation.
        prompts: the user's messages. Images precede the text unless it contains ``<image>``.
        max_new_tokens: maximum length of an answer.
        batch_size: prompts per batch.
        generation: other arguments of transformers' ``generate``, for instance ``do_sample=True``. With
            ``num_return_sequences=2`` each prompt has two answers, one after the other. With
            ``cache_implementation="static"`` transformers compiles the model on a GPU, once for each batch size and
            length: for long answers to prompts of equal length. Prompts with the same image then share nothing.

    Returns:
        The answers, in the order of the prompts.
    """
    generation |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return _ordered(iter_answer_batches(model, processor, images, prompts, **generation))


def iter_answer_batches(
    model: Any,
    processor: Any,
    images: Sequence[ImageInput],
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **generation: Any,
) -> Iterator[dict[int, str]]:
    """Like :func:`answer`, but yields each batch: indices of answers → answers."""
    conversations, image_lists = [], rgb_images(images)
    for prompt, own in zip(prompts, image_lists, strict=True):
        conversations.append([{"role": "user", "content": prepend_image_tokens(prompt, own)}])
    generation["max_new_tokens"] = max_new_tokens
    yield from _answer_batches(model, processor, image_lists, conversations, batch_size, generation)


def answer_conversations(
    model: Any,
    processor: Any,
    images: Sequence[ImageInput],
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """Like :func:`answer`, for conversations whose last message is the user's."""
    generation["max_new_tokens"] = max_new_tokens
    batches = _answer_batches(model, processor, images, conversations, batch_size, generation)
    return _ordered(batches)


def _ordered(batches: Iterator[dict[int, str]]) -> list[str]:
    answers = {index: text for batch in batches for index, text in batch.items()}
    return [answers[index] for index in range(len(answers))]


def _answer_batches(
    model: Any,
    processor: Any,
    images: Sequence[ImageInput],
    conversations: Sequence[Sequence[Message]],
    batch_size: int,
    generation: dict[str, Any],
) -> Iterator[dict[int, str]]:
    from llava_bridge.model.build import make_conversation_encoder

    chat = make_conversation_encoder(model, processor)
    image_lists = rgb_images(images)
    ids = [encode_prompt(chat, messages, own) for messages, own in zip(conversations, image_lists, strict=True)]
    settings = {"use_cache": True, **generation}  # overrides a trainer's setting in the config
    repeats = int(generation.get("num_return_sequences") or 1)

    def generate(rows: Sequence[int], inputs: dict[str, Any]) -> dict[int, str]:
        output = model.generate(**inputs, **settings)
        new_tokens = getattr(output, "sequences", output)[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        places = [row * repeats + number for row in rows for number in range(repeats)]
        return {place: text.strip() for place, text in zip(places, texts, strict=True)}

    # First the prompts that share their beginning. Beams would have to be copied with the cache, a dynamic one.
    remaining, prefixes = set(range(len(ids))), list[_Prefix]()
    if repeats == generation.get("num_beams", 1) == 1 and generation.get("cache_implementation") is None:
        prefixes = _find_shared_prefixes(ids, image_lists, chat.image_id)
    if prefixes and not shares_prefixes(model):
        prefixes = []
    for group in _batch_prefixes(prefixes, batch_size):
        group_images = [image for prefix in group for image in prefix.images]
        group_ids = [prefix.ids for prefix in group]
        with torch.inference_mode():
            cache = PrefixCache(model, prepare_generate_inputs(model, processor, group_ids, group_images))
        pairs = [(number, row) for number, prefix in enumerate(group) for row in prefix.rows]
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            suffixes = [ids[row][len(group[number].ids) :] for number, row in batch]
            padded = _left_padded(suffixes, processor.tokenizer.pad_token_id, model.device)
            with torch.inference_mode():
                answers = generate([row for _, row in batch], cache.inputs_for([number for number, _ in batch], padded))
            remaining -= set(answers)
            yield answers
        del cache  # before the next group needs its memory

    # Then the others, each with its own images.
    order = sorted(remaining, key=lambda row: len(ids[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        own = [image for row in rows for image in image_lists[row]]
        with torch.inference_mode():
            answers = generate(rows, prepare_generate_inputs(model, processor, [ids[row] for row in rows], own))
        yield answers


# ---------------------------------------------------------------- shared prefixes
# Prompts about the same image compute the image and the text before it once: the keys and values of a prefix are copied
# to each of its prompts. A row is then [padding, prefix, padding, question]; the attention mask excludes the padding,
# and positions are counted without it, so that every token's result equals that of a single prompt.


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """A common prefix of the prompts ``rows``: its tokens, up to the last one of the last image, and its images."""

    ids: list[int]
    images: Sequence[Image.Image]
    rows: list[int]


_SHARES_PREFIXES: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def shares_prefixes(model: Any) -> bool:
    """Whether the model answers two prompts with a shared prefix as it does alone, tried once for each loaded model.

    Not for LLMs with states or sliding windows in their cache, nor if a layer counts the padding in the middle of a
    row as positions, as MPT's biases of attention do.
    """
    if model not in _SHARES_PREFIXES:
        _SHARES_PREFIXES[model] = _try_sharing(model)
    return _SHARES_PREFIXES[model]


@torch.inference_mode()
def _try_sharing(model: Any) -> bool:
    from llava_bridge.model.build import computing_in_float32, without_flash_attention

    image = model.config.image_token_id
    usable = [token for token in range(1, 40) if token != image][:20]
    prefixes, suffixes = [usable[:6], usable[6:9]], [usable[9:11], usable[11:16]]
    once = {"max_new_tokens": 1, "use_cache": True, "return_dict_in_generate": True, "output_logits": True}
    once |= {"num_beams": 1, "do_sample": False}

    def logits(inputs: dict[str, Any]) -> Tensor:
        return model.generate(**inputs, **once).logits[0].float()

    with computing_in_float32(model), without_flash_attention(model.model.language_model):
        cache = PrefixCache(model, _left_padded(prefixes, usable[0], model.device))
        if not cache.can_be_shared:
            return False
        together = logits(cache.inputs_for([0, 1], _left_padded(suffixes, usable[0], model.device)))
        alone = [
            logits(_left_padded([[*prefix, *suffix]], usable[0], model.device))
            for prefix, suffix in zip(prefixes, suffixes, strict=True)
        ]
    return torch.allclose(together, torch.cat(alone), atol=1e-4, rtol=1e-3)


def _find_shared_prefixes(
    ids: Sequence[Sequence[int]], images: Sequence[Sequence[Image.Image]], image_id: int
) -> list[_Prefix]:
    """The prefixes that at least two of the prompts share, by their tokens and images (by identity)."""
    prefixes: dict[Any, _Prefix] = {}
    for row, (tokens, own) in enumerate(zip(ids, images, strict=True)):
        end = max((position + 1 for position, token in enumerate(tokens) if token == image_id), default=0)
        if 0 < end < len(tokens):
            key = (tuple(map(id, own)), tuple(tokens[:end]))
            prefixes.setdefault(key, _Prefix(list(tokens[:end]), own, [])).rows.append(row)
    return [prefix for prefix in prefixes.values() if len(prefix.rows) > 1]


def _batch_prefixes(prefixes: Sequence[_Prefix], batch_size: int) -> Iterator[list[_Prefix]]:
    """Batches of at most ``batch_size`` prefixes of similar length, each for at least one batch of prompts."""
    batch: list[_Prefix] = []
    for prefix in sorted(prefixes, key=lambda each: len(each.ids)):
        batch.append(prefix)
        # batches with shared prefixes need less memory: a quarter of it is used for more prefixes
        enough = sum(len(each.rows) for each in batch) >= batch_size and len(batch) >= batch_size // 4
        if enough or len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


class PrefixCache:
    """The keys and values of some prefixes (P, L), padded on the left, and their pixels."""

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self.ids, self.mask = inputs["input_ids"], inputs["attention_mask"]
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.cache = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1).past_key_values

    @property
    def can_be_shared(self) -> bool:
        """Whether the cache has only keys and values of every token, no states and no sliding windows."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        return type(self.cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def inputs_for(self, prefixes: Sequence[int], suffixes: dict[str, Tensor]) -> dict[str, Any]:
        """The inputs of ``model.generate`` for prompts of these prefixes (B,) and other tokens (B, R), padded left."""
        indices = torch.tensor(prefixes, device=self.ids.device)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # selecting replaces tensors, not contents
        cache.batch_select_indices(indices)
        return {
            "input_ids": torch.cat([self.ids[indices], suffixes["input_ids"]], dim=1),
            "attention_mask": torch.cat([self.mask[indices], suffixes["attention_mask"]], dim=1),
            "past_key_values": cache,
        }


# ---------------------------------------------------------------- prompts and their images


def encode_prompt(chat: ConversationEncoder, messages: Sequence[Message], images: Sequence[Image.Image]) -> list[int]:
    """The tokens of a conversation before the next answer.

    Raises:
        UserError: the numbers of images and ``<image>`` tokens differ, or the chat template rejects the messages.
    """
    with library_errors_as_user_errors("the LLM's chat template does not support this conversation"):
        ids = chat.prompt_ids(messages, images)
    check_image_tokens(chat, ids, images)
    return ids


def check_image_tokens(chat: ConversationEncoder, ids: Sequence[int], images: Sequence[Image.Image]) -> None:
    """Raise UserError unless ``ids`` have the tokens of all ``images``."""
    if ids.count(chat.image_id) != sum(chat.num_image_tokens(images)):
        raise UserError(f"a prompt has {len(images)} images but not as many {IMAGE} tokens")


def prepare_generate_inputs(
    model: Any, processor: Any, ids: Sequence[Sequence[int]], images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    """The inputs of ``model.generate``: prompts padded on the left to (B, L), all images in order (P, 3, S, S).

    For a LLaVA with tiles, images are (P, N, 3, S, S), with ``image_sizes`` (P, 2).
    """
    tokens = _left_padded(ids, processor.tokenizer.pad_token_id, model.device)
    return tokens | preprocess_images(images, processor, model)


def prepend_image_tokens(prompt: str, images: Sequence[Any]) -> str:
    """``prompt`` with one ``<image>`` line per image before it, unless it contains them already."""
    return prompt if IMAGE in prompt else f"{IMAGE}\n" * len(images) + prompt


def context_length(model: Any) -> int:
    """Maximum number of tokens of a conversation with its answer."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def rgb_images(images: Sequence[ImageInput]) -> list[list[Image.Image]]:
    """The images of each prompt as `clips.data.images.to_rgb` makes them, the same object once.

    Raises:
        UserError: one is invalid.
    """
    read: dict[int, Image.Image] = {}

    def rgb(image: Image.Image, prompt: int) -> Image.Image:
        if id(image) not in read:
            try:
                read[id(image)] = to_rgb(image)
            except InvalidImageError as error:
                raise UserError(f"images[{prompt}]: {error}") from None
        return read[id(image)]

    lists = [[] if each is None else [each] if isinstance(each, Image.Image) else each for each in images]
    return [[rgb(image, prompt) for image in own] for prompt, own in enumerate(lists)]


def _left_padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    length = max(map(len, ids))
    rows = [[pad] * (length - len(row)) + list(row) for row in ids]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in ids]
    return {"input_ids": torch.tensor(rows, device=device), "attention_mask": torch.tensor(mask, device=device)}


def preprocess_images(images: Sequence[Image.Image], processor: Any, model: Any) -> dict[str, Tensor]:
    """The image inputs of :func:`prepare_generate_inputs`, of RGB images; empty without images."""
    if not images:
        return {}
    inputs = processor.image_processor(list(images), return_tensors="pt")
    return {**inputs, "pixel_values": inputs["pixel_values"].to(model.device, model.dtype)}
