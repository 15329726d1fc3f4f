"""Configs of ``clips-bench run``: one model on a list of benchmarks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.results.results import check_name
from benchmarks.tasks.encoders.zero_shot_classifier import check_templates
from clips.core.chat_client import check_urls
from clips.core.identity import RUN_ONLY
from clips.errors import UserError, unknown_name_error
from clips.ranges import Positive, PositiveFloat, PositiveFraction

COMMON_FIELDS = ("name", "data", "task", "limit")
"""The settings that every benchmark takes."""
BLIND_FIELDS = ("blind", "blind_items")
"""The settings of the runs without the image, which every benchmark of a LLaVA takes."""

RequiredModel = Literal["encoder", "tower", "llava"]
MODEL_FIELDS: dict[RequiredModel, str] = {"encoder": "encoder", "tower": "encoder", "llava": "llava"}
"""Required part of a model → field of ``RunConfig``."""
Likelihood = Literal["sum", "mean", "mutual_info"]
BlindKind = Literal["blank", "shuffled"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TORCH_DTYPES: dict[Precision, str] = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Config value → name of the dtype in torch and in protocols."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """One benchmark and its data.

    Args:
        name: the column in the table, and the name of the result file.
        data: retrieval: WebDataset shards, a Karpathy JSON, JSON lines of {image, captions}, or another format
            (see docs/data-formats.md); classification: a directory of WebDataset shards, class directories or parquet
            files; compositional: the benchmark's own file or directory of files, or JSON lines of {image, caption,
            negative}; MLLM: a directory in the Hub's structure (it contains ``lmms-lab-encoder/...``).
        task: the benchmark to run (``clips-bench list``), any task name of lmms-eval, or a custom task: its YAML file,
            its directory, or ``FOLDER/TASK``. By default ``name``.
        split: split of the data, if it has any; ``all`` uses every split of retrieval data.
        train_split: the linear probe's training split.
        templates: prompts of zero-shot classification: ``openai_imagenet``, ``simple``, or strings with ``{}`` for the
            class name; by default those in the file next to the data.
        prompt: the LLaVA's prompt for captions, or for multiple choice (with ``{a}`` and ``{b}``); by default the
            benchmark's own.
        likelihood_score: a caption's score: the ``sum`` of its token log-likelihoods, their ``mean``, or
            ``mutual_info``, the sum minus that without the image (pointwise mutual information).
        image_root: directory of the images; by default ``images`` next to a JSON, or the directory of the file.
        captions_per_image: retrieval uses at most this number of captions per image (5 in the COCO protocol).
        format: of retrieval's data, if detection is ambiguous; ``datasets`` for a Hub repo id. For recaption the format
            of a training source, by default ``webdataset``.
        web_caption: recaption: field of the web caption, as ``web_caption`` of a training source.
        synthetic_caption: recaption: field of the synthetic caption, likewise.
        language: of data in several languages.
        languages: multilingual retrieval: the languages to average over.
        subset: a dataset's configuration on the Hub.
        image_column: of a table (CSV, TSV, JSON lines, parquet) or a Hugging Face dataset; by default the first
            existing one of image, jpg, png, image_path, file_name, path, url, image_url.
        caption_columns: likewise; one column of lists, or several. By default the first existing one of captions,
            caption, sentences, texts, text, raw, or caption_0, caption_1, ….
        word_limits: long retrieval: also truncate the captions to these numbers of words.
        blind: additional runs of an MLLM benchmark without the image: ``blank`` (an image of one color), ``shuffled``
            (another item's image). The report credits a score to the images if it is above both.
        blind_items: ratio of the items with an image that a blind run covers; 1 for all.
        limit: use at most this number of images or questions (in classification evenly spaced); for trials. The
            protocol states it.
        max_new_tokens: cap of an answer's length; by default the task's own.
        num_beams: beams of the search for an answer; by default the task's own number, mostly 1 (greedy decoding).
        scale: for a task not in `clips-bench list`: display factor of its metrics; by default 100 if all per-question
            numbers are from 0 to 1 and higher is better, otherwise 1.
        exclude_metrics: lmms-eval's metrics to skip (METEOR takes seconds).
        judge_model: the model that grades answers if the scorer needs one (MM-Vet); by default $MODEL_VERSION, or the
            task's.
        judge_url: its OpenAI-compatible URL, ``http://host:port/v1``; by default $OPENAI_API_URL, or OpenAI's.
        judge_key_env: the environment variable with its API key, if the server needs one.
    """

    name: str = dataclasses.field(metadata=RUN_ONLY)
    data: str = dataclasses.field(metadata=RUN_ONLY)  # its hash counts
    task: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)  # its entry counts
    split: str = "test"
    train_split: str = "train"
    templates: str | tuple[str, ...] | None = None
    prompt: str | None = None
    likelihood_score: Likelihood = "sum"
    image_root: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    captions_per_image: Positive = 5
    format: str | None = None
    web_caption: str = "auto"
    synthetic_caption: str = "auto"
    language: str | None = None
    languages: tuple[str, ...] = ()
    subset: str | None = None
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    word_limits: tuple[Positive, ...] = (8, 16, 32, 64, 128, 256)
    blind: tuple[BlindKind, ...] = ()
    blind_items: PositiveFraction = 0.075
    limit: Positive | None = None
    max_new_tokens: Positive | None = None
    num_beams: Positive | None = None
    scale: PositiveFloat | None = None
    exclude_metrics: tuple[str, ...] = ()
    judge_model: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)  # the resolved name counts
    judge_url: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    judge_key_env: str = dataclasses.field(default="OPENAI_API_KEY", metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        check_name(self.name, "benchmarks.name")
        if self.templates is not None:
            check_templates(self.templates, "benchmarks.templates")
        if self.likelihood_score not in get_args(Likelihood):
            raise unknown_name_error(self.likelihood_score, get_args(Likelihood), "benchmarks.likelihood_score")
        for kind in self.blind:
            if kind not in get_args(BlindKind):
                raise unknown_name_error(kind, get_args(BlindKind), "benchmarks.blind")
        if len(set(self.blind)) < len(self.blind):
            raise UserError(f"benchmarks.blind: expected different kinds (benchmark '{self.name}')")
        if not self.word_limits or list(self.word_limits) != sorted(set(self.word_limits)):
            raise UserError(
                f"benchmarks.word_limits: expected increasing numbers, got {list(self.word_limits)} "
                f"(benchmark '{self.name}')"
            )
        if len(set(self.languages)) < len(self.languages):
            raise UserError(f"benchmarks.languages: expected different ones (benchmark '{self.name}')")

    def local_paths(self) -> dict[str, str]:
        """Field → path that must exist; a Hub repo id need not."""
        paths = {"data": None if self.format == "datasets" else self.data, "image_root": self.image_root}
        return {field: path for field, path in paths.items() if path is not None}

    def given(self) -> list[str]:
        """The fields with another value than the default."""
        fields = dataclasses.fields(self)
        return [each.name for each in fields if getattr(self, each.name) != each.default]

    @property
    def entry(self) -> str:
        """Its name in the registry or in lmms-eval."""
        return self.task or self.name


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
class RunConfig:
    """Evaluate one model on a list of benchmarks and write one result file for each.

    Args:
        model_name: the model's name in the table.
        output: directory of the result files, ``<output>/<model_name>/<benchmark>.json``.
        benchmarks: the benchmarks, each with its data.
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
        batch_size: images, captions or questions per forward pass; with ``endpoint`` concurrent requests.
        precision: of the model; ``auto`` is fp32, except for a LLaVA on a GPU, which runs in bf16.
        device: ``auto`` is a GPU if available.
        overwrite: evaluate again although a result exists.
    """

    model_name: str
    output: str
    benchmarks: list[BenchmarkConfig]
    encoder: str | None = None
    llava: str | None = None
    endpoint: tuple[str, ...] = ()
    endpoint_key_env: str = "OPENAI_API_KEY"
    retry_minutes: float = 30.0
    token_prices: tuple[float, float] | None = None
    lmms: LmmsModel | None = None
    batch_size: Positive = 64
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False

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
        if self.lmms is not None and (blind := [each.name for each in self.benchmarks if each.blind]):
            raise UserError(f"benchmarks.blind: expected 'llava:' instead of lmms ({blind[0]})")
        if self.endpoint and (beams := [each.name for each in self.benchmarks if (each.num_beams or 1) > 1]):
            raise UserError(f"benchmarks.num_beams: expected 1 with endpoint, whose API has no beams ({beams[0]})")
        names = [benchmark.name for benchmark in self.benchmarks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"benchmarks.name: '{twice[0]}' is used twice; rename one and set its 'task:'")

    @property
    def dtype(self) -> str:
        """``precision`` as torch names it, or ``auto``."""
        return TORCH_DTYPES[self.precision]
