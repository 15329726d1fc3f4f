"""Captions by a model behind servers with OpenAI's chat API."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clips.core.chat_client import ChatClient, ChatServerError, choices, image_request, token_counts
from clips.errors import UserError
from clips.recaption.captioning import CaptionsByIndex, GeneratedCaption, PromptedImage
from clips.recaption.recaption_config import RecaptionConfig


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
        pending = {image.index: self.client.submit(self._request(image), replica=image.index) for image in images}
        return lambda: {index: self._captions(future) for index, future in pending.items()}

    def _request(self, image: PromptedImage) -> dict[str, Any]:
        """The request of an image's captions."""
        seed = int(np.random.SeedSequence([self.config.seed, image.index]).generate_state(1)[0] >> 1)
        settings: dict[str, Any] = {"max_tokens": self.config.max_new_tokens, "temperature": self.config.temperature}
        if self.config.temperature:
            settings["top_p"] = self.config.top_p
        if self.config.num_captions > 1:
            settings["n"] = self.config.num_captions
        return image_request(self.config.model, [image.image], image.text, seed=seed, **settings)

    def _captions(self, pending: concurrent.futures.Future[dict[str, Any]]) -> list[GeneratedCaption] | str:
        """The captions of a reply; the reason if the server rejects, or fails at, the image or its prompt.

        Raises:
            UserError: the server rejects or fails at any request, or none answers.
        """
        try:
            reply = pending.result()
            found = choices(reply)
        except ChatServerError as error:
            if error.by_input:
                return f"rejected by the server ({error.status})"
            raise UserError(f"endpoint: {error}") from None
        if len(found) != self.config.num_captions:  # transformers' server ignores the number
            raise UserError(f"num_captions: the server answers with {len(found)}, expected {self.config.num_captions}")
        tokens = token_counts(reply)["completion_tokens"] // len(found)
        return [GeneratedCaption(text, tokens, ended=finish == "stop") for text, finish in found]

    def identity(self) -> dict[str, Any]:
        """The manifest entry of the model, from the server's list of models."""
        found = {"path": self.config.model, "class": str(self.model.get("owned_by") or "server")}
        return found | {name: self.model[name] for name in ("root", "max_model_len") if self.model.get(name)}
