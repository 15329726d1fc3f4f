"""``clips-bench contamination``: detection of benchmark images in the training data, exact and near duplicates."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.formatting import format_duration
from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.data.classification_sets import load_classification_set
from clips.core.artifact import atomic_write, log_info
from clips.data.formats import DatasetSpec
from clips.data.formats.dataset_format import Location
from clips.data.formats.tar_shards import is_webdataset
from clips.data.parquet_limits import iter_record_batches
from clips.data.sources.source import SourceConfig
from clips.errors import UserError
from clips.typed_data import to_plain

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_HAMMING_DISTANCE = 60
"""Hamming distance, of `BITS`, up to which two images count as duplicates."""
DCT_SIZE = 16
BITS = DCT_SIZE * DCT_SIZE
_MIN_STD = 2.0  # gray levels: below it, an image has only noise
_MAX_CHUNK_PAIRS = 4_000_000


@dataclass(frozen=True)
class ImageHash:
    """The hashes of an image.

    Args:
        pixels: SHA-256 of its size and pixels.
        bits: (4,) uint64, the perceptual hash; None for an image of a single color.
    """

    pixels: bytes
    bits: np.ndarray | None


def hash_image(image: Image) -> ImageHash:
    """The hashes of an RGB image."""
    from PIL.Image import Resampling
    from scipy.fft import dctn

    gray = np.asarray(image.convert("L").resize((4 * DCT_SIZE, 4 * DCT_SIZE), Resampling.LANCZOS), np.float32)
    pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
    if gray.std() < _MIN_STD:
        return ImageHash(pixels, None)
    coefficients = dctn(gray, norm="ortho")[:DCT_SIZE, :DCT_SIZE].ravel()
    return ImageHash(pixels, np.packbits(coefficients > np.median(coefficients[1:])).view(np.uint64))


def near_pairs(first: np.ndarray, second: np.ndarray, within: int) -> Iterator[tuple[int, int, int]]:
    """(index, index, Hamming distance) of all pairs of (N, 4) and (M, 4) uint64 hashes at most ``within`` apart.

    All pairs are compared, in numpy chunks: time grows as N × M, memory does not.
    """
    rows = max(1, _MAX_CHUNK_PAIRS // max(1, len(second)))
    for start in range(0, len(first), rows):
        chunk = first[start : start + rows]
        distances = np.zeros((len(chunk), len(second)), np.uint16)
        for word in range(BITS // 64):
            distances += np.bitwise_count(chunk[:, word, None] ^ second[None, :, word])
        for row, column in zip(*np.nonzero(distances <= within), strict=True):
            yield start + int(row), int(column), int(distances[row, column])


_NUM_THREADS = 2
_CHUNK_SIZE = 4096  # images
_LOG_EVERY_SECONDS = 60

NamedImage = tuple[str, bytes]


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """Find images of a benchmark in training data: identical pixels, or near duplicates by a perceptual hash.

    Args:
        training: the sources, as ``data.sources`` in ``clips train``.
        benchmark: its data as for ``clips-bench run`` in retrieval or classification; or a directory (or one file) of
            parquet with images, as lmms-eval's tasks have.
        split: the split, if the data have splits; not for parquet.
        image_root: directory of the images, if it is not next to the captions.
        language: any language of a multilingual benchmark, since all share their images.
        max_hamming_distance: Hamming distance, of 256 bits, up to which two images count as duplicates.
        output: the pairs, .csv or .json.
    """

    training: list[SourceConfig]
    benchmark: str
    split: str = "test"
    image_root: str | None = None
    language: str | None = None
    max_hamming_distance: int = MAX_HAMMING_DISTANCE
    output: str | None = None

    def __post_init__(self) -> None:
        if not self.training:
            raise UserError("training: expected at least one source")
        if not 0 <= self.max_hamming_distance < BITS // 2:
            raise UserError(f"max_hamming_distance: expected 0 to {BITS // 2 - 1}, got {self.max_hamming_distance}")
        if self.output is not None and Path(self.output).suffix not in {".csv", ".json"}:
            raise UserError(f"output: expected a name that ends in .csv or .json, got '{self.output}'")


@dataclass(frozen=True)
class DuplicatePair:
    """A training image and its duplicate in the benchmark.

    Args:
        training: the training image's name.
        benchmark: the benchmark's.
        hamming_distance: of their hashes, out of 256.
        exact: whether all pixels are equal.
    """

    training: str
    benchmark: str
    hamming_distance: int
    exact: bool


@dataclass
class ContaminationResult:
    """Numbers of images, unreadable images, and pairs of duplicates."""

    training: int = 0
    benchmark: int = 0
    unreadable: list[str] = field(default_factory=list)
    pairs: list[DuplicatePair] = field(default_factory=list)

    @property
    def exact(self) -> int:
        """Number of benchmark images with equal pixels in the training data."""
        return len({pair.benchmark for pair in self.pairs if pair.exact})

    @property
    def near(self) -> int:
        """Number of benchmark images with near duplicates only."""
        return len({pair.benchmark for pair in self.pairs}) - self.exact


def run_contamination(config: ContaminationConfig) -> None:
    """Print counts and ratios, and write the pairs to ``output``.

    Raises:
        UserError: missing or malformed data, or a benchmark without images.
    """
    from clips.data.sources import open_source

    started = time.perf_counter()
    sources = [open_source(source) for source in config.training]
    images = benchmark_images(config.benchmark, split=config.split, images=config.image_root, language=config.language)
    training = itertools.chain.from_iterable(_training_images(source) for source in sources)
    found = find_duplicates(training, images, within=config.max_hamming_distance)
    if not found.benchmark:
        raise UserError(f"benchmark: {config.benchmark}: contains no image")
    for line in format_result(found, config.max_hamming_distance):
        print(line)
    if config.output:
        lines = [to_plain(pair) for pair in found.pairs]
        atomic_write(config.output, _json(found, lines) if config.output.endswith(".json") else _csv(lines))
        log_info(f"pairs: {config.output}")
    log_info(f"took {format_duration(time.perf_counter() - started)}")


def find_duplicates(
    training: Iterable[NamedImage], benchmark: Iterable[NamedImage], *, within: int = MAX_HAMMING_DISTANCE
) -> ContaminationResult:
    """Compare every training image with every benchmark image.

    Args:
        training: (name, encoded image); an unreadable image has no bytes. They are read in chunks.
        benchmark: likewise; 64 bytes of each image stay in memory.
        within: Hamming distance up to which two images count as duplicates.
    """
    found = ContaminationResult()
    known = [each for chunk in _hashed_chunks(benchmark, found) for each in chunk]
    found.benchmark = len(known)
    by_pixels: dict[bytes, list[str]] = {}
    for name, image_hash in known:
        by_pixels.setdefault(image_hash.pixels, []).append(name)
    names, bits = _perceptual_hashes(known)
    logged = time.monotonic()
    for chunk in _hashed_chunks(training, found):
        found.training += len(chunk)
        exact = {(own, name) for own, image_hash in chunk for name in by_pixels.get(image_hash.pixels, ())}
        found.pairs += [DuplicatePair(*pair, 0, True) for pair in sorted(exact)]
        own_names, own_bits = _perceptual_hashes(chunk)
        near = [
            (own_names[row], names[column], bits_off) for row, column, bits_off in near_pairs(own_bits, bits, within)
        ]
        found.pairs += [DuplicatePair(*pair, False) for pair in near if pair[:2] not in exact]
        if time.monotonic() - logged > _LOG_EVERY_SECONDS:
            log_info(f"{found.training:,} training images, {len(found.pairs):,} pairs")
            logged = time.monotonic()
    return found


def _hashed_chunks(images: Iterable[NamedImage], found: ContaminationResult) -> Iterator[list[tuple[str, ImageHash]]]:
    """Hash the images in chunks on threads; unreadable images are added to ``found``."""
    remaining = iter(images)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        while chunk := list(itertools.islice(remaining, _CHUNK_SIZE)):
            names = [name for name, _ in chunk]
            hashes = list(pool.map(_hash_bytes, (content for _, content in chunk)))
            found.unreadable += [name for name, each in zip(names, hashes, strict=True) if each is None]
            yield [(name, each) for name, each in zip(names, hashes, strict=True) if each is not None]


def _hash_bytes(content: bytes) -> ImageHash | None:
    from clips.data.images import InvalidImageError, decode_image

    try:
        return hash_image(decode_image(content))
    except InvalidImageError:
        return None


def _perceptual_hashes(images: Sequence[tuple[str, ImageHash]]) -> tuple[list[str], np.ndarray]:
    """Names and (N, 4) perceptual hashes of the images that have one."""
    hashes = [(name, image.bits) for name, image in images if image.bits is not None]
    return [name for name, _ in hashes], np.array([bits for _, bits in hashes], np.uint64).reshape(-1, BITS // 64)


def _training_images(source: Any) -> Iterator[NamedImage]:
    """(name, encoded image) of a source; no bytes for samples that training would skip."""
    from clips.data.sources import InvalidSampleError

    for index in range(len(source)):
        try:
            yield source.name(index), source.read(index, np.random.default_rng(index)).image
        except InvalidSampleError:
            yield source.name(index), b""


def benchmark_images(
    data: str, *, split: str = "test", images: str | None = None, language: str | None = None
) -> Iterator[NamedImage]:
    """(name, encoded image) of a benchmark's data, see `ContaminationConfig`.

    Raises:
        UserError: missing or malformed.
    """
    path = Path(data)
    spec = DatasetSpec(path=data, split=split, image_root=images, language=language)
    if path.suffix == ".parquet" or (
        path.is_dir() and not is_webdataset(Location(spec)) and next(path.rglob("*.parquet"), None)
    ):
        yield from _from_parquet(path)
        return
    try:
        captions = load_caption_set(spec)
    except UserError as error:
        if not path.is_dir():
            raise
        yield from _from_classes(data, split, error)
        return
    for image in captions.files:
        yield image.name, image.read()


def _from_classes(data: str, split: str, caption_error: UserError) -> Iterator[NamedImage]:
    """The images of a classification dataset; raises ``caption_error`` if it is none."""
    try:
        found = load_classification_set(data, split=split)
    except UserError:
        raise caption_error from None
    for name, image in zip(found.images, found.files, strict=True):
        yield name, image.read()


def _from_parquet(path: Path) -> Iterator[NamedImage]:
    """The images of all image columns, which ``datasets`` stores as {bytes, path}."""
    import pyarrow
    from pyarrow import parquet

    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        try:
            table = parquet.ParquetFile(file)
            columns = [field.name for field in table.schema_arrow if _has_images(field.type)]
            row = 0
            for batch in (
                iter_record_batches(str(file), file, columns=columns, footer=table.metadata) if columns else ()
            ):
                for values in batch.to_pylist():
                    for name, value in values.items():
                        if value and value["bytes"]:
                            yield f"{file.name} row {row} {name}", value["bytes"]
                    row += 1
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise UserError(f"benchmark: {file}: not a readable parquet file ({error})") from None


def _has_images(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and "bytes" in {field.name for field in kind}


def format_result(found: ContaminationResult, within: int) -> Iterator[str]:
    """The counts and ratios in lines of text."""
    yield f"training    {found.training:,} images"
    yield f"benchmark   {found.benchmark:,} images"
    if found.unreadable:
        yield f"unreadable  {len(found.unreadable):,} images, which were skipped, for instance {found.unreadable[0]}"
    yield f"exact       {_ratio(found.exact, found)} of the benchmark have equal pixels in the training data"
    near = _ratio(found.near, found)
    yield f"near        {near} more differ from a training image in at most {within} of {BITS} bits"


def _ratio(count: int, found: ContaminationResult) -> str:
    return f"{count:,} ({count / found.benchmark:.2%})"


def _json(found: ContaminationResult, lines: list[dict[str, Any]]) -> str:
    counts = {name: getattr(found, name) for name in ("training", "benchmark", "exact", "near")}
    content = counts | {"unreadable": found.unreadable, "pairs": lines}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _csv(lines: list[dict[str, Any]]) -> str:
    import pandas as pd

    names = [each.name for each in dataclasses.fields(DuplicatePair)]
    return pd.DataFrame(lines, columns=names).to_csv(index=False, lineterminator="\n")
