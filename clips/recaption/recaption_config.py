"""The config of `clips recaption`."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Literal

from clips.core.chat_client import check_urls
from clips.core.identity import RUN_ONLY
from clips.data.sources import SourceConfig
from clips.errors import UserError
from clips.ranges import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFraction

WEB_CAPTION_PLACEHOLDER = "{web}"
_SHARD = re.compile(r"(\d+)/(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecaptionConfig(SourceConfig):
    """Write a synthetic caption for every image of a source, with an image-text model of transformers or of a server.

    Args:
        synthetic_caption: existing long caption; not used, but an image that has one needs no web caption.
        weight: must be null, since there is one source.
        model: the model's directory or Hub repo id, for ``AutoModelForImageTextToText``; with ``endpoint`` its name
            there.
        endpoint: base URLs of servers with OpenAI's chat API (vLLM, SGLang, llava-bridge serve), such as
            ``[http://host:8000/v1]``; several serve the same model. The model is not loaded here.
        endpoint_key_env: the environment variable with the servers' API key, if they need one.
        requests_in_flight: maximum number of concurrent requests of this process; 16 batches (batch_size) are read
            ahead at most.
        retry_minutes: how long a request is repeated while no server answers it; then the run ends, and resumes.
        estimate: caption this number of images, print the time, tokens and cost of all, and write nothing. The time
            is realistic for several times requests_in_flight, or batch_size, images.
        token_prices: prices of a million input and output tokens, for ``estimate``.
        import_modules: Python modules to import first, and their ``register()`` to call if they have it, so that
            transformers knows the model; a LLaVA of the bridge needs ``[llava_bridge]``.
        output: the directory to write.
        output_format: tar: WebDataset shards with the same images and fields, and the caption; parquet: tables of key,
            image (path or URL, if the source has it), web caption and caption.
        caption_column: the key or column that the caption is written to.
        prompt: the prompt, formatted with the model's chat template if it has one; {web} is replaced by the web
            caption.
        batch_size: images per batch.
        max_new_tokens: maximum length of a caption.
        temperature: 0 is greedy decoding; above 0, tokens are sampled.
        top_p: sample from the most probable tokens whose probabilities add up to this.
        num_captions: number of captions per image; several need a temperature above 0 and are written as a list, of
            which training samples one each time.
        drop_incomplete_sentence: drop the incomplete last sentence of a truncated caption.
        min_words: shorter captions are dropped.
        max_words: longer captions are dropped; null keeps them.
        max_image_size: larger images are resized to this number of pixels for the model; the output has the originals.
        shard_size: maximum number of samples in an output shard; none has samples of two shards of the source.
        shard: "3/64" is the third of 64 runs that share the work, for instance of a SLURM array. Under torchrun, the
            processes share the work of a run.
        num_workers: threads that read and decode images ahead.
        precision: fp32 or bf16; auto is bf16 on a GPU that supports it.
        max_invalid_ratio: stop if a shard loses more than this ratio of its samples to invalid images and dropped
            captions.
        seed: seed of the sampling.
    """

    synthetic_caption: str | None = None
    image_root: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    model: str
    import_modules: tuple[str, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    endpoint: tuple[str, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    endpoint_key_env: str = dataclasses.field(default="OPENAI_API_KEY", metadata=RUN_ONLY)
    requests_in_flight: Positive = dataclasses.field(default=64, metadata=RUN_ONLY)
    retry_minutes: NonNegativeFloat = dataclasses.field(default=30.0, metadata=RUN_ONLY)
    estimate: NonNegative = dataclasses.field(default=0, metadata=RUN_ONLY)
    token_prices: tuple[float, float] | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    output: str = dataclasses.field(metadata=RUN_ONLY)
    output_format: Literal["tar", "parquet"] = "tar"
    caption_column: str = "re_caption"
    prompt: str = "Describe this picture in detail."
    batch_size: Positive = 32
    max_new_tokens: Positive = 256
    temperature: NonNegativeFloat = 0.0
    top_p: PositiveFraction = 1.0
    num_captions: Positive = 1
    drop_incomplete_sentence: bool = True
    min_words: Positive = 1
    max_words: int | None = None
    max_image_size: Positive = 1024
    shard_size: Positive = 10_000
    shard: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    num_workers: Positive = dataclasses.field(default=8, metadata=RUN_ONLY)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_invalid_ratio: Fraction = dataclasses.field(default=0.2, metadata=RUN_ONLY)
    seed: NonNegative = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None:
            raise UserError(f"weight: expected null, since recaption reads one source, got {self.weight}")
        check_urls("endpoint", self.endpoint)
        if self.num_captions > 1 and not self.temperature:
            raise UserError(f"temperature: expected above 0 for {self.num_captions} captions per image, got 0")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(f"max_words: expected {self.min_words} (min_words) or more, got {self.max_words}")
        if self.caption_column == self.web_caption:
            raise UserError(f"caption_column: expected a name other than the web caption's '{self.web_caption}'")
        if self.output_format == "parquet" and self.caption_column in {"key", "image", self.web_caption.lstrip(".")}:
            raise UserError(f"caption_column: expected a name other than '{self.caption_column}', another column's")
        self.share()

    def share(self) -> tuple[int, int]:
        """(index, count): this process does every ``count``-th part of the work, starting with ``index``."""
        number, count = 1, 1
        if self.shard is not None:
            match = _SHARD.fullmatch(self.shard)
            number, count = (int(match[1]), int(match[2])) if match else (0, 0)
            if not 1 <= number <= count:
                raise UserError(f"shard: expected for instance 3/64, the third of 64, got '{self.shard}'")
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        return (number - 1) * world_size + rank, count * world_size
