"""``llava-bridge serve``: transformers' own server for a LLaVA, with OpenAI's chat API.

llava-bridge serve runs/demo/llava/clips-tiny-s0
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from clips.core.artifact import directory_hash, log_info
from clips.errors import UserError
from clips.model_refs import is_on_hub, resolve_model_dir
from llava_bridge.model.llava_checks import resolve_llava_dir

_HOST = "127.0.0.1"  # clients name files of this machine as images, which the server opens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a LLaVA with OpenAI's chat API, to this machine only.

    Args:
        model: the LLaVA directory, or a Hub repo id ``ORG/NAME``; its name is the model's name in the API.
        port: of 127.0.0.1; 0 selects a free one.
    """

    model: str
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


def run_serve(config: ServeConfig) -> None:
    """Answer requests until interrupted.

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
            raise UserError("serve needs fastapi, openai and uvicorn: pip install 'clips-suite[serve]'")
        import uvicorn

        settings = uvicorn.Config(make_app(config.model), log_level="warning", timeout_graceful_shutdown=2)
        log_info(f"http://{_HOST}:{listener.getsockname()[1]}/v1 serves {_name(config.model)}; Ctrl-C ends")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])


def make_app(directory: str) -> Any:
    """transformers' server, as a FastAPI application, for one LLaVA that is loaded as for ``llava-bridge chat``."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState, Modality

    from llava_bridge.inference.generate import load_llava

    class OneLlava(ModelManager):
        def __init__(self) -> None:
            super().__init__()
            self.force_model = _name(directory)
            self.loaded = load_llava(directory)
            root = directory_hash(resolve_model_dir(directory, "model"))  # by which clients distinguish equal names
            self.entry: dict[str, Any] = {"id": self.force_model, "object": "model", "created": int(time.time())}
            self.entry |= {"owned_by": "llava-bridge", "root": root}

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return self.loaded

        @staticmethod
        def get_model_modality(
            model: Any, processor: Any = None
        ) -> Modality:  # transformers knows its own classes only
            return Modality.VLM

        def get_gen_models(self) -> list[dict[str, Any]]:  # type: ignore[override]  # its own lists the Hub's cache
            return [self.entry]

    class Sampling(ChatCompletionHandler):
        def _build_generation_config(self, body: dict[str, Any], *options: Any, **more: Any) -> Any:
            found = super()._build_generation_config(body, *options, **more)
            if body.get("temperature"):  # transformers ignores it for a LLaVA whose own decoding is greedy
                found.do_sample, found.top_k = True, 0
            return found

    models, state = OneLlava(), GenerationState()
    app = build_server(
        models,
        Sampling(models, state),
        CompletionHandler(models, state),
        ResponseHandler(models, state),
        TranscriptionHandler(models, state),
        SystemOneHandler(models, state),
        state,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])  # no site that resolves to it
    return app


def _name(model: str) -> str:
    return Path(model).resolve().name
