"""WebDataset's tar shards, local and remote: images next to JSON or text files of the same name.

Training has random access to them by an index of their headers, and leaves out what it cannot read; benchmarks read
all samples of whole shards, and reject what they cannot read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.artifact import MANIFEST, directory_hash
from clips.core.identity import sampled_hash
from clips.data.formats.conversations import (
    CONVERSATION_KEYS,
    EXPECTED_FORMAT,
    ROW_KEYS,
    apply_row_settings,
    parse_messages,
    place_images,
    read_record,
    reject_video,
    unread_keys,
)
from clips.data.formats.dataset_format import (
    WHOLE,
    Captioned,
    Classified,
    Conversation,
    Dataset,
    Location,
    Turn,
    register,
)
from clips.data.formats.source import CAPTION_NAMES, Record, Sample, Source, SourceConfig, choose_captions
from clips.data.images import IMAGE_SUFFIXES, InvalidSampleError
from clips.data.lazy_images import LazyImage, TarImage
from clips.data.remote_files import (
    ShardCache,
    UnreachableError,
    expand_brace_ranges,
    file_name,
    is_remote,
    read_file,
    sibling,
)
from clips.data.tar_index import ShardIndex, Shards, Spans, check_download, index_shard, is_clutter, read_byte_range
from clips.errors import UserError, error_reason, unknown_name_error
from clips.safe_text import log_info
from clips.text_files import encoding_of, parse_object, safe_json_loads, text_lines

SIZES_FILE = "sizes.json"
"""A file next to the shards: {shard name: number of samples}, as in webdataset and open_clip."""
MANY_SHARDS = 2048
"""Of more the indexes are not all in memory, which take 1.6 GB for 10,000 samples each."""
_HELD = 128  # indexes in memory, besides those of a shuffle buffer
_QUICK_BYTES = 1e9
"""Total size of local shards that are counted at the start: of small samples this takes about 5 s, and once."""
_METADATA_SUFFIXES = {".cls", ".json", ".txt", ".key"}  # that WebDataset's writers add to an image
_OTHER_FORMATS = {".json": "karpathy or coco"} | dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), "table")


def list_shards(path: str) -> list[str]:
    """The shards of ``path``: a directory's .tar files, or a range of local or remote names.

    Raises:
        UserError: there are none.
    """
    location = expand_brace_ranges(path)
    if is_remote(path):
        return location
    if len(location) == 1 and Path(path).is_dir():
        location = list(map(str, _shards(Path(path))))
        if not location:
            raise UserError(f"{path}: expected .tar shards in this directory, found none")
    listed = functools.cache(_names)  # one call for a directory, which may be far, instead of one for each shard
    for shard in location:
        folder, _, name = shard.rpartition("/")
        if name not in listed(folder or ("/" if shard.startswith("/") else ".")) and not Path(shard).exists():
            raise UserError(f"{shard}: no such file or directory")
        if other := _OTHER_FORMATS.get(Path(shard).suffix.lower()):
            raise UserError(f"{shard}: expected tar shards, as format webdataset has them; give format: {other}")
    return location


def _names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:  # a link, as git-annex makes them, may lead nowhere
            return frozenset(entry.name for entry in entries if not entry.is_symlink() or Path(entry).exists())
    except OSError:
        return frozenset()


def _is_quick(shards: Sequence[str]) -> bool:
    total = 0
    for shard in shards:  # of very many not even the sizes are read
        total += Path(shard).stat().st_size
        if total > _QUICK_BYTES:
            return False
    return True


def shards_of_split(location: Location) -> tuple[Path, list[Path]]:
    """The split's directory, or the dataset's if it has no splits, and its shards: ``test/0.tar``, ``test/1.tar``, …

    CLIP_benchmark's writer (``webdataset_builder.py``) states their number in ``test/nshards.txt``.
    """
    directory = location.path / location.spec.split
    if not _shards(directory):
        if location.spec.split != "test":
            raise UserError(
                f"{location.path}: has no split '{location.spec.split}' (expected .tar shards in {directory})"
            )
        directory = location.path
    shards = _shards(directory)
    if not shards:
        raise UserError(f"{location.path}: expected .tar shards, found none")
    count_file = directory / "nshards.txt"
    if count_file.is_file():  # detects shards that were not copied
        expected = count_file.read_text(encoding="utf-8", errors="replace").strip()
        if expected != str(len(shards)):
            raise UserError(f"{directory}: expected {expected:.20} shards, as nshards.txt says, found {len(shards)}")
    return directory, shards


def is_webdataset(location: Location) -> bool:
    """Shards in the directory, or in directories of splits."""
    folders = [location.path, *(path for path in location.path.glob("*") if path.is_dir())]
    return location.path.is_dir() and any(map(_shards, folders))


def _shards(directory: Path) -> list[Path]:
    shards = [path for path in directory.glob("*.[tT][aA][rR]") if not is_clutter(path.name)]
    return sorted(shards, key=lambda path: _numeric_key(path.name))


def _numeric_key(name: str) -> list[tuple[int, str]]:
    """The order of numbered files: 10.tar comes after 9.tar."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _image_extension(files: Spans) -> str | None:
    """The extension of a sample's image; of several images it is the first in the order of `IMAGE_SUFFIXES`.

    Raises:
        UserError: there is no image, but one of the name ``KEY.anything.jpg``.
    """
    for suffix in IMAGE_SUFFIXES:
        if suffix[1:] in files:
            return suffix[1:]
    if longer := next((name for name in files if name.endswith(IMAGE_SUFFIXES)), None):
        extension = longer.rpartition(".")[2]
        raise UserError(f"no .{extension}, but .{longer}: a sample's name ends at the first dot")
    return None


def _whole_samples(root: Path, shards: list[Path]) -> Iterator[tuple[Path, str, Spans, TarImage | None]]:
    """Shard, name, files and image of each sample, for benchmarks."""
    for shard in shards:
        for key, files in index_shard(shard, allow_cut=False):
            try:
                extension = _image_extension(files)
            except UserError as error:
                raise UserError(f"{shard}/{key}: {error}") from None
            image = TarImage(root, shard, f"{key}.{extension}", *files[extension]) if extension else None
            yield shard, key, files, image


@register("webdataset", "captions", takes=("split",), fits=is_webdataset, is_general=True)
def read_captions(location: Location) -> Dataset[Captioned]:
    """The images that have a caption next to them: ``captions`` in a JSON, or a ``.txt`` with one per line."""
    directory, shards = shards_of_split(location)

    def records() -> Iterator[Captioned]:
        # stored results name captioned images from the dataset's directory, classified ones from the split's
        for shard, key, files, image in _whole_samples(location.path, shards):
            if image is None:
                continue
            value: Any = None
            if "json" in files:
                value = parse_object(read_byte_range(shard, *files["json"]), f"{shard}/{key}.json").get("captions")
            if value is None and "txt" in files:  # img2dataset writes both, the JSON about the image
                value = text_lines(read_byte_range(shard, *files["txt"]), f"{shard}/{key}.txt")
            yield Captioned([image], value)

    return Dataset(records=records(), split=WHOLE if directory == location.path else location.spec.split)


@register("webdataset", "classes")
def read_classes(location: Location) -> Dataset[Classified]:
    """Images with their class index in a ``.cls`` file."""
    directory, shards = shards_of_split(location)
    records, skipped = [], Counter[str]()
    for shard, key, files, image in _whole_samples(directory, shards):
        skipped.update(f".{name}" for name in files if f".{name}" not in {*IMAGE_SUFFIXES, *_METADATA_SUFFIXES})
        if image is None:
            continue
        if "cls" not in files:
            raise UserError(f"{image}: expected {key}.cls next to it, the index of its class")
        content = read_byte_range(shard, *files["cls"]).decode("utf-8", "replace").strip()
        if not content.isdecimal():
            raise UserError(f"{shard}/{key}.cls: expected the index of one class, got {content!r:.40}")
        records.append(Classified(image.name, image, int(content)))
    return Dataset(records=records, split=WHOLE if directory == location.path else location.spec.split, skipped=skipped)


@register("webdataset", "conversations")
def read_conversations(location: Location) -> Dataset[Conversation]:
    """``key.json`` has the text, ``key.jpg`` or ``key.0.jpg, key.1.jpg …`` the images in order."""
    shards = list_shards(location.spec.path)
    if is_remote(location.spec.path):
        raise UserError(f"{location.spec.path}: expected local files; download them first")

    def parse(shard: Path, key: str, files: Spans) -> tuple[list[LazyImage], list[Turn], list[str]]:
        if "json" not in files:
            raise UserError(f"expected {key}.json with the conversation, found {', '.join(files)}")
        row = safe_json_loads(read_byte_range(shard, *files["json"]))
        reject_video(row)
        column = next(name for name in CONVERSATION_KEYS if name in row)
        turns = parse_messages(row[column])
        names = sorted((name for name in files if f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES), key=_numeric_key)
        images: list[LazyImage] = [TarImage(shard.parent, shard, f"{key}.{name}", *files[name]) for name in names]
        turns = apply_row_settings(row, place_images(turns, len(images)))
        # its images are members of the shard, whatever their names in the row
        return images, turns, unread_keys(row, {"id", "image", "images", column, *ROW_KEYS}, row[column])

    def records() -> Iterator[Conversation]:
        for shard in map(Path, shards):
            index = index_shard(shard)
            index.warn_if_cut(shard)
            for key, files in index:
                expected = f"{key}.json: expected an object with {EXPECTED_FORMAT}"
                yield read_record(f"{shard.name}/{key}", expected, parse, shard, key, files)

    return Dataset(records=records())


@register("webdataset", "source", **CAPTION_NAMES)
class WebDatasetSource(Source):
    """Tar shards; with a file of their sizes (`SIZES_FILE`), a large or remote shard is opened only when it is needed.

    The index of a shard decides how many samples it has. Where that is read at the start, it corrects the file; a shard
    that turns out later to have more samples than stated ends the reading, before any is left out: the order of a run
    that has begun cannot get more samples. Samples that a shard lacks are invalid samples.
    """

    def __init__(self, config: SourceConfig, facts: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.copies = ShardCache(Path(config.cache_dir).expanduser(), config.max_cache_gb * 1e9)
        self.shards: list[str] = list_shards(config.path) if facts is None else facts["shards"]
        self.is_remote = any(map(is_remote, self.shards))
        self.sizes_file = config.shard_sizes or sibling(self.shards[0], SIZES_FILE)
        self.tars = Shards(self.shards, self.copies, _HELD)
        self.unreadable: dict[int, str] = {}  # shard index → its error
        self._described: dict[str, Any] | None = None
        if facts is not None:
            self.is_counted, self.blocks, self.ends = facts["is_counted"], facts["blocks"], np.cumsum(facts["blocks"])
            self.unreadable, self._described = dict(facts["unreadable"]), facts["described"]
            if not self.is_remote and not Path(self.shards[0]).is_file():
                raise UserError(f"{self.shards[0]}: no such file on {socket.gethostname()}, but where the run began")
            return
        sizes = _known_sizes(self.sizes_file, self.shards, may_count=not (config.shard_sizes or self.is_remote))
        self.is_counted = sizes is None
        self.blocks = sizes or self._count_samples()
        self.ends = np.cumsum(self.blocks)
        if sizes and not self.is_remote and _is_quick(self.shards):
            self._correct_sizes()
        self.check_keys()

    @property
    def facts(self) -> Any:
        """See `Source`."""
        return {
            "shards": self.shards,
            "blocks": self.blocks,
            "is_counted": self.is_counted,
            "unreadable": self.unreadable,
            "described": self.describe(),
        }

    def _count_samples(self) -> list[int]:
        """Samples in each shard, 0 for one of the few that may be unreadable."""
        counts, self.unreadable = self.tars.count()
        if len(self.unreadable) > 0.02 * len(self.shards):
            raise UserError([*self.unreadable.values()][-1])
        for error in self.unreadable.values():
            log_info(f"{error}; none of its samples is used")
        return counts

    def hold(self, blocks: int | None) -> None:
        """See `Source`. An index takes 0.8 MB for 10,000 samples; read here, it is in memory once for all workers."""
        if self.is_remote or (blocks is not None and blocks < len(self.shards)):
            self._keep_indexes(min(blocks or 0, MANY_SHARDS) + _HELD)
        elif self.is_counted or len(self.shards) <= MANY_SHARDS:
            self._keep_indexes(len(self.shards))
            if self.tars.index.cache_info().currsize < len(self.shards):
                self.tars.count()  # by all cores; done before on the main process's node
            if not self.is_counted:
                self._correct_sizes()
            for shard in np.flatnonzero(self.blocks).tolist():
                with contextlib.suppress(InvalidSampleError):
                    self._opened(shard)

    def _keep_indexes(self, number: int) -> None:
        if self.tars.max_indexes < min(number, len(self.shards)):  # else those that are in memory stay there
            self.tars = Shards(self.shards, self.copies, number)

    def _correct_sizes(self) -> None:
        """Read all indexes, and take from each the number of samples where `SIZES_FILE` states another."""
        self._keep_indexes(len(self.shards))
        self.is_counted, differing = True, list[str]()
        for shard, stated in enumerate(self.blocks):
            with contextlib.suppress(InvalidSampleError):  # of samples that are replaced when they are read
                index = self._opened(shard)
                if len(index) > stated or (len(index) < stated and not index.cut):  # what is cut off is invalid samples
                    differing.append(f"{stated} samples of {file_name(self.shards[shard])}, which has {len(index)}")
                    self.blocks[shard] = len(index)
        if differing:
            more = f"; {len(differing) - 5} more shards differ" if len(differing) > 5 else ""
            log_info(f"{self.sizes_file}: states {', '.join(differing[:5])}{more}; the shards themselves are counted")
            self.ends = np.cumsum(self.blocks)
            self._described = None

    def fetch(self, block: int) -> Path:
        """See `Source`. The index is built later, by DataLoader workers."""
        return self.copies.path(self.shards[block], check_download)

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        shard, files = self._files(index)
        try:
            extension = _image_extension(files)
        except UserError as error:
            raise InvalidSampleError(str(error)) from None
        if extension is None:
            raise InvalidSampleError("no image")
        captions = self._captions(shard, files, rng)
        return Sample(self._bytes(shard, files[extension]), *captions)

    def captions(self, index: int, rng: np.random.Generator) -> tuple[str, str]:
        """See `Source`."""
        return self._captions(*self._files(index), rng)

    def _files(self, index: int) -> tuple[int, Spans]:
        """The shard of a sample, and its files there."""
        shard, sample = self._locate(index)
        samples = self._index(shard)
        if sample >= len(samples):
            raise InvalidSampleError(f"missing, but counted in {SIZES_FILE}")
        return shard, samples.files(sample)

    def _captions(self, shard: int, files: Spans, rng: np.random.Generator) -> tuple[str, str]:
        fields = self._json(shard, files)

        def captions(name: str) -> Any:
            if not name.startswith("."):
                return fields.get(name)
            try:
                # the whole text is one caption, as open_clip reads it: alt texts have line breaks
                content = self._bytes(shard, files[name[1:]]) if name[1:] in files else None
                return content if content is None else content.decode(encoding_of(content))
            except UnicodeDecodeError as error:
                raise InvalidSampleError(f"{name} is not UTF-8 text ({error.reason})") from None

        return choose_captions(self.config, captions, rng)

    def record(self, index: int) -> Record:
        """See `Source`."""
        shard, sample = self._locate(index)
        samples = self.tars.index(shard)
        files = samples.files(sample)
        others = {name: span for name, span in files.items() if f".{name}" not in (*IMAGE_SUFFIXES, ".json")}
        contents = {name: self._bytes(shard, span) for name, span in others.items()}
        return Record(samples.key(sample), self._json(shard, files), files=contents)

    def name(self, index: int) -> str:
        """See `Source`."""
        shard, sample = self._locate(index)
        key = str(sample)
        if shard not in self.unreadable and sample < len(samples := self.tars.index(shard)):
            key = samples.key(sample)
        return f"{file_name(self.shards[shard])}/{key}"

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        if self._described is None:
            self._described = self._describe()
        return self._described

    def contents(self) -> str:
        """See `Source`."""
        is_artifact = not is_remote(self.config.path) and (Path(self.config.path) / MANIFEST).is_file()
        return "" if is_artifact else sampled_hash(shard for shard in self.shards if not is_remote(shard))

    def _describe(self) -> dict[str, Any]:
        described = {"path": self.config.path, "shards": len(self.shards), "samples": len(self)}
        root = Path(self.config.path)
        if not is_remote(self.config.path) and (root / MANIFEST).is_file():
            return described | {"hash": directory_hash(root)}
        digest = hashlib.sha256()
        for shard, size in zip(self.shards, self.blocks, strict=True):
            num_bytes = None if is_remote(shard) else Path(shard).stat().st_size
            digest.update(json.dumps([file_name(shard), size, num_bytes]).encode())
        return described | {"index_hash": digest.hexdigest()}

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard]) + self.blocks[shard]

    def _index(self, shard: int) -> ShardIndex:
        """As `_opened`.

        Raises:
            UserError: a shard has more samples than the order knows.
        """
        index = self._opened(shard)
        if len(index) > self.blocks[shard]:
            raise UserError(
                f"{self.sizes_file}: states {self.blocks[shard]} samples of {file_name(self.shards[shard])}, which has "
                f"{len(index)}; `clips data index` counts them"
            )
        return index

    def _opened(self, shard: int) -> ShardIndex:
        """The samples of a shard. Raises InvalidSampleError (unreadable) or UnreachableError."""
        if shard not in self.unreadable:
            try:
                return self.tars.index(shard)
            except UnreachableError:
                raise
            except UserError as error:
                self.unreadable[shard] = str(error)
        raise InvalidSampleError(self.unreadable[shard])

    def _bytes(self, shard: int, span: tuple[int, int]) -> bytes:
        for _ in range(2):  # another process may have freed space in between
            try:
                return read_byte_range(self.copies.path(self.shards[shard], check_download), *span)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise InvalidSampleError(f"unreadable ({error_reason(error)})") from None
        raise InvalidSampleError("deleted while it was read")

    def _json(self, shard: int, files: Spans) -> dict[str, Any]:
        """The fields of a sample's JSON, if it has one. Raises InvalidSampleError."""
        if "json" not in files:
            return {}
        fields = None
        with contextlib.suppress(ValueError, RecursionError):
            fields = safe_json_loads(self._bytes(shard, files["json"]))
        if not isinstance(fields, dict):
            raise InvalidSampleError("broken JSON")
        return fields

    def check_keys(self) -> None:
        """Raise UserError for a caption key that none of the first 20 samples of the first 16 shards has."""
        extensions: dict[str, None] = {}
        keys: dict[str, None] = {}
        wanted = [("web_caption", self.config.web_caption)]
        wanted += [("synthetic_caption", name) for name in self.config.synthetics]
        unreadable = ""
        for shard in itertools.islice(np.flatnonzero(self.blocks).tolist(), 16):
            try:
                index = self._index(shard)
            except InvalidSampleError as error:
                unreadable = unreadable or str(error)
                continue
            for files in map(index.files, range(min(20, len(index)))):
                extensions |= dict.fromkeys(files)
                with contextlib.suppress(InvalidSampleError):
                    keys |= dict.fromkeys(self._json(shard, files))
            if all(key in keys or (key.startswith(".") and key[1:] in extensions) for _, key in wanted):
                return
        if unreadable and not extensions:
            raise UserError(unreadable)
        listed = ", ".join(f".{name}" for name in extensions)
        for field, key in wanted if extensions else []:  # without samples, `open_source` says so
            what = f"{self.config.path}: data source's '{field}' expects"
            if key.startswith("."):
                if key[1:] not in extensions:
                    raise UserError(f"{what} a {key} file (found {listed})")
            elif "json" not in extensions:
                raise UserError(f"{what} key '{key}' in a .json file; none (found {listed})")
            elif keys and key not in keys:
                wrong = unknown_name_error(key, keys, f"key for data source field {field}")
                raise UserError(f"{self.config.path}: {wrong}")


def _known_sizes(file: str, shards: list[str], *, may_count: bool) -> list[int] | None:
    """Samples in each shard, by a JSON file; None if it is missing or lacks a shard, and the shards may be counted."""
    try:
        sizes = safe_json_loads(read_file(file))
        if not isinstance(sizes, dict):
            raise ValueError
        names = [url if (url := shard.rpartition("/")[2]) in sizes else file_name(shard) for shard in shards]
        counts = [sizes[name] for name in names]
        if not all(type(count) in (int, float) and count >= 0 and count == int(count) for count in counts):
            raise ValueError
        return [int(count) for count in counts]
    except KeyError as error:
        if may_count:
            return None
        raise UserError(
            f"{file}: expected the number of samples in {error.args[0]}; `clips data index` counts them"
        ) from None
    except ImportError as error:  # fsspec's, for a protocol whose library is not installed
        raise UserError(f"{file}: cannot be read ({error_reason(error)})") from None
    except OSError as error:
        if may_count:
            return None
        missing = isinstance(error, FileNotFoundError)
        raise UserError(
            f"{file}: {'no such file' if missing else f'cannot be read ({error_reason(error)})'}; remote shards need "
            "this count of their samples: `clips data index SHARDS --output sizes.json` writes it; set the data "
            "source's 'shard_sizes' if it is not next to them"
        ) from None
    except (ValueError, OverflowError):
        raise UserError(f"{file}: expected a JSON object of shard name → number of samples") from None
