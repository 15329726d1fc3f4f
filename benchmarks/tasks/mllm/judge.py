"""A judge: a model that grades answers, behind any OpenAI-compatible URL, with cached replies.

lmms-eval's scorers retry for minutes and then count an ungraded answer as wrong: an unreachable judge looks like a bad
model. Here a failing judge ends the scoring immediately (``JudgeUnavailable``), and the metric is absent.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from clips.core.cache import Cache
from clips.core.chat_client import ChatClient, ChatServerError, choices, without_reasoning
from clips.core.identity import digest

OPENAI_URL = "https://api.openai.com/v1"
NO_JUDGE = "no judge"
_REPLY_SECONDS = 120.0
_RETRY_SECONDS = 5.0


class JudgeUnavailable(BaseException):
    """The judge returns no grades. It is no ``Exception``, because it must pass every handler in the scorers."""


@dataclass(frozen=True, kw_only=True)
class ReplyFormat:
    """The grade format that a scorer can read."""

    expected: str  # as text, for the error message
    readable: Callable[[str], bool]  # whether the scorer can read a reply


@dataclass(kw_only=True)
class Judge:
    """A model behind an OpenAI-compatible URL."""

    url: str  # ``https://host/v1``; ``/chat/completions`` is added if it is missing
    model: str | None  # its name; None for the name that the scorer requests
    key: str  # the API key; empty if the server needs none
    cache: Cache[Any]  # the replies, keyed by a hash of the request without the URL
    reply_format: ReplyFormat  # the grade format that the scorer can read
    names: set[str] = field(default_factory=set)  # the models that answered, for the protocol

    @property
    def name(self) -> str:
        """The names of the judging models, for the protocol; empty without requests."""
        return ", ".join(sorted(self.names))

    @functools.cached_property
    def _client(self) -> ChatClient:
        return ChatClient(urls=[self.url], key=self.key, timeout=_REPLY_SECONDS, retry_seconds=_RETRY_SECONDS)

    def ask(self, payload: Mapping[str, Any]) -> tuple[str, str]:
        """(reply with a grade, name of its model) to a request of the chat API.

        Raises JudgeUnavailable: no API key, an unreachable server, a rejected request, or replies without a grade.
        """
        request = dict(payload) | ({"model": self.model} if self.model else {})
        requested = str(request["model"])
        reply = ""
        new: dict[str, Any] = {}
        for step in (0.0, 0.5, 1.0, 1.5):  # a reply without a grade is asked again so, as by MM-Vet's scorer
            attempt = request | ({"temperature": (request.get("temperature") or 0) + step} if step else {})
            key = digest(attempt)
            known = self.cache.get(key)
            if isinstance(known, dict) and {"reply", "model"} <= known.keys():
                reply, model = str(known["reply"]), str(known["model"])
            elif not self.key and self.url.rstrip("/") == OPENAI_URL:
                raise JudgeUnavailable("no key: set OPENAI_API_KEY, or judge_url to a server without keys")
            else:
                try:
                    answer = self._client.submit(attempt).result()
                    reply, model = choices(answer)[0][0], str(answer.get("model") or "")
                except ChatServerError as error:
                    raise JudgeUnavailable(str(error)) from None
                new[key] = {"request": attempt, "reply": reply, "model": model}
            reply = without_reasoning(reply)  # whose numbers are no grades
            if self.reply_format.readable(reply):
                for each, entry in new.items():  # only now: a judge without a grade may be fixed
                    self.cache.put(each, entry)
                self.names.add(requested if model in {"", requested} else f"{requested} ({model})")
                return reply, model or requested
        raise JudgeUnavailable(f"'{requested}' answers {reply[:60]!r}, expected {self.reply_format.expected}")


def scorer_environment() -> contextlib.AbstractContextManager[Any]:
    """Environment variables that lmms-eval's scorers need on import, with a placeholder for the API key."""
    return mock.patch.dict(os.environ, {"API_TYPE": "openai", "OPENAI_API_KEY": "placeholder"})


@contextlib.contextmanager
def patched_judge(judge: Judge, *, openai_client: bool = True) -> Iterator[None]:
    """Within the block, all requests of scorers go to this judge.

    They use lmms-eval's ``llm_judge`` providers (MM-Vet, LLaVA-Bench), ``requests.post`` (MMBench, HallusionBench), or
    the openai client, whose import takes a second: ``openai_client`` is for tasks whose scorer may use it.
    """
    import requests
    from lmms_eval.llm_judge.protocol import Response
    from lmms_eval.llm_judge.providers.openai import OpenAIProvider, build_sampling_kwargs

    def evaluate(provider: Any, request: Any) -> Any:
        config = request.config or provider.config
        messages = provider.prepare_messages(request)
        if request.images:
            messages = provider._add_images_to_messages(messages, request.images)
        payload = {"model": config.model_name, "messages": messages, **build_sampling_kwargs(config)}
        if config.top_p is not None:
            payload["top_p"] = config.top_p
        if config.response_format == "json":
            payload["response_format"] = {"type": "json_object"}
        reply, model = judge.ask(payload)
        return Response(content=reply, model_used=model)

    def post(url: str, *, json: Any = None, **_: Any) -> Any:
        reply, model = judge.ask(json)
        answer = _completion(reply, model)
        return SimpleNamespace(status_code=200, ok=True, text=reply, json=lambda: answer, raise_for_status=lambda: None)

    def create(_: Any, **payload: Any) -> Any:
        from openai.types.chat import ChatCompletion

        return ChatCompletion.model_construct(**_completion(*judge.ask(payload)))

    with contextlib.ExitStack() as stack:
        stack.enter_context(scorer_environment())
        stack.enter_context(mock.patch.object(OpenAIProvider, "evaluate", evaluate))
        stack.enter_context(mock.patch.object(requests, "post", post))
        if openai_client:
            from openai.resources.chat.completions import Completions

            stack.enter_context(mock.patch.object(Completions, "create", create))
        yield


def _completion(reply: str, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply}
    return {"model": model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def _ratio(reply: str) -> bool:
    """MM-Vet parses the first word as a number, and retries forever if it is not between 0 and 1."""
    try:
        return 0.0 <= float(reply.split(" ")[0].strip()) <= 1.0
    except ValueError:
        return False


def _two_numbers(reply: str) -> bool:
    """LLaVA-Bench-COCO parses the first line as exactly two numbers."""
    try:
        words = reply.strip().split("\n")[0].replace(",", " ").split(" ")
        return len(words) == 2 and min(map(float, words)) >= 0 and float(words[0]) > 0
    except ValueError:
        return False


def _at_least_two_numbers(reply: str) -> bool:
    """LLaVA-Bench in the wild parses the first two numbers of the first line."""
    line = reply.strip().split("\n")[0].replace(",", " ").replace(";", " ")
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", line)]
    return len(numbers) >= 2 and numbers[0] > 0 and numbers[1] >= 0


REPLY_FORMATS: dict[str, ReplyFormat] = {
    "mmvet": ReplyFormat(expected="a number from 0 to 1", readable=_ratio),
    "llava_bench_coco": ReplyFormat(expected="two numbers on the first line", readable=_two_numbers),
    "llava_in_the_wild": ReplyFormat(expected="two numbers on the first line", readable=_at_least_two_numbers),
    "hallusion_bench_image": ReplyFormat(
        expected="correct, incorrect or unclear",
        readable=lambda reply: any(word in reply.lower() for word in ("correct", "unclear")),
    ),
}
