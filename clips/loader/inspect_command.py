"""Statistics and samples of training data, before training.

clips data inspect /data/recap/shards
clips data inspect rows.parquet --format table --web_caption org_caption --synthetic_caption re_caption
clips data index s3://bucket/recap            (writes sizes.json, which remote shards require)
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clips.commandline.progress import progress_iter
from clips.core.durable import atomic_write, write_errors_as_user_errors
from clips.data.formats.webdataset import SIZES_FILE, list_shards
from clips.data.images import InvalidImageError, InvalidSampleError, decode_image
from clips.data.remote_files import ShardCache, file_name, is_remote
from clips.data.sources import Source, SourceConfig, open_source
from clips.data.tar_index import Shards
from clips.errors import UserError
from clips.loader.inspection import Example, InspectionConfig, Span, report_inspection
from clips.loader.invalid_samples import InvalidSamples
from clips.loader.sampler import evenly
from clips.method.caption_strategies import sentences
from clips.model.tokenizer import BOS, CONTEXT_LENGTH, EOS, ClipsTokenizer, unknown_tokens
from clips.ranges import NonNegative, NonNegativeFloat
from clips.safe_text import log_info

_MAX_REMOTE_SHARDS = 16  # downloaded for an inspection
_NUM_THREADS = 8  # that download and count shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectDatasetConfig(InspectionConfig, SourceConfig):
    """Report statistics of a training data source: counts, caption lengths, samples, and invalid samples.

    Args:
        num_samples: number of samples to read, evenly spaced over the source, or over 16 shards of a remote source; 0
            reads all.
        seed: seed for choosing among several captions of a sample.
    """

    seed: NonNegative = 0


@dataclasses.dataclass
class DatasetStats:
    """Statistics of a source. Tokens are WordPiece's, without BOS and EOS."""

    samples: int  # in the source
    scanned: int = 0
    invalid: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)
    tokens: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {"web": [], "synthetic": []})
    unknown: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # `TextTokenizer.count_unknown`
    sentences: list[int] = dataclasses.field(default_factory=list)  # of each synthetic caption
    sentence_tokens: list[int] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # width and height of each image
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    file_sizes: list[int] = dataclasses.field(default_factory=list)  # bytes
    duplicates: float = 0.0  # ratio of web captions that an earlier sample has as well
    examples: list[Example] = dataclasses.field(default_factory=list)


def run_inspect(config: InspectDatasetConfig) -> None:
    """Run `clips data inspect`: print samples and a summary.

    Raises:
        UserError: the source cannot be read, or none of its samples is valid.
    """
    source = open_source(config)
    stats = collect_stats(source, config)
    lines = list(format_stats(stats))
    report_inspection(config.path, lines=lines, examples=stats.examples, invalid=stats.invalid, num_read=stats.scanned)


def collect_stats(source: Source, config: InspectDatasetConfig) -> DatasetStats:
    """Read evenly spaced samples of ``source`` and collect their statistics."""
    stats = DatasetStats(samples=len(source))
    indices, count, lengths = np.arange(len(source)), config.num_samples, source.blocks
    if count and source.is_remote and len(lengths) > _MAX_REMOTE_SHARDS:
        log_info(f"only {_MAX_REMOTE_SHARDS} of {len(lengths):,} shards are inspected, since each must be downloaded")
        ends, shards = np.cumsum(lengths), evenly(len(lengths), _MAX_REMOTE_SHARDS)
        indices = np.concatenate([np.arange(ends[shard] - lengths[shard], ends[shard]) for shard in shards])
    chosen = indices[evenly(len(indices), count)]
    shown, tokenizer, seen = config.shown(chosen), ClipsTokenizer(), Counter[str]()
    for index in progress_iter(chosen.tolist(), "reading", "samples"):
        stats.scanned += 1
        try:
            sample = source.read(index, np.random.default_rng([config.seed, index]))
            image = decode_image(sample.image)
        except (InvalidSampleError, InvalidImageError) as error:
            stats.invalid.add([(index, source.name(index), str(error))])
            continue
        captions = {"web": sample.web, "synthetic": sample.synthetic}
        for kind, text in captions.items():
            if text:
                stats.tokens[kind] += _lengths([text], tokenizer)
                stats.unknown.append(tokenizer.count_unknown([text]))
        if pieces := sentences(sample.synthetic):
            stats.sentences.append(len(pieces))
            stats.sentence_tokens += _lengths(pieces, tokenizer)
        stats.file_sizes.append(len(sample.image))
        stats.sizes.append(image.size)
        stats.formats[Image.open(io.BytesIO(sample.image)).format or "?"] += 1
        if sample.web:
            seen[sample.web] += 1
        if index in shown:
            texts = {label: [Span(text=text)] for label, text in captions.items() if text}
            stats.examples.append(Example(name=source.name(index), texts=texts))
    stats.duplicates = 1 - len(seen) / max(1, seen.total())
    return stats


def _lengths(texts: list[str], tokenizer: ClipsTokenizer) -> list[int]:
    """Number of tokens of each text, without BOS, EOS and padding."""
    lengths: list[int] = []
    for start in range(0, len(texts), 256):  # a caption of a megabyte may have 200,000 sentences, a row of 16 kB each
        rows = tokenizer.encode_target(texts[start : start + 256], 2048)
        lengths += ((rows != 0) & (rows != BOS) & (rows != EOS)).sum(dim=1).tolist()
    return lengths


def format_stats(stats: DatasetStats) -> Iterator[str]:
    """The statistics as lines of text."""
    yield f"samples     {stats.samples:,} in the source, {stats.scanned:,} read, {stats.invalid.count:,} invalid"
    yield from stats.invalid.summary()
    if not stats.sizes:
        return
    for kind, lengths in stats.tokens.items():
        if lengths:
            missing = len(stats.sizes) - len(lengths)
            none = f"; {missing:,} samples have none" if missing else ""
            yield f"{kind:<11} {_quantiles(lengths)} tokens; {_too_long(lengths)}{none}"
        else:
            yield f"{kind:<11} none"
    if stats.sentences:
        yield f"            {_quantiles(stats.sentences)} sentences in a synthetic caption; recipes such as clips"
        yield f"            contrast one of them at a time: {_quantiles(stats.sentence_tokens)} tokens;"
        yield f"            {_too_long(stats.sentence_tokens)}"
    if stats.unknown:
        yield f"unknown     {unknown_tokens(*map(sum, zip(*stats.unknown, strict=True)))}"
    yield f"repeated    {stats.duplicates:.1%} of the web captions are another sample's as well"
    short = [min(size) for size in stats.sizes]
    kinds = ", ".join(f"{name} {count / stats.formats.total():.0%}" for name, count in stats.formats.most_common())
    yield f"images      {_quantiles(short)} pixels on the short side; {kinds}"
    yield f"            {_quantiles([size / 1024 for size in stats.file_sizes])} KiB"


def _too_long(lengths: Sequence[int]) -> str:
    """The ratio of captions that the text tower truncates; its context includes three special tokens."""
    ratio = np.mean(np.asarray(lengths) > CONTEXT_LENGTH - 3)
    return f"{ratio:.1%} are longer than the text tower's context of {CONTEXT_LENGTH} tokens"


def _quantiles(values: Sequence[float]) -> str:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"median {median:,.0f} (5 % below {low:,.0f}, 5 % above {high:,.0f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexShardsConfig:
    """Count the samples of tar shards and write sizes.json, so that training opens a shard only when it is needed.

    Args:
        path: a directory of .tar files, one .tar, or URLs as for `clips data inspect`.
        output: the file to write; null means sizes.json next to local shards.
        cache_dir: the directory for copies of remote shards.
        max_cache_gb: its maximum size.
    """

    path: str
    output: str | None = None
    cache_dir: str = "~/.cache/clips/shards"
    max_cache_gb: NonNegativeFloat = 100.0


def run_index(config: IndexShardsConfig) -> None:
    """Run `clips data index`; shards that an interrupted call has counted are not counted again."""
    shards = list_shards(config.path)
    if len(names := {file_name(shard) for shard in shards}) < len(shards):
        raise UserError(f"{config.path}: expected shards of different file names, got {len(shards)} of {len(names)}")
    if config.output is None and is_remote(config.path):
        raise UserError(f"output: expected a file, since {config.path} is remote; then upload it as {SIZES_FILE}")
    cache = ShardCache(Path(config.cache_dir).expanduser(), config.max_cache_gb * 1e9)
    output = Path(config.output) if config.output else Path(shards[0]).parent / SIZES_FILE
    partial = output.with_name(f"{output.name}.partial")
    sizes: dict[str, int] = {}
    with write_errors_as_user_errors(partial):
        lines = partial.read_text(encoding="utf-8").split("\n")[:-1] if partial.exists() else []
        sizes |= dict(map(json.loads, lines))
        atomic_write(partial, "".join(json.dumps(entry) + "\n" for entry in sizes.items()))  # without a partial line
        missing = [shard for shard in shards if file_name(shard) not in sizes]
        tars = Shards(missing, cache, max_indexes=_NUM_THREADS)
        with partial.open("a", encoding="utf-8") as log, concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as threads:
            counts: Iterable[int]
            errors: dict[int, str] = {}
            if is_remote(config.path):
                counts = threads.map(lambda place: len(tars.index(place)), range(len(missing)))
            else:
                counts, errors = tars.count()  # by all cores
            for place, count in zip(progress_iter(range(len(missing)), "reading", "shards"), counts, strict=True):
                if place not in errors:
                    sizes[file_name(missing[place])] = count
                    log.write(json.dumps([file_name(missing[place]), count]) + "\n")
                    log.flush()
            for error in errors.values():
                raise UserError(error)
    atomic_write(output, json.dumps({file_name(shard): sizes[file_name(shard)] for shard in shards}, indent=1) + "\n")
    partial.unlink()
    log_info(f"{output}: {sum(sizes.values()):,} samples in {len(sizes):,} shards")
