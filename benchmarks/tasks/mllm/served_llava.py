"""A LLaVA behind servers with OpenAI's chat API as a model of lmms-eval."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval.api.instance import Instance

from benchmarks.results.protocol import Entries
from benchmarks.tasks.mllm.llava_model import DEFAULT_NEW_TOKENS, LlavaBridgeModel, truncate_at_stop
from clips.commandline.progress import log_estimate
from clips.core.chat_client import ChatClient, ChatServerError, choices, data_url, image_request
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.run_config import RunConfig

_SAMPLING = ("temperature", "top_p")
_READ = 64  # questions whose images are in memory at the same time


def chat_client(config: RunConfig) -> ChatClient:
    """The client of a run's servers."""
    return ChatClient(
        urls=config.endpoint,
        key=os.environ.get(config.endpoint_key_env, ""),
        requests_in_flight=config.batch_size,
        retry_seconds=60 * config.retry_minutes,
    )


class ServedLlava(LlavaBridgeModel):
    """Asks servers, which batch the questions themselves; images are sent without loss, as PNG.

    Args:
        client: the servers' client.
        name: the model's name there.
        options: see `LlavaBridgeModel`.
    """

    def __init__(self, client: ChatClient, name: str, **options: Any) -> None:
        super().__init__(loaded=(None, None), **options)
        self.client, self.name = client, name
        self.seconds = 0.0  # that servers took for answers

    @property
    def device(self) -> Any:
        """Where lmms-eval's own tensors are."""
        return "cpu"

    def _answers(self, requests: Sequence[Instance]) -> Iterator[dict[int, str]]:
        started = time.monotonic()
        bodies = (
            body for start in range(0, len(requests), _READ) for body in self._bodies(requests[start : start + _READ])
        )
        pending = [self.client.submit(body, replica=number) for number, body in enumerate(bodies)]
        for number, (request, future) in enumerate(zip(requests, pending, strict=True)):
            try:
                text = choices(future.result())[0][0]
            except ChatServerError as error:  # an empty answer would count as a wrong one
                raise UserError(f"endpoint: {error} ({request.task_name}, question {request.doc_id})") from None
            yield {number: truncate_at_stop(text, request.args[1].get("until"))}
        self.seconds += time.monotonic() - started

    def _bodies(self, requests: Sequence[Instance]) -> Iterator[dict[str, Any]]:
        urls: dict[int, str] = {}  # of each image object
        for request, images in zip(requests, self._images_of(requests), strict=True):
            for image in images:
                urls[id(image)] = urls.get(id(image)) or data_url(image, "PNG")
            yield self._chat_request(request, [urls[id(image)] for image in images])

    def _chat_request(self, request: Instance, images: Sequence[str]) -> dict[str, Any]:
        text, settings = request.args[:2]
        decoding: dict[str, Any] = {
            "max_tokens": int(settings.get("max_new_tokens", DEFAULT_NEW_TOKENS)),
            "temperature": 0.0,
        }
        if settings.get("do_sample", bool(settings.get("temperature"))):
            decoding |= {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
        if (settings.get("num_beams") or 1) > 1:
            raise UserError(f"endpoint: {request.task_name} searches with beams, which OpenAI's chat API has not")
        return image_request(self.name, images, text, **decoding)

    def print_estimate(self, part: int, total: int, prices: tuple[float, float] | None) -> None:
        """Print what all ``total`` questions would take, from ``part`` of them, none of which was cached."""
        usage = self.client.usage
        log_estimate(
            part=part,
            total=total,
            seconds=self.seconds,
            tokens=(usage["prompt_tokens"], usage["completion_tokens"]),
            prices=prices,
            concurrent=("batch_size", self.batch_size),
        )

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Not supported: OpenAI's chat API returns no likelihood of a given answer."""
        raise UserError(f"endpoint: {requests[0].task_name} compares likelihoods; expected 'llava:' without endpoint")


def served_settings(name: str) -> Entries:
    """Protocol entries of a served model, whose server decides the rest."""
    return {"input_model": f"{name}, by a server with OpenAI's chat API", "precision": "as the server decides"}
