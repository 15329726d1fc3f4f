"""``llava-bridge serve``: a LLaVA with OpenAI's chat API and a chat page.

llava-bridge serve runs/demo/llava/clips-tiny-s0
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
from pathlib import Path

from clips.core.artifact import directory_hash
from clips.errors import UserError, check_at_least
from clips.model_refs import is_on_hub, resolve_model_dir
from llava_bridge.model.llava_checks import resolve_llava_dir

_MAX_CONNECTIONS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a LLaVA with OpenAI's chat API and a chat page.

    Args:
        model: the LLaVA directory, or a Hub repo id ``ORG/NAME``; its name is the model's name in the API.
        host: the address to listen at. Every client that can reach it can use the model: there is no password.
        allowed_hosts: further host names by which it may be addressed, such as that of a proxy.
        port: 0 selects a free one.
        max_new_tokens: maximum length of an answer if a request does not set one.
    """

    model: str
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int = 8000
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise UserError(f"port: expected 0 to {2**16 - 1}, got {self.port}")
        check_at_least(1, self, "max_new_tokens")


def run_serve(config: ServeConfig) -> None:
    """Answer requests until interrupted.

    Raises:
        UserError: no such LLaVA; the address is in use or not local; the extra ``serve`` is not installed.
    """
    if not is_on_hub(config.model):  # a download starts after all checks
        resolve_llava_dir(config.model)  # reported before torch is imported
    try:
        import uvicorn

        from llava_bridge.serving.app import Server
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"starlette", "uvicorn"}:
            raise
        raise UserError(f"serve needs {error.name}: pip install 'clips-suite[serve]'") from None
    with _listen(config) as listener:
        from llava_bridge.inference.generate import load_llava
        from llava_bridge.serving.worker import GenerationWorker

        worker = GenerationWorker(*load_llava(config.model))
        name = Path(config.model).resolve().name
        root = directory_hash(resolve_model_dir(config.model, "model"))
        server = Server(worker, name, config.max_new_tokens, _greeting(config, name, listener), root)
        settings = uvicorn.Config(
            server.app(_host_names(config)),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=2,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])


def _host_names(config: ServeConfig) -> list[str]:
    """Return the names by which the server may be addressed."""
    names = ["localhost", *config.allowed_hosts]
    return names if _is_loopback(config.host) else [*names, config.host, socket.gethostname(), socket.getfqdn()]


def _greeting(config: ServeConfig, name: str, listener: socket.socket) -> list[str]:
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [f"{name}: page {address}/, API {address}/v1; Ctrl-C ends"]
    if not _is_loopback(config.host):
        lines.append(f"every client that can reach {address} can use it: there is no password")
    return lines


def _listen(config: ServeConfig) -> socket.socket:
    """Open the socket; this fails before a large model is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=128)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise UserError(
            f"host, port: cannot listen at {config.host}:{config.port} ({reason}); expected a free port of this machine"
        ) from None


def _is_loopback(host: str) -> bool:
    """Whether ``host`` is reachable only locally."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
