"""What writes the captions: servers with OpenAI's chat API, or an image-text model of transformers on this machine."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clips.core.artifact import directory_hash
from clips.core.chat_client import FINISHED, ChatClient, ChatServerError, choices, image_request, token_counts
from clips.data.sources import Sample
from clips.errors import UserError, error_reason
from clips.model.loading import library_errors_as_user_errors, load_pretrained, merge_adapters
from clips.recaption.recaption_config import RecaptionConfig
from clips.text_files import read_json

CaptionsByIndex = dict[int, "list[GeneratedCaption] | str"]
"""Index of a sample → its captions, or the reason why there are none."""


@dataclasses.dataclass(frozen=True)
class GeneratedCaption:
    """The model's output for an image: its text, number of tokens, and whether it ends with EOS."""

    text: str
    tokens: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class PromptedImage:
    """A valid sample of the source with its decoded image and the text of its prompt."""

    index: int
    sample: Sample
    image: Image.Image
    text: str


class Captioner(Protocol):
    """Writes captions for windows of samples."""

    windows_ahead: int
    """Number of windows to submit before the first one's captions are awaited."""

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of all prompts so far, images included."""

    def submit(self, window: range, images: Sequence[PromptedImage]) -> Callable[[], CaptionsByIndex]:
        """Begin the captions of a window's valid samples; the function that is returned waits for them."""

    def identity(self) -> Mapping[str, Any]:
        """The manifest entry of the model."""


class ChatCaptioner:
    """Requests one caption per image; the servers batch the requests.

    Each sample has its own seed, and captions are stored in the order of the samples, so the output does not depend on
    the time or the replica of an answer, as far as the servers' own arithmetic does not.

    Raises:
        UserError: no server answers within ``retry_minutes``, or it has no such model.
    """

    windows_ahead = 1

    def __init__(self, config: RecaptionConfig) -> None:
        self.config = config
        self.client = ChatClient(
            urls=config.endpoint,
            key=os.environ.get(config.endpoint_key_env, ""),
            requests_in_flight=config.requests_in_flight,
            retry_seconds=60 * config.retry_minutes,
        )
        self.model = self.client.find_model(config.model)

    @property
    def prompt_tokens(self) -> int:
        """See `Captioner`."""
        return self.client.usage["prompt_tokens"]

    def submit(self, window: range, images: Sequence[PromptedImage]) -> Callable[[], CaptionsByIndex]:
        """See `Captioner`."""
        pending = {image.index: self.client.submit(self.make_request(image), replica=image.index) for image in images}
        return lambda: {index: self.read_captions(future) for index, future in pending.items()}

    def make_request(self, image: PromptedImage) -> dict[str, Any]:
        """The body of an image's request to a server with OpenAI's chat API."""
        seed = int(np.random.SeedSequence([self.config.seed, image.index]).generate_state(1)[0] >> 1)
        settings: dict[str, Any] = {"max_tokens": self.config.max_new_tokens, "temperature": self.config.temperature}
        if self.config.temperature:
            settings["top_p"] = self.config.top_p
        if self.config.num_captions > 1:
            settings["n"] = self.config.num_captions
        return image_request(self.config.model, [image.image], image.text, seed=seed, **settings)

    def read_captions(self, pending: concurrent.futures.Future[dict[str, Any]]) -> list[GeneratedCaption] | str:
        """The captions of a reply; the reason if the server rejects the image: one image does not stop all."""
        try:
            reply = pending.result()
            answers = choices(reply)
        except ChatServerError as error:
            if error.by_input:
                return f"rejected by the server ({error.status})"
            raise UserError(f"endpoint: {error}") from None
        if len(answers) != self.config.num_captions:  # transformers' server ignores the number
            raise UserError(
                f"num_captions: the server answers with {len(answers)}, expected {self.config.num_captions}"
            )
        written = token_counts(reply)["completion_tokens"]  # 0 of a server that does not count
        cut = sum(finish == "length" for _, finish in answers)
        # at `max_new_tokens` a caption ends as the config says; a server that is full or filters has not finished it
        whole = FINISHED if 0 < written < cut * self.config.max_new_tokens else FINISHED | {"length"}
        if unfinished := next((finish for _, finish in answers if finish not in whole), None):
            answers = [(text, finish) for text, finish in answers if finish in whole]
            if not answers:
                return f"not finished by the server ({unfinished})"
        tokens = written // len(answers)
        return [GeneratedCaption(text, tokens, ended=finish in FINISHED - {None}) for text, finish in answers]

    def identity(self) -> dict[str, Any]:
        """The manifest entry of the model, from the server's list of models."""
        described = {"path": self.config.model, "class": str(self.model.get("owned_by") or "server")}
        return described | {name: self.model[name] for name in ("root", "max_model_len") if self.model.get(name)}


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
        import torch
        from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor

        own_config = Path(config.model, "config.json")
        kind = read_json(own_config).get("model_type") if own_config.is_file() else None
        if kind is not None and kind not in CONFIG_MAPPING:
            raise UserError(
                f"import_modules: expected the module that registers {config.model}'s model_type '{kind}' with "
                "transformers, such as [llava_bridge]"
            )
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        supports_bf16 = device != "cpu" and torch.cuda.is_bf16_supported()
        uses_bf16 = config.precision == "bf16" or (config.precision == "auto" and supports_bf16)
        dtype = torch.bfloat16 if uses_bf16 else torch.float32
        what = f"model: {config.model}"
        loaded = load_pretrained(AutoModelForImageTextToText, Path(config.model), what, dtype=dtype)
        self.model = merge_adapters(loaded, Path(config.model)).to(device).eval()
        with library_errors_as_user_errors(f"{what}: its processor cannot be loaded"):
            self.processor = AutoProcessor.from_pretrained(config.model, trust_remote_code=False)
            self.tokenizer = self.processor.tokenizer
            if not self.model.config.is_encoder_decoder:
                self.tokenizer.padding_side = "left"  # so that all prompts end at the position where the output begins
            if self.tokenizer.pad_token_id is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        ends = (self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id)
        listed = [[end] if isinstance(end, int) else end for end in ends if end is not None]
        self.end_tokens: set[int] = set().union(*listed)

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
                described = self.describe([each.image for each in batch], [prompts[each.index] for each in batch], seed)
                generated |= {each.index: texts for each, texts in zip(batch, described, strict=True)}
            return generated

        return captions

    def describe(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seed: int
    ) -> list[list[GeneratedCaption]]:
        """Generate ``config.num_captions`` captions for each RGB image with its `prompt`.

        ``seed`` is that of the sampling: the same batch yields the same captions.
        """
        import torch

        config, bos = self.config, str(self.tokenizer.bos_token or "")
        inputs = self.processor(
            text=list(prompts),
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos and prompts[0].startswith(bos)),
        ).to(self.model.device, self.model.dtype)
        self.prompt_tokens += int(inputs["attention_mask"].sum())
        decoding: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if config.temperature:
            decoding = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
        torch.manual_seed(seed)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=config.max_new_tokens,
                num_return_sequences=config.num_captions,
                **decoding,
            )
        count, length = config.num_captions, inputs["input_ids"].shape[1]
        prompt_ids = inputs["input_ids"].repeat_interleave(count, dim=0)
        if self.model.config.is_encoder_decoder:
            output = output[:, 1:]  # without the decoder's start token, which is the EOS token in Florence-2
        elif output.shape[1] >= length and torch.equal(output[:, :length], prompt_ids):
            output = output[:, length:]
        captions = []
        for ids in output.tolist():
            end = next((index for index, token in enumerate(ids) if token in self.end_tokens), len(ids))
            text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
            captions.append(GeneratedCaption(text, min(end + 1, len(ids)), ended=end < len(ids)))
        return [captions[start : start + count] for start in range(0, len(captions), count)]

    def identity(self) -> dict[str, Any]:
        """The manifest entry of the model: its hash, or its commit on the Hub."""
        described: dict[str, Any] = {"path": self.config.model, "class": type(self.model).__name__}
        if Path(self.config.model).is_dir():
            return described | {"hash": directory_hash(self.config.model)}
        return described | {"commit": getattr(self.model.config, "_commit_hash", None)}
