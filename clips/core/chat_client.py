"""Requests to servers with OpenAI's chat API (vLLM, SGLang, ``llava-bridge serve``), many at once, with retries.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from clips.errors import UserError
from clips.safe_text import log_info
from clips.text_files import safe_json_loads

if TYPE_CHECKING:
    import httpx
    from PIL import Image

Value = TypeVar("Value")
_CONNECT_SECONDS = 10.0
_RETRY_STATUS = {408, 409, 429, 500, 502, 503, 504, 529}  # those that OpenAI's own client retries, and overload
_FIRST_DELAY, _MAX_DELAY = 1.0, 30.0  # seconds
_INPUT_FAILURES = 5
"""After so many failures of a request, others answered between them, its input is at fault and not the server."""
REASONING_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))
"""What models write around their reasoning, unless the server takes it out of the answer."""
_START = threading.Lock()  # several threads of a caller may send the first requests


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The loop of all clients of this process; its thread ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="chat requests", daemon=True).start()
    return loop


class ChatServerError(Exception):
    """A request without an answer, after all retries; one line with the URL."""

    def __init__(self, message: str, status: int | None = None, *, by_input: bool = False) -> None:
        super().__init__(message)
        self.status = status  # of HTTP; None without a valid reply
        self.by_input = by_input  # the server answers other requests, and not this image or prompt


@dataclasses.dataclass(kw_only=True)
class ChatClient:
    """Sends requests to replicas of one model, from a thread with an event loop.

    Args:
        urls: base URLs such as ``http://host:8000/v1``, one per replica; requests are spread over them, and a failed
            one is sent to the next. ``/chat/completions`` may be included.
        key: the API key; empty if the servers need none.
        requests_in_flight: maximum number of concurrent requests.
        timeout: seconds until a request's answer must be complete.
        retry_seconds: how long a request is repeated while no replica answers it; 0 tries each replica once.
    """

    urls: Sequence[str]
    key: str = ""
    requests_in_flight: int = 64
    timeout: float = 600.0
    retry_seconds: float = 0.0
    usage: Counter[str] = dataclasses.field(init=False, default_factory=Counter)
    """``prompt_tokens`` and ``completion_tokens`` of all replies so far, as the servers count them."""

    def __post_init__(self) -> None:
        self._reported = set[tuple[str, int | None]]()  # URLs with the status of a failure that has been logged
        self._last_answer = -math.inf  # the time of it

    def submit(self, request: Mapping[str, Any], replica: int = 0) -> concurrent.futures.Future[dict[str, Any]]:
        """Send a chat completion request; the future's result is the reply's JSON.

        The ``replica`` is tried first, modulo their number. The future raises ChatServerError if the server rejects the
        request or no server answers it.
        """

        async def limited() -> dict[str, Any]:
            async with self._slots:
                return await self._request("POST", "chat/completions", request, replica)

        return self._run(limited())

    def find_model(self, name: str) -> dict[str, Any]:
        """What the server says of a model.

        Raises:
            UserError: no server answers, it has no such model, or another replica has another one of this name.
        """
        try:
            models = {str(model["id"]): model for model in self.models()}
        except ChatServerError as error:
            raise UserError(f"endpoint: {error}") from None
        if name not in models:
            raise UserError(f"model: {self.urls[0]} has no '{name}'; expected {' or '.join(models) or 'none'}")
        entry = models[name]
        for url in self.urls if len(self.urls) > 1 else ():
            with contextlib.suppress(ChatServerError):  # one that is down is left out
                for each in dataclasses.replace(self, urls=[url], retry_seconds=0.0).models():
                    text = f"endpoint: the replicas have {entry.get('root')} and {each.get('root')} as '{name}'"
                    if str(each["id"]) == name and is_other_model(entry.get("root"), each.get("root"), text):
                        raise UserError(f"{text}; expected the same model")
        return entry

    def identify_model(self, name: str) -> str:
        """A model's name and its ``root`` there, if any: vLLM states a path, ``llava-bridge serve`` a hash."""
        root = str(self.find_model(name).get("root") or "")
        return f"{name} of a server" + (f" ({root})" if root and root != name else "")

    def models(self) -> list[dict[str, Any]]:
        """The entries of ``GET /models`` of the first replica that answers.

        Raises:
            ChatServerError: no replica answers, or not as OpenAI's API does.
        """
        reply = self._run(self._request("GET", "models", None, 0)).result()
        models = reply.get("data")
        if not isinstance(models, list) or not all(isinstance(model, dict) and "id" in model for model in models):
            raise ChatServerError(f"{self.urls[0]} does not list its models as OpenAI's API does")
        return models

    @functools.cached_property
    def _slots(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.requests_in_flight)

    @functools.cached_property
    def _http(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),  # else it would limit each wait for some bytes
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),  # nothing to close at the end
        )

    def _run(self, work: Coroutine[Any, Any, Value]) -> concurrent.futures.Future[Value]:
        with _START:
            loop = _event_loop()
        return asyncio.run_coroutine_threadsafe(work, loop)

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None, replica: int) -> dict[str, Any]:
        """The reply of the first replica that answers; each is tried, then all again after a growing delay.

        A request to which all of them answer 500 while others are answered (vLLM's reply to some images) is given up.
        Answers before its first failure prove nothing: the servers may have failed since.
        """
        deadline, delay = time.monotonic() + self.retry_seconds, _FIRST_DELAY
        failed, input_failures = -math.inf, 0
        while True:
            errors: list[TemporaryError] = []
            for offset in range(len(self.urls)):
                base = self.urls[(replica + offset) % len(self.urls)].rstrip("/").removesuffix("/chat/completions")
                try:
                    reply = await self.send_once(method, base, path, body)
                except TemporaryError as error:
                    errors.append(error)
                else:
                    self._last_answer = time.monotonic()
                    self.usage.update(token_counts(reply))
                    return reply
            reason, status = str(errors[-1]), errors[-1].status
            internal = all(error.status == HTTPStatus.INTERNAL_SERVER_ERROR for error in errors)
            input_failures += internal and self._last_answer > failed
            failed = time.monotonic()
            if failed >= deadline or input_failures == _INPUT_FAILURES:
                raise ChatServerError(reason, status, by_input=internal and input_failures > 1)
            if (base, status) not in self._reported:
                self._reported.add((base, status))
                log_info(f"{reason}; requests are repeated for up to {self.retry_seconds / 60:.3g} minutes")
            wait = max(delay * random.uniform(0.75, 1.0), *(error.retry_after for error in errors))  # not in step
            await asyncio.sleep(min(wait, deadline - failed))
            delay = min(2 * delay, _MAX_DELAY)

    async def send_once(self, method: str, base: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send a request without a second try and return the reply's JSON.

        Raises:
            ChatServerError: the server cannot be reached, or rejects it.
        """
        import httpx

        try:
            async with asyncio.timeout(self.timeout):
                reply = await self._http.request(method, f"{base}/{path}", json=body)
        except httpx.InvalidURL as error:
            raise ChatServerError(f"{base} is not a valid URL ({error})") from None
        except (httpx.HTTPError, TimeoutError) as error:
            # the error's name in a few words: the libraries' own texts are paragraphs
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower().removesuffix(" error")
            raise TemporaryError(f"{base} cannot be reached ({name})") from None
        status, content = int(reply.status_code), None
        with contextlib.suppress(ValueError):
            content = safe_json_loads(reply.content)  # half an emoji could not be written to a file
        if status == HTTPStatus.OK and isinstance(content, dict) and content.get("error") and "choices" not in content:
            stated = content["error"].get("code") if isinstance(content["error"], dict) else None  # as routers answer
            is_status = isinstance(stated, int) and HTTPStatus.BAD_REQUEST <= stated < 600
            status = int(stated) if stated and is_status else int(HTTPStatus.SERVICE_UNAVAILABLE)
        if status != HTTPStatus.OK:
            reason = " ".join(reply.text.split())[:120] or reply.reason_phrase or "no reason"
            message = f"{base} answers {reply.status_code} ({reason})"
            if status in _RETRY_STATUS:
                wait = reply.headers.get("retry-after", "")
                wait = min(float(wait), _MAX_DELAY) if re.fullmatch(r"\d+(\.\d+)?", wait) else 0.0  # it may be a date
                raise TemporaryError(message, status, wait)
            raise ChatServerError(message, status, by_input=status in _UNUSABLE_INPUT)
        if not isinstance(content, dict):
            raise ChatServerError(f"{base} does not answer as OpenAI's chat API does")
        choices_of_reply = content.get("choices")
        for choice in choices_of_reply if isinstance(choices_of_reply, list) else ():
            if isinstance(choice, dict) and str(choice.get("finish_reason")) in _BROKEN_OFF:
                raise TemporaryError(f"{base} breaks off an answer ({choice['finish_reason']})")
        return content


FINISHED = {None, "stop", "eos_token", "stop_sequence", "end_turn"}
"""Finish reasons of a whole answer, of OpenAI's API and of text-generation-inference; None where a server has none."""
_BROKEN_OFF = {"abort", "error"}
"""Finish reasons, with status 200, of a part of an answer: of vLLM when it shuts down, and of routers."""
_UNUSABLE_INPUT = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
"""The statuses by which a server rejects an image or its prompt, not every request."""


class TemporaryError(ChatServerError):
    """A failure of which a later request may be free: a busy server, or a lost connection."""

    def __init__(self, message: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


def is_other_model(root: Any, other: Any, text: str) -> bool:
    """Whether two hashes that servers state of a model differ; of paths, as vLLM states them, ``text`` is logged."""
    if None in (root, other) or root == other:
        return False
    if "/" not in f"{root}{other}":
        return True
    log_info(f"{text}; both must be the same model")  # a path may be another one on each machine
    return False


def image_request(model: str, images: Sequence[Image.Image | str], text: str, **settings: Any) -> dict[str, Any]:
    """A request with images and a text.

    Args:
        model: the model's name at the server.
        images: in order, before the text; sent as JPEG of quality 95, or as their `data_url`.
        text: the user's text.
        settings: fields of the request, such as ``max_tokens``.
    """
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    content = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **settings}


def data_url(image: Image.Image, kind: str = "JPEG") -> str:
    """An image as a URL: a JPEG of quality 95, or a PNG, of which less compression takes a quarter of the time."""
    from clips.data.images import to_rgb

    stream = io.BytesIO()
    to_rgb(image).save(stream, kind, quality=95, compress_level=1)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def choices(reply: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(text, finish reason) of each choice of a reply. Raises ChatServerError if it has none, or one is no text."""
    try:
        answers = [(each["message"]["content"] or "", each.get("finish_reason")) for each in reply["choices"]]
    except (KeyError, TypeError, AttributeError):
        answers = []
    if not answers:
        raise ChatServerError("the server does not answer as OpenAI's chat API does: a reply without choices")
    if other := next((text for text, _ in answers if not isinstance(text, str)), None):  # some send a list of parts
        raise ChatServerError(f"the server does not answer as OpenAI's chat API does: {other!r:.60} is no text")
    return [(text.strip(), finish) for text, finish in answers]


def without_reasoning(text: str) -> str:
    """What a model says after its reasoning, whose first tag its prompt may have; "" if the reasoning does not end."""
    for start, end in REASONING_TAGS:
        text = "" if start in text and end not in text else text.rpartition(end)[2]
    return text.strip()


def token_counts(reply: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of tokens of a reply's prompt and of its choices together; 0 if the server does not state them."""
    usage = reply.get("usage")
    stated = usage if isinstance(usage, dict) else {}
    return {name: int(stated.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}


def check_urls(field: str, urls: Sequence[str]) -> None:
    """Check the URLs of servers.

    Raises:
        UserError: one is no http(s) URL.
    """
    for url in urls:
        if not re.match(r"https?://[^/\s]+", url):
            raise UserError(f"{field}: expected a URL such as http://127.0.0.1:8000/v1, got '{url}'")
