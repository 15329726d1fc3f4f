"""``llava-bridge serve``: a LLaVA with OpenAI's chat API: requests become prompts of ``chat``, which transformers' own
server generates from and streams.

llava-bridge serve runs/demo/llava/clips-tiny-s0
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import dataclasses
import json
import logging
import os
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from clips.core.artifact import directory_hash
from clips.data.images import InvalidImageError, InvalidSampleError, decode_image
from clips.data.lazy_images import image_bytes
from clips.errors import UserError
from clips.model_refs import is_on_hub, resolve_model_dir
from clips.ranges import Positive, PositiveFraction
from clips.safe_text import log_info
from clips.typed_data import from_plain
from llava_bridge.model.llava_checks import resolve_llava_dir

if TYPE_CHECKING:
    from PIL import Image

    from llava_bridge.conversation import Message

_HOST = "127.0.0.1"  # clients name files of this machine as images, which the server opens
_MAX_NEW_TOKENS = 1024  # of an answer, unless the request or the context says otherwise
_LEAST_TEMPERATURE = 0.01  # as vLLM's; logits over a smaller one overflow


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a LLaVA with OpenAI's chat API, to this machine only.

    Args:
        model: the LLaVA directory, or a Hub repo id ``ORG/NAME``; its name is the model's name in the API.
        port: of 127.0.0.1; 0 selects a free one.
    """

    model: str
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageUrl:
    """An image of a request: a ``data:`` or http(s) URL, or the path of a file; ``detail`` has no effect."""

    url: str
    detail: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContentPart:
    """A text, or an image, of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """A message of a request; a string as its content is one part."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[tuple[ContentPart, ...], Field(min_length=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """What a request of OpenAI's chat API may contain here: fields with an effect, and others at their neutral value.

    Args:
        messages: the conversation, which ends with the user's message.
        model: the name of the served LLaVA.
        max_tokens: maximum length of the answer.
        max_completion_tokens: the newer name of ``max_tokens``.
        temperature: of the sampling; 0 is greedy.
        top_p: of the sampling.
        seed: of the sampling.
        stream: send the answer piece by piece.
        stream_options: no effect, the last piece always has the numbers of tokens.
        user: no effect.
        n: number of answers.
        stop: not supported.
        logprobs: not supported.
        frequency_penalty: not supported.
        presence_penalty: not supported.
    """

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    model: str | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: PositiveFraction | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stop: None = None
    logprobs: Annotated[bool, Field(le=False)] | None = None  # Literal[False] would accept 0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None


def run_serve(config: ServeConfig) -> None:
    """Answer requests until interrupted, which ends the process with status 0.

    Raises:
        UserError: no such LLaVA; the port is in use; the extra ``serve`` is not installed.
    """
    if not is_on_hub(config.model):  # a download starts after all checks
        resolve_llava_dir(config.model)  # reported before torch is imported
    try:  # before a large model is loaded
        listener = socket.create_server((_HOST, config.port), backlog=128)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise UserError(f"port: cannot listen at {_HOST}:{config.port} ({reason}); expected a free port") from None
    with listener:
        from transformers.utils.import_utils import is_serve_available

        if not is_serve_available():
            raise UserError("serve needs more packages: pip install 'transformers[serving]'")
        import uvicorn

        settings = uvicorn.Config(make_app(config.model), log_level="warning", timeout_graceful_shutdown=2)
        log_info(f"http://{_HOST}:{listener.getsockname()[1]}/v1 serves {_name(config.model)}; Ctrl-C ends")
        logging.getLogger("uvicorn.error").addFilter(_is_no_interruption)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])
    sys.stderr.flush()
    os._exit(0)  # else the end of the process waits, sometimes forever, for the thread that generates


def _is_no_interruption(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def make_app(directory: str) -> Any:
    """The server, as an ASGI application, for one LLaVA that is loaded as for ``llava-bridge chat``.

    transformers' server would decode images itself, ask with its own prompts, and open routes that load other models.
    Only its generation is used.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.utils import (
        GenerateManager,
        GenerationState,
        InferenceThread,
        set_torch_seed,
    )

    from llava_bridge.inference import generate
    from llava_bridge.model.build import make_conversation_encoder

    name, (model, processor) = _name(directory), generate.load_llava(directory)
    root = directory_hash(resolve_model_dir(directory, "model"))  # by which clients distinguish equal names
    entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "llava-bridge", "root": root}
    chat, context = make_conversation_encoder(model, processor), generate.context_length(model)
    no_manager: Any = None  # the handler's own, which loads a model for each request
    handler, thread = ChatCompletionHandler(no_manager, GenerationState()), GenerateManager()
    reading = InferenceThread()  # a daemon, which a slow download does not let wait for at the end

    def make_prompt(request: ChatRequest) -> tuple[dict[str, Any], int]:
        """The inputs of ``generate``, and the maximum length of the answer; raises UserError."""
        messages, images = read_messages(request.messages)
        ids = generate.encode_prompt(chat, messages, images)
        free = context - len(ids)
        asked = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
        most = request.max_completion_tokens or request.max_tokens or min(_MAX_NEW_TOKENS, max(free, 1))
        if most > free:
            where, limit = ("messages", "fewer than") if free < 1 else (asked, f"at most {max(free, 0)} more in")
            raise UserError(
                f"{where}: the conversation has {len(ids)} tokens, images included; expected {limit} the LLM's "
                f"context of {context}"
            )
        return generate.prepare_generate_inputs(model, processor, [ids], images), most

    async def complete(http: Request) -> Response:
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UserError("content-type: expected application/json")  # the one that no other site's page can send
        try:
            body = json.loads(await http.body())
        except (ValueError, RecursionError):
            raise UserError("the body: expected JSON") from None
        messages = body.get("messages") if isinstance(body, dict) else None
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        request = from_plain(ChatRequest, body)
        if request.model not in (None, name):
            raise UserError(f"model: this server has '{name}', got {request.model!r:.80}")
        inputs, most = await reading.async_submit(make_prompt, request)
        settings = copy.deepcopy(model.generation_config)
        settings.max_new_tokens, settings.num_beams = most, 1  # several beams cannot be streamed
        if request.temperature:
            settings.do_sample, settings.top_k = True, 0
            settings.temperature = max(request.temperature, _LEAST_TEMPERATURE)
            settings.top_p = request.top_p
        if request.seed is not None:  # in the thread that generates, directly before it does
            thread.submit(set_torch_seed, request.seed)
        asked = (f"chatcmpl-{uuid.uuid4().hex}", model, processor, name, inputs, settings, thread)
        return handler._streaming(*asked) if request.stream else await handler._non_streaming(*asked)

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry]})

    async def reject(_: Request, error: Exception) -> Response:
        content = {"message": str(error), "type": "invalid_request_error"}
        return JSONResponse({"error": content}, status_code=400)

    return Starlette(
        routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/v1/models", list_models)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])],  # none that resolves to it
        exception_handlers={UserError: reject},
    )


def read_messages(messages: tuple[ChatMessage, ...]) -> tuple[list[Message], list[Image.Image]]:
    """The conversation as ``chat`` has it, with ``<image>`` where a message has an image, and its images.

    Raises:
        UserError: the message names the field.
    """
    from llava_bridge.conversation import IMAGE

    messages_read: list[Message] = []
    images: list[Image.Image] = []
    for number, message in enumerate(messages, 1):
        where, text = f"messages[{number}].content", ""
        for place, part in enumerate(message.content, 1):
            at = f"{where}[{place}]"
            if (part.text is None) == (part.type == "text") or (part.image_url is None) == (part.type == "image_url"):
                raise UserError(f"{at}: expected {part.type}, and only that, next to its type")
            if part.image_url is not None:
                if message.role != "user":
                    raise UserError(f"{at}: expected no image in a message of the {message.role}")
                images.append(_read_image(part.image_url.url, f"{at}.image_url.url"))
                text += f"{IMAGE}\n"
            elif IMAGE in (part.text or ""):
                raise UserError(f"{at}: {IMAGE} stands for an image; expected a part of type image_url, or other text")
            else:
                text += part.text or ""
        if not text.strip():
            raise UserError(f"{where}: expected a text or an image")
        messages_read.append({"role": message.role, "content": text})
    if messages[-1].role != "user":
        raise UserError(f"messages: expected the user's as the last one, got the {messages[-1].role}'s")
    return messages_read, images


def _read_image(url: str, where: str) -> Image.Image:
    try:
        if url.startswith("data:"):
            return decode_image(base64.b64decode(url.partition(",")[2]))
        if url.startswith(("http://", "https://")):
            return decode_image(image_bytes(url, Path()))
        if Path(url).is_file():  # no device or pipe, which may have no end
            return decode_image(Path(url).read_bytes())
        reason = "no such file"
    except (InvalidImageError, InvalidSampleError) as error:
        reason = str(error)
    except (OSError, ValueError):  # a name that is too long, base64 of another length
        reason = "cannot be read"
    raise UserError(f"{where}: {reason}; expected an image, as data:image/…;base64,…, URL or file") from None


def _name(model: str) -> str:
    return Path(model).resolve().name
