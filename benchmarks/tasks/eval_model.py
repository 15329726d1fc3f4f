"""A model under evaluation: its config, and its parts, loaded when a benchmark first needs them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clips.core.artifact import directory_hash, library_versions
from clips.core.identity import digest
from clips.errors import UserError, unknown_name_error
from clips.model_refs import resolve_model_dir
from clips.ranges import NonNegativeFloat, Positive
from llava_bridge.encoders import (
    has_text_tower,
    parse_spec,
    resolve_encoder,
    resolve_open_clip_dir,
)

if TYPE_CHECKING:
    from benchmarks.tasks.encoders.dual_encoder import DualEncoder
    from benchmarks.tasks.output_cache import AnswerCache
    from clips.core.chat_client import ChatClient
    from clips.parallel.distributed import DistributedContext

RequiredModel = Literal["encoder", "tower", "llava"]
MODEL_FIELDS: dict[RequiredModel, str] = {"encoder": "encoder", "tower": "encoder", "llava": "llava"}
"""Required part of a model → field of ``ModelConfig``."""
_EXPECTED: dict[RequiredModel, str] = {
    "encoder": "expected an encoder directory: this benchmark compares images and texts",
    "tower": "expected an encoder: this benchmark trains on its features",
    "llava": "expected a LLaVA directory: this benchmark asks questions about images",
}


@dataclass(frozen=True, kw_only=True)
class LmmsModel:
    """One of lmms-eval's own models.

    Args:
        model: its name, for instance ``llava_hf``.
        model_args: its arguments, in the format of ``--model_args``: ``pretrained=DIR,device_map=cpu``.
    """

    model: str
    model_args: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to evaluate, and where the results go.

    Args:
        output: directory of the result files, ``<output>/<model_name>/<benchmark>.json``.
        batch_size: images, captions or questions per forward pass; with ``endpoint`` concurrent requests.
        precision: of the model; ``auto`` is fp32, except for a LLaVA on a GPU, which runs in bf16.
        device: ``auto`` is a GPU if available.
        overwrite: evaluate again although a result exists.
    """

    output: str
    batch_size: Positive = 64
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig(EvaluationConfig):
    """The model under evaluation.

    Args:
        encoder: an encoder directory with a text tower (open_clip format), or ``hf-hub:ORG/NAME``, for benchmarks that
            compare images and texts; for a linear probe any encoder that a LLaVA can use.
        llava: a LLaVA directory, or ``ORG/NAME`` on the Hub, for MLLM benchmarks.
        endpoint: base URLs of servers with OpenAI's chat API (vLLM, SGLang, llava-bridge serve), such as
            ``[http://host:8000/v1]``, that have loaded the LLaVA; ``llava`` is its name there. Likelihoods need the
            directory instead.
        endpoint_key_env: the environment variable with the servers' API key, if they need one.
        retry_minutes: how long a question is repeated while no server answers it.
        token_prices: prices of a million input and output tokens; with ``endpoint`` a benchmark with a ``limit`` prints
            the time, tokens and cost of all of its questions.
        lmms: one of lmms-eval's own models instead of ``llava``; its arguments set device and precision.
    """

    encoder: str | None = None
    llava: str | None = None
    endpoint: tuple[str, ...] = ()
    endpoint_key_env: str = "OPENAI_API_KEY"
    retry_minutes: NonNegativeFloat = 30.0
    token_prices: tuple[float, float] | None = None
    lmms: LmmsModel | None = None

    @property
    def dtype(self) -> str:
        """``precision`` as torch and protocols name it, or ``auto``."""
        return {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.precision]


@dataclass(frozen=True)
class EvalModel:
    """A model under evaluation: an encoder, a LLaVA, or both.

    Args:
        config: which model, and how it is evaluated.
    """

    config: ModelConfig

    @functools.cached_property
    def device(self) -> str:
        """``"cuda"`` or ``"cpu"``.

        Raises:
            UserError: cuda is requested and unavailable.
        """
        import torch

        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device: expected a GPU for cuda, found none")
        if self.config.device != "auto":
            return self.config.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @functools.cached_property
    def processes(self) -> DistributedContext:
        """The processes that share the evaluation."""
        from benchmarks.tasks.output_cache import init_distributed

        return init_distributed()

    def answer_cache(self, task: str, content: str) -> AnswerCache:
        """The cache of the LLaVA's answers to the questions of ``task``; ``content`` is the hash of its data."""
        from benchmarks.tasks.output_cache import CACHE_DIR, INPUT_LIBRARIES, AnswerCache, cache_key

        key = cache_key(
            task=task,
            content=content,
            model=self.record("llava")["hash"],
            device=self.device,
            precision="server" if self.config.endpoint else str(self.llava[0].dtype),
            libraries={
                name: library_versions().get(name) for name in ("lmms-eval", "transformers", "torch", *INPUT_LIBRARIES)
            },
        )
        folder = Path(self.config.output) / CACHE_DIR / "answers" / key
        return AnswerCache(folder, self.processes, overwrite=self.config.overwrite)

    @functools.cached_property
    def encoder(self) -> DualEncoder:
        """The encoder with its text tower.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from benchmarks.tasks.encoders import dual_encoder

        if self.is_bare_tower:
            return dual_encoder.load_transformers_encoder(self.path("encoder"), self.device, self.config.dtype)
        return dual_encoder.load_dual_encoder(self.path("encoder"), self.device, self.config.dtype)

    @functools.cached_property
    def tower(self) -> DualEncoder:
        """The encoder's image tower; for an open_clip directory the encoder itself. Raises as `encoder`."""
        from benchmarks.tasks.encoders import dual_encoder

        if self.is_bare_tower:
            return dual_encoder.load_image_tower(str(self.config.encoder), self.device, self.config.dtype)
        path = self.path("tower")
        if has_text_tower(path):
            return self.encoder
        return dual_encoder.load_dual_encoder(path, self.device, self.config.dtype)

    @property
    def is_bare_tower(self) -> bool:
        """Whether the encoder is the tower of another library (any source but open_clip's directory)."""
        return self.config.encoder is not None and parse_spec(self.config.encoder)[0] != "open_clip"

    @functools.cached_property
    def llava(self) -> tuple[Any, Any]:
        """(model, processor) of the LLaVA.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from benchmarks.tasks.mllm.offline_tasks import go_offline

        if self.config.endpoint:
            raise UserError("endpoint: expected 'llava:' as a directory, which this benchmark's likelihoods need")
        go_offline()
        from benchmarks.tasks.mllm.llava_input import load_for_evaluation

        return load_for_evaluation(self.path("llava"), self.device, self.config.dtype)

    @functools.cached_property
    def lmms(self) -> Any:
        """The lmms-eval model that replaces the LLaVA.

        Raises:
            UserError: it cannot be loaded.
        """
        if self.config.lmms is None:
            raise UserError("lmms: expected one of lmms-eval's models")
        return load_lmms_model(self.config.lmms)

    def chat_client(self) -> ChatClient:
        """A client of the servers that have the LLaVA."""
        from clips.core.chat_client import ChatClient

        return ChatClient(
            urls=self.config.endpoint,
            key=os.environ.get(self.config.endpoint_key_env, ""),
            requests_in_flight=self.config.batch_size,
            retry_seconds=60 * self.config.retry_minutes,
        )

    @functools.cached_property
    def _served(self) -> str:
        """What servers say of the model.

        Raises:
            UserError: none answers, or has it.
        """
        return self.chat_client().identify_model(str(self.config.llava))

    def load(self, needs: RequiredModel) -> None:
        """Load the part that a benchmark uses."""
        if needs == "llava" and self.config.endpoint:
            _ = self._served
        else:
            _ = self.lmms if needs == "llava" and self.config.lmms is not None else getattr(self, needs)

    def path(self, needs: RequiredModel) -> str:
        """The path of the part that a benchmark uses: its directory, or the Hub's copy.

        Raises:
            UserError: the model lacks it, it has no text tower, or there is no such directory.
        """
        field = MODEL_FIELDS[needs]
        given = getattr(self.config, field)
        if given is None:
            raise UserError(f"{field}: {_EXPECTED[needs]}")
        if needs == "encoder" and parse_spec(given)[0] in ("timm", "several"):
            raise UserError(f"{field}: '{given}' has no text tower; {_EXPECTED[needs]}")
        source, reference = ("transformers", given) if needs == "llava" else parse_spec(given)
        path = resolve_model_dir(reference, field) if source == "transformers" else resolve_open_clip_dir(given)
        if not path.is_dir():
            raise UserError(f"{field}: {given}: no such directory; {_EXPECTED[needs]}")
        if needs == "encoder" and not has_text_tower(str(path)):
            raise UserError(f"{field}: {given} has no text tower; {_EXPECTED[needs]}")
        return str(path)

    def record(self, needs: RequiredModel) -> dict[str, str]:
        """Path or Hub repo id, and hash, of the part that a benchmark uses."""
        if needs == "llava" and (lmms := self.config.lmms) is not None:
            _check_lmms_model_name(lmms.model)
            values = [argument.partition("=")[2] for argument in lmms.model_args.split(",")]
            hashes = [model_hash(value) for value in values if value and Path(value).is_dir()]
            name = f"lmms-eval's {lmms.model} ({lmms.model_args})"
            return {"path": name, "hash": digest([lmms.model, lmms.model_args, *hashes])}
        if needs == "llava" and self.config.endpoint:
            return {"path": f"{self.config.llava} of a server", "hash": digest(self._served)}
        if needs == "tower" and self.is_bare_tower:
            return {"path": str(self.config.encoder), "hash": _tower_hash(str(self.config.encoder))}
        return {"path": getattr(self.config, MODEL_FIELDS[needs]), "hash": model_hash(self.path(needs))}


@functools.cache
def model_hash(path: str) -> str:
    """The hash of a model's directory, computed once in a process."""
    return directory_hash(path)


@functools.cache
def _tower_hash(spec: str) -> str:
    """Hash of the files that a spec names, and of its remaining text."""
    files = resolve_encoder(spec)
    content = directory_hash(files.local) if files.local else files.commit
    rest = spec.replace(files.local, "") if files.local else spec
    return digest([rest, {"encoder": content} if content else {}])


def load_lmms_model(config: LmmsModel) -> Any:
    """Load one of lmms-eval's models.

    Raises:
        UserError: an unknown name, a missing library, or any other error of its class.
    """
    from benchmarks.tasks.mllm.offline_tasks import error_reason, suppress_output

    _check_lmms_model_name(config.model)
    from lmms_eval.models import get_model

    arguments = config.model_args + ("" if "batch_size=" in config.model_args else ",batch_size=1")
    try:
        with suppress_output():
            return get_model(config.model).create_from_arg_string(arguments.removeprefix(","))
    except Exception as error:
        # lmms-eval replaces modules that cannot be imported (vllm, sglang) by None
        is_missing_library = isinstance(error, TypeError) and "'NoneType' object" in str(error)
        reason = "a library that it needs is not installed" if is_missing_library else error_reason(error)
        raise UserError(
            f"lmms: lmms-eval's {config.model} cannot be loaded with '{config.model_args}' ({reason})"
        ) from None


def _check_lmms_model_name(name: str) -> None:
    from benchmarks.tasks.mllm.offline_tasks import go_offline

    go_offline()
    from lmms_eval.models import AVAILABLE_MODELS, MODEL_REGISTRY_V2

    if name not in {*AVAILABLE_MODELS, *MODEL_REGISTRY_V2.list_model_names()}:
        raise unknown_name_error(name, AVAILABLE_MODELS, "model of lmms-eval's ('lmms.model')")
