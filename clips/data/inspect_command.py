"""Look at training data before money is spent on it.

clips data inspect /data/recap/shards
clips data inspect rows.parquet --format table --web_caption org_caption --synthetic_caption re_caption
clips data index s3://bucket/recap            (writes sizes.json, which shards from afar need)
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clips.commandline.progress import progress_iter
from clips.core.artifact import atomic_write, log_info, write_errors_as_user_errors
from clips.data.formats.tar_shards import list_shards
from clips.data.images import BadImageError, decode_image
from clips.data.inspect_page import Example, Span, evenly, thumbnail, write_page
from clips.data.invalid_samples import InvalidSamples
from clips.data.remote_files import ShardCache, is_remote
from clips.data.shard_index import index_shard
from clips.data.sources import BadSampleError, Sample, Source, SourceConfig, open_source, shard_lengths
from clips.data.sources.webdataset import SIZES_FILE
from clips.errors import UserError
from clips.method.caption_strategies import sentences
from clips.model.tokenizer import BOS, CONTEXT_LENGTH, EOS, ClipsTokenizer
from clips.sanitize import strip_control_chars

_BLOCKS_COPIED = 16  # of a source from afar, for a look at it
_AT_ONCE = 8  # shards copied and counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectDatasetConfig(SourceConfig):
    """Report what a source of training data holds: counts, caption lengths, samples, and invalid samples.

    Args:
        num_samples: number of samples to read, spread evenly over the source, if remote over 16 of its shards; 0 reads
            all.
        num_shown: how many of them the page shows with their images.
        html_output: the HTML page to write.
        seed: of the captions that are sampled where a sample has several.
    """

    num_samples: int = 2000
    num_shown: int = 24
    html_output: str = "inspect.html"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_samples", "num_shown", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")


@dataclasses.dataclass
class DatasetStats:
    """Statistics of a source.

    Args:
        samples: in the source.
        scanned: of them read.
        invalid: samples that training would skip.
        tokens: "web" and "synthetic" → WordPiece tokens of each caption, begin and end token left out.
        sentences: of each synthetic caption; ``sentence_tokens`` of each of its sentences.
        sizes: width and height of each image.
        formats: encodings of the images → how many.
        file_sizes: bytes of each encoded image.
        duplicates: ratio of the web captions that an earlier sample has as well.
        examples: some samples.
    """

    samples: int
    scanned: int = 0
    invalid: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)
    tokens: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {"web": [], "synthetic": []})
    sentences: list[int] = dataclasses.field(default_factory=list)
    sentence_tokens: list[int] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    file_sizes: list[int] = dataclasses.field(default_factory=list)
    duplicates: float = 0.0
    examples: list[Example] = dataclasses.field(default_factory=list)


def run_inspect(config: InspectDatasetConfig) -> None:
    """Carry out ``config``: a summary on the terminal, and the page.

    Raises:
        UserError: the source cannot be read, or none of its samples is valid.
    """
    source = open_source(config)
    found = collect_stats(source, config)
    lines = list(format_stats(found))
    for line in lines:
        print(strip_control_chars(line))
    if found.scanned and not found.sizes:
        raise UserError(f"{config.path}: none of {found.scanned:,} samples can be used; the reasons are printed above")
    sides = [min(size) for size in found.sizes]
    charts = {
        "Tokens of a web caption": found.tokens["web"],
        "Tokens of a synthetic caption": found.tokens["synthetic"],
        "Sentences of a synthetic caption": found.sentences,
        "Pixels of an image's short side": sides,
    }
    write_page(
        config.html_output,
        title=config.path,
        lines=lines,
        examples=found.examples,
        invalid=found.invalid,
        charts=charts,
    )


def collect_stats(source: Source, config: InspectDatasetConfig) -> DatasetStats:
    """Read samples spread over ``source`` and collect their `Survey`."""
    found = DatasetStats(samples=len(source))
    chosen = _chosen(source, config.num_samples)
    shown = set(chosen[evenly(len(chosen), config.num_shown)].tolist()) if config.num_shown else set()
    tokenizer, seen = ClipsTokenizer(), Counter[str]()
    for index in progress_iter(chosen.tolist(), "reading"):
        found.scanned += 1
        try:
            sample = source.read(index, np.random.default_rng([config.seed, index]))
            image = decode_image(sample.image)
        except (BadSampleError, BadImageError) as error:
            found.invalid.add([(index, source.name(index), str(error))])
            continue
        _count(found, sample, tokenizer)
        found.sizes.append(image.size)
        found.formats[Image.open(io.BytesIO(sample.image)).format or "?"] += 1
        if sample.web:
            seen[sample.web] += 1
        if index in shown:
            texts = {label: [Span(text=text)] for label, text in _texts(sample).items() if text}
            found.examples.append(Example(name=source.name(index), thumbnails=[thumbnail(image)], texts=texts))
    found.duplicates = 1 - len(seen) / max(1, seen.total())
    return found


def _chosen(source: Source, count: int) -> np.ndarray:
    """Indexes of ``count`` samples, 0 for all, spread evenly; remote ones of few blocks, which are copied whole."""
    everything, blocks = np.arange(len(source)), shard_lengths(source)
    if count and getattr(source, "from_afar", False) and len(blocks) > _BLOCKS_COPIED:
        log_info(f"only {_BLOCKS_COPIED} of {len(blocks):,} shards are looked at, since each has to be copied")
        ends = np.cumsum(blocks)
        copied = evenly(len(blocks), _BLOCKS_COPIED)
        everything = np.concatenate([np.arange(ends[block] - blocks[block], ends[block]) for block in copied])
    return everything[evenly(len(everything), count)]


def _count(found: DatasetStats, sample: Sample, tokenizer: ClipsTokenizer) -> None:
    found.file_sizes.append(len(sample.image))
    for kind, text in _texts(sample).items():
        if text:
            found.tokens[kind] += _lengths([text], tokenizer)
    if pieces := sentences(sample.synthetic):
        found.sentences.append(len(pieces))
        found.sentence_tokens += _lengths(pieces, tokenizer)


def _lengths(texts: list[str], tokenizer: ClipsTokenizer) -> list[int]:
    """Tokens of each text, those that every row has left out."""
    rows = tokenizer.encode_target(texts, 2048)
    return [int(count) for count in ((rows != 0) & (rows != BOS) & (rows != EOS)).sum(dim=1)]


def _texts(sample: Sample) -> dict[str, str]:
    return {"web": sample.web, "synthetic": sample.synthetic}


def format_stats(found: DatasetStats) -> Iterator[str]:
    """The survey in lines of text."""
    yield f"samples     {found.samples:,} in the source, {found.scanned:,} read, {found.invalid.count:,} invalid"
    yield from found.invalid.summary()
    if not found.sizes:
        return
    for kind, lengths in found.tokens.items():
        if lengths:
            without = len(found.sizes) - len(lengths)
            none = f"; {without:,} samples have none" if without else ""
            yield f"{kind:<11} {_spread(lengths)} tokens; {_too_long(lengths)}{none}"
        else:
            yield f"{kind:<11} none"
    if found.sentences:
        yield f"            {_spread(found.sentences)} sentences in a synthetic caption, of which recipes such as clips"
        yield f"            contrast one at a time: {_spread(found.sentence_tokens)} tokens;"
        yield f"            {_too_long(found.sentence_tokens)}"
    yield f"repeated    {found.duplicates:.1%} of the web captions are another sample's as well"
    short = [min(size) for size in found.sizes]
    kinds = ", ".join(f"{name} {count / found.formats.total():.0%}" for name, count in found.formats.most_common())
    yield f"images      {_spread(short)} pixels on the short side; {kinds}"
    yield f"            {_spread([size / 1024 for size in found.file_sizes])} KiB"


def _too_long(lengths: Sequence[int]) -> str:
    """The share that the text tower's rows, three of whose places are taken, do not hold whole."""
    share = np.mean(np.asarray(lengths) > CONTEXT_LENGTH - 3)
    return f"{share:.1%} are longer than the text tower's {CONTEXT_LENGTH} places"


def _spread(values: Sequence[float]) -> str:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"median {median:,.0f} (5 % below {low:,.0f}, 5 % above {high:,.0f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexShardsConfig:
    """Count the samples of tar shards and write sizes.json, with which training opens no shard before it needs it.

    Args:
        path: a directory of .tar files, one .tar, or addresses as `clips data inspect` takes them.
        output: the file to write; null means sizes.json beside shards of this machine.
        cache_dir: the folder for copies of shards from afar.
        max_cache_gb: how much that folder may hold.
    """

    path: str
    output: str | None = None
    cache_dir: str = "~/.cache/clips/shards"
    max_cache_gb: float = 100.0


def run_index(config: IndexShardsConfig) -> None:
    """Carry out ``config``; what an interrupted call has counted is not counted again."""
    shards = list_shards(config.path)
    if config.output is None and is_remote(config.path):
        raise UserError(
            f"output: expected a file to write, since {config.path} is not here; then upload it as {SIZES_FILE}"
        )
    cache = ShardCache(Path(config.cache_dir).expanduser(), config.max_cache_gb * 1e9)
    output = Path(config.output) if config.output else Path(shards[0]).parent / SIZES_FILE
    begun = output.with_name(f"{output.name}.partial")
    sizes: dict[str, int] = {}
    with write_errors_as_user_errors(begun):
        sizes |= _counted_before(begun)
        atomic_write(begun, "".join(json.dumps(entry) + "\n" for entry in sizes.items()))  # without half a line
        left = [shard for shard in shards if _name(shard) not in sizes]
        with begun.open("a", encoding="utf-8") as record, concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
            counts = threads.map(lambda shard: len(index_shard(cache.path(shard))), left)
            for shard, count in zip(progress_iter(left, "reading"), counts, strict=True):
                sizes[_name(shard)] = count
                record.write(json.dumps([_name(shard), count]) + "\n")
                record.flush()
    atomic_write(output, json.dumps({_name(shard): sizes[_name(shard)] for shard in shards}, indent=1) + "\n")
    begun.unlink()
    log_info(f"{output}: {sum(sizes.values()):,} samples in {len(sizes):,} shards")


def _name(shard: str) -> str:
    return shard.rpartition("/")[2]


def _counted_before(begun: Path) -> dict[str, int]:
    """What a call that was interrupted wrote; its last line may be half a one."""
    lines = begun.read_text(encoding="utf-8").split("\n")[:-1] if begun.exists() else []
    return dict(map(json.loads, lines))
