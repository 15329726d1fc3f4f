"""Any image-text model of transformers, prompted with images in batches."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clips.core.artifact import directory_hash
from clips.errors import UserError, error_reason
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.recaption.captioning import CaptionsByIndex, GeneratedCaption, PromptedImage
from clips.recaption.recaption_config import RecaptionConfig


class CaptionModel:
    """A model with its processor, on this process's device.

    Raises:
        UserError: a module of ``import_modules`` is missing, or the model or its weights cannot be loaded.
    """

    windows_ahead = 0

    def __init__(self, config: RecaptionConfig) -> None:
        self.config, self.prompt_tokens = config, 0
        for name in config.import_modules:
            try:
                module = importlib.import_module(name)
            except ImportError as error:
                raise UserError(f"import_modules: cannot import '{name}' ({error_reason(error)})") from None
            if register := getattr(module, "register", None):  # as llava_bridge's, whose import alone is cheap
                register()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        supports_bf16 = device != "cpu" and torch.cuda.is_bf16_supported()
        uses_bf16 = config.precision == "bf16" or (config.precision == "auto" and supports_bf16)
        dtype = torch.bfloat16 if uses_bf16 else torch.float32
        what = f"model: {config.model}"
        loaded = load_pretrained(AutoModelForImageTextToText, Path(config.model), what, dtype=dtype)
        self.model = loaded.to(device).eval()
        with library_errors_as_user_errors(f"{what}: its processor cannot be loaded"):
            self.processor = AutoProcessor.from_pretrained(config.model)
            self.tokenizer = self.processor.tokenizer
            self.tokenizer.padding_side = "left"  # so that all prompts end at the position where the output begins
            if self.tokenizer.pad_token_id is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.end_tokens = _end_tokens(self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id)

    def prompt(self, text: str) -> str:
        """``text`` after one image, in the model's own template."""
        if getattr(self.processor, "chat_template", None) is None:
            return text
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def submit(self, window: range, images: Sequence[PromptedImage]) -> Callable[[], CaptionsByIndex]:
        """See `Captioner`; the captions are generated in batches of prompts of similar length."""

        def captions() -> CaptionsByIndex:
            prompts = {image.index: self.prompt(image.text) for image in images}
            in_order = sorted(images, key=lambda image: len(prompts[image.index]))
            generated: CaptionsByIndex = {}
            for start in range(0, len(in_order), self.config.batch_size):
                batch = in_order[start : start + self.config.batch_size]
                seed = int(np.random.SeedSequence([self.config.seed, window.start, start]).generate_state(1)[0])
                found = self.describe([each.image for each in batch], [prompts[each.index] for each in batch], seed)
                generated |= {each.index: texts for each, texts in zip(batch, found, strict=True)}
            return generated

        return captions

    @torch.inference_mode()
    def describe(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seed: int
    ) -> list[list[GeneratedCaption]]:
        """Generate ``config.num_captions`` captions for each image.

        Args:
            images: RGB.
            prompts: one per image, from `prompt`.
            seed: seed of the sampling: the same batch yields the same captions.
        """
        bos = str(self.tokenizer.bos_token or "")
        inputs = self.processor(
            text=list(prompts),
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos and prompts[0].startswith(bos)),
        ).to(self.model.device, self.model.dtype)
        self.prompt_tokens += int(inputs["attention_mask"].sum())
        torch.manual_seed(seed)
        output = self.model.generate(**inputs, **self._decoding())
        count, length = self.config.num_captions, inputs["input_ids"].shape[1]
        prompt_ids = inputs["input_ids"].repeat_interleave(count, dim=0)
        if output.shape[1] >= length and torch.equal(output[:, :length], prompt_ids):
            output = output[:, length:]  # decoders repeat the prompt, encoder-decoders do not
        captions = [self._decode(row) for row in output.tolist()]
        return [captions[start : start + count] for start in range(0, len(captions), count)]

    def _decoding(self) -> dict[str, Any]:
        common = {"max_new_tokens": self.config.max_new_tokens, "num_return_sequences": self.config.num_captions}
        if not self.config.temperature:
            return {**common, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampling = {"do_sample": True, "temperature": self.config.temperature, "top_p": self.config.top_p, "top_k": 0}
        return {**common, **sampling}

    def _decode(self, ids: list[int]) -> GeneratedCaption:
        end = next((index for index, token in enumerate(ids) if token in self.end_tokens), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return GeneratedCaption(text, min(end + 1, len(ids)), ended=end < len(ids))

    def identity(self) -> dict[str, Any]:
        """The manifest entry of the model: its hash, or its commit on the Hub."""
        found: dict[str, Any] = {"path": self.config.model, "class": type(self.model).__name__}
        if Path(self.config.model).is_dir():
            return found | {"hash": directory_hash(self.config.model)}
        return found | {"commit": getattr(self.model.config, "_commit_hash", None)}


def _end_tokens(*found: int | Sequence[int] | None) -> set[int]:
    return {
        token
        for end_tokens in found
        if end_tokens is not None
        for token in ([end_tokens] if isinstance(end_tokens, int) else end_tokens)
    }
