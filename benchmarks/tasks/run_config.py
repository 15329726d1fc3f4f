"""Configs of ``clips-bench run``: one model on a list of benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.results.results import check_name
from benchmarks.tasks.registry import BenchmarkConfig
from clips.core.chat_client import check_urls
from clips.errors import UserError
from clips.ranges import Positive

Precision = Literal["auto", "fp32", "bf16", "fp16"]
TORCH_DTYPES: dict[Precision, str] = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Config value → name of the dtype in torch and in protocols."""


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
    """What to evaluate on, and how.

    Args:
        benchmarks: the benchmarks, each with its data and its own settings.
        output: directory of the result files, ``<output>/<model_name>/<benchmark>.json``.
        batch_size: images, captions or questions per forward pass; with ``endpoint`` concurrent requests.
        precision: of the model; ``auto`` is fp32, except for a LLaVA on a GPU, which runs in bf16.
        device: ``auto`` is a GPU if available.
        overwrite: evaluate again although a result exists.
    """

    benchmarks: list[BenchmarkConfig]
    output: str
    batch_size: Positive = 64
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig(EvaluationConfig):
    """Evaluate one model on a list of benchmarks and write one result file for each.

    Args:
        model_name: the model's name in the table.
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

    model_name: str
    encoder: str | None = None
    llava: str | None = None
    endpoint: tuple[str, ...] = ()
    endpoint_key_env: str = "OPENAI_API_KEY"
    retry_minutes: float = 30.0
    token_prices: tuple[float, float] | None = None
    lmms: LmmsModel | None = None

    def __post_init__(self) -> None:
        check_name(self.model_name, "model_name")
        if self.llava is not None and self.lmms is not None:
            raise UserError("lmms: expected either it or 'llava', got both")
        if self.encoder is None and self.llava is None and self.lmms is None:
            raise UserError("encoder: expected an encoder directory, or 'llava:' a LLaVA directory, got neither")
        if not self.benchmarks:
            raise UserError("benchmarks: expected at least one")
        check_urls("endpoint", self.endpoint)
        if self.endpoint and self.llava is None:
            raise UserError("llava: expected the model's name at the endpoint")
        if self.lmms is not None and (blind := [each.name for each in self.benchmarks if getattr(each, "blind", ())]):
            raise UserError(f"benchmarks.blind: expected 'llava:' instead of lmms ({blind[0]})")
        if self.endpoint and (
            beams := [each.name for each in self.benchmarks if (getattr(each, "num_beams", 1) or 1) > 1]
        ):
            raise UserError(f"benchmarks.num_beams: expected 1 with endpoint, whose API has no beams ({beams[0]})")
        names = [benchmark.name for benchmark in self.benchmarks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"benchmarks.name: '{twice[0]}' is used twice; rename one and set its 'task:'")

    @property
    def dtype(self) -> str:
        """``precision`` as torch names it, or ``auto``."""
        return TORCH_DTYPES[self.precision]
