"""A judge: another model that grades answers, behind any OpenAI-compatible URL, with cached replies.

lmms-eval's scorers call a judge in three ways: through their own ``llm_judge`` providers (MM-Vet, LLaVA-Bench), with
the openai client, or by ``requests.post`` (MMBench, HallusionBench). Inside ``patched_judge(judge)`` all three are
redirected here. Without the patch they retry for more than a minute per question and then count an answer without a
grade as wrong, so that an unreachable judge looks like a bad model. With it a failing judge ends the scoring
immediately (``JudgeUnavailable``), and the metric is absent.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from clips.core.cache import Cache, json_cache
from clips.core.identity import digest

if TYPE_CHECKING:
    from benchmarks.tasks.run_config import BenchmarkConfig

OPENAI_URL = "https://api.openai.com/v1"
NO_JUDGE = "no judge"
_PATIENCE = (5.0, 120.0)  # seconds to be connected, and to be answered
_BUSY = {429, 500, 502, 503, 529}  # delays in seconds before such a request is repeated
_WAITS = (1.0, 4.0)
_WARMER = (0.0, 0.5, 1.0, 1.5)  # added to the temperature if the judge did not give a grade, as MM-Vet's scorer does


class JudgeUnavailable(BaseException):
    """The judge gives no grades; the text states the reason. Not an ``Exception``: it must pass every handler in the
    scorers.
    """


@dataclass(frozen=True, kw_only=True)
class ReplyFormat:
    """The grade format that a scorer can read.

    Args:
        expected: as text, for the error message.
        readable: whether the scorer can read a reply.
    """

    expected: str
    readable: Callable[[str], bool]


@dataclass(kw_only=True)
class Judge:
    """A model behind an OpenAI-compatible URL.

    Args:
        url: ``https://host/v1``; ``/chat/completions`` is added if it is missing.
        model: its name; None for the name that the scorer requests.
        key: the API key; empty if the server needs none.
        cache: the replies, keyed by a hash of the request without the URL.
        mark: the grade format that the scorer can read.
        names: the models that answered, for the protocol.
        asked: number of requests sent.
    """

    url: str
    model: str | None
    key: str
    cache: Cache[Any]
    mark: ReplyFormat
    names: set[str] = field(default_factory=set)
    asked: int = 0

    @property
    def name(self) -> str:
        """The names of the judging models, for the protocol; empty if no request was sent."""
        return ", ".join(sorted(self.names))

    def ask(self, payload: Mapping[str, Any]) -> tuple[str, str]:
        """(reply, name of the model that gave it) to a request of the chat API, that contains a grade.

        Raises:
            NoJudge: there is no key, the server cannot be reached or rejects the request, or no reply has a grade.
        """
        request = dict(payload) | ({"model": self.model} if self.model else {})
        reply = ""
        new: dict[str, Any] = {}
        for warmer in _WARMER:
            warm = request | ({"temperature": (request.get("temperature") or 0) + warmer} if warmer else {})
            reply, model = self._remembered(warm, new)
            if self.mark.readable(reply):
                for key, entry in new.items():  # replies without a grade are not cached: the cause may be fixed
                    self.cache.put(key, entry)
                asked = str(request["model"])
                self.names.add(asked if model in {"", asked} else f"{asked} ({model})")
                return reply, model or asked
        raise JudgeUnavailable(f"'{request['model']}' answers {reply[:60]!r} where {self.mark.expected} is expected")

    def _remembered(self, request: Mapping[str, Any], new: dict[str, Any]) -> tuple[str, str]:
        """(reply, model); uncached replies go to ``new``, key → entry."""
        key = digest(request)
        known = self.cache.get(key)
        if isinstance(known, dict) and {"reply", "model"} <= known.keys():
            return str(known["reply"]), str(known["model"])
        reply, model = self._post(request)
        new[key] = {"request": request, "reply": reply, "model": model}
        return reply, model

    def _post(self, request: Mapping[str, Any]) -> tuple[str, str]:
        if not self.key and self.url.rstrip("/") == OPENAI_URL:
            raise JudgeUnavailable("no key: set OPENAI_API_KEY, or judge_url to an address that wants none")
        import requests

        url = self.url.rstrip("/")
        address = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        for wait in (*_WAITS, None):
            self.asked += 1
            try:
                with requests.Session() as session:
                    answer = session.post(address, json=dict(request), headers=headers, timeout=_PATIENCE)
            except requests.RequestException as error:
                raise JudgeUnavailable(f"{self.url} cannot be reached ({_kind(error)})") from None
            if answer.status_code not in _BUSY or wait is None:
                break
            time.sleep(wait)
        if answer.status_code != 200:
            said = " ".join(answer.text.split())[:120] or answer.reason or "no more"
            raise JudgeUnavailable(f"{self.url} answers {answer.status_code} ({said})")
        try:
            found = answer.json()
            return str(found["choices"][0]["message"]["content"] or "").strip(), str(found.get("model") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise JudgeUnavailable(f"{self.url} does not answer as OpenAI's chat API does") from None


def _kind(error: Exception) -> str:
    """A network error in a word or two: the libraries' own texts are paragraphs."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower().removesuffix(" error")


def make_judge(config: BenchmarkConfig, task: str, results: str | Path) -> Judge:
    """The judge that a benchmark's settings, or else lmms-eval's environment variables, name.

    Replies are kept below ``results`` in ``.judge``, which all rows share.
    """
    return Judge(
        url=config.judge_url or os.environ.get("OPENAI_API_URL") or OPENAI_URL,
        model=config.judge_model or os.environ.get("MODEL_VERSION") or None,
        key=os.environ.get(config.judge_key_env, ""),
        cache=json_cache(Path(results).absolute() / ".judge"),
        mark=REPLY_FORMATS.get(task, _ANYTHING),
    )


def scorer_environment() -> contextlib.AbstractContextManager[Any]:
    """What lmms-eval's scorers must find in the environment to be imported and built; no secret is shown to them."""
    return mock.patch.dict(os.environ, {"API_TYPE": "openai", "OPENAI_API_KEY": "kept by the judge"})


@contextlib.contextmanager
def patched_judge(judge: Judge) -> Iterator[None]:
    """Within the block, whatever a scorer asks a judge is asked of this one."""
    import openai.resources.chat.completions
    import requests
    from lmms_eval.llm_judge.protocol import Response
    from lmms_eval.llm_judge.providers.openai import OpenAIProvider, build_sampling_kwargs

    def evaluate(provider: Any, request: Any) -> Any:
        config = request.config or provider.config
        messages = provider.prepare_messages(request)
        if request.images:
            messages = provider._add_images_to_messages(messages, request.images)
        payload = {"model": config.model_name, "messages": messages, **build_sampling_kwargs(config)}
        payload |= {} if config.top_p is None else {"top_p": config.top_p}
        payload |= {"response_format": {"type": "json_object"}} if config.response_format == "json" else {}
        reply, model = judge.ask(payload)
        return Response(content=reply, model_used=model)

    def post(url: str, *, json: Any = None, **_: Any) -> Any:
        reply, model = judge.ask(json)
        content = _completion(reply, model)
        return SimpleNamespace(
            status_code=200, ok=True, text=reply, json=lambda: content, raise_for_status=lambda: None
        )

    def create(_: Any, **payload: Any) -> Any:
        from openai.types.chat import ChatCompletion

        return ChatCompletion.model_construct(**_completion(*judge.ask(payload)))

    completions = openai.resources.chat.completions.Completions
    with (
        scorer_environment(),
        mock.patch.object(OpenAIProvider, "evaluate", evaluate),
        mock.patch.object(requests, "post", post),
        mock.patch.object(completions, "create", create),
    ):
        yield


def _completion(reply: str, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply}
    return {"model": model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def _share(reply: str) -> bool:
    """MM-Vet takes the first word for a number, and asks for ever where it is not between 0 and 1."""
    try:
        return 0.0 <= float(reply.split(" ")[0].strip()) <= 1.0
    except ValueError:
        return False


def _two_numbers(reply: str) -> bool:
    """LLaVA-Bench-COCO takes the first line for two numbers and nothing else; both kinds read such a line."""
    try:
        words = reply.strip().split("\n")[0].replace(",", " ").split(" ")
        return len(words) == 2 and min(map(float, words)) >= 0 and float(words[0]) > 0
    except ValueError:
        return False


def _more_numbers(reply: str) -> bool:
    """LLaVA-Bench in the wild takes the first two numbers of the first line."""
    line = reply.strip().split("\n")[0].replace(",", " ").replace(";", " ")
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", line)]
    return len(numbers) >= 2 and numbers[0] > 0 and numbers[1] >= 0


_ANYTHING = ReplyFormat(expected="a text", readable=bool)
REPLY_FORMATS: dict[str, ReplyFormat] = {
    "mmvet": ReplyFormat(expected="a number from 0 to 1", readable=_share),
    "llava_bench_coco": ReplyFormat(expected="two numbers on the first line", readable=_two_numbers),
    "llava_in_the_wild": ReplyFormat(expected="two numbers on the first line", readable=_more_numbers),
    "hallusion_bench_image": ReplyFormat(
        expected="correct, incorrect or unclear",
        readable=lambda reply: any(word in reply.lower() for word in ("correct", "unclear")),
    ),
}
