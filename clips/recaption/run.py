"""Synthetic captions for a dataset: the first step of VeCLIP and Recap-DataComp-1B.

    clips recaption /data/cc12m --web_caption .txt --model llava-hf/llava-1.5-7b-hf --output /data/cc12m-recap
    torchrun --nproc-per-node 8 -m clips.cli recaption --config recaption.yaml
    clips recaption --config recaption.yaml --shard $SLURM_ARRAY_TASK_ID/64       (a SLURM array 1-64)

After an interruption the same command resumes with the next window of batches. The last process to finish writes
sizes.json, manifest.json and README.md.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from clips.commandline.progress import Progress, log_estimate
from clips.core.artifact import MANIFEST, check_finished, directory_hash, read_manifest
from clips.core.cache import read_with_checksum, with_checksum
from clips.core.chat_client import without_reasoning
from clips.core.durable import atomic_write
from clips.core.identity import RUN, Identity, identity, read_run, run_text
from clips.data.images import InvalidImageError, InvalidSampleError, decode_image
from clips.data.sources import Source, open_source
from clips.errors import UserError
from clips.recaption.captioners import (
    Captioner,
    CaptionModel,
    CaptionsByIndex,
    ChatCaptioner,
    GeneratedCaption,
    PromptedImage,
)
from clips.recaption.recaption_config import WEB_CAPTION_PLACEHOLDER, RecaptionConfig
from clips.recaption.shard_writers import WORK_DIR, ShardWriter, finalize_dataset, save_model_record, shard_name
from clips.safe_text import log_info
from clips.typed_data import checked

_MIN_GROUP_BATCHES = 64  # at most one of them is not full
_WINDOW_BATCHES = 8
_CHECKED_SAMPLES = 20  # whose fields are looked at before the work
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)(?!.*[.!?][\"'”’)\]]*\s)", re.DOTALL)
KIND = "captions"

SamplesByIndex = dict[int, PromptedImage | str]
"""Index of a sample → the sample, or the reason why it is invalid."""


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """Samples ``start`` … ``stop - 1`` of the source; ``number`` is in the shard's file name."""

    number: int
    start: int
    stop: int


def run_recaption(config: RecaptionConfig) -> None:
    """Run `clips recaption`."""
    config = checked(config)
    source, captioner_class = open_source(config), ChatCaptioner if config.endpoint else CaptionModel
    if config.estimate:
        print_estimate(config, source, captioner_class(config))
        return
    shards = split_into_shards(source.blocks, config.shard_size)
    run = run_identity(config, source)
    if is_finished(config, run):
        log_info(f"{config.output}: done before")
        return
    _check_caption_column(config, source)
    number, count = config.share()
    groups = group_shards(shards, config.batch_size)[number::count]
    missing = [shard for group in groups for shard in group if not _is_done(shard, config)]
    if missing:
        captioner = captioner_class(config)  # its errors leave no output behind
        atomic_write(Path(config.output) / WORK_DIR / RUN, run_text(run))
        save_model_record(config, captioner)
        with Progress("captioning", sum(shard.stop - shard.start for shard in missing), "samples") as progress:
            for group in groups:
                if any(not _is_done(shard, config) for shard in group):
                    _caption_group(group, source, captioner, config, progress)
    num_missing = sum(not _is_done(shard, config) for shard in shards)
    if num_missing:
        rest = f"{num_missing} of {len(shards)} shards are missing or other processes write them"
        log_info(f"{config.output}: this part is done; {rest}")
    else:
        finalize_dataset(config, source, [shard_name(shard.number, config) for shard in shards])


def _check_caption_column(config: RecaptionConfig, source: Source) -> None:
    """Raise UserError if one of the first samples has a field of this name; parquet files get no fields of samples."""
    for index in range(min(_CHECKED_SAMPLES, len(source)) if config.output_format == "tar" else 0):
        with contextlib.suppress(InvalidSampleError):
            if config.caption_column in (fields := source.record(index).fields):
                known = ", ".join(fields)
                raise UserError(
                    f"caption_column: {source.name(index)} has '{config.caption_column}' already; expected a new name "
                    f"(it has: {known})"
                )


def split_into_shards(blocks: Sequence[int], size: int) -> list[OutputShard]:
    """Shards of at most ``size`` samples, none with samples of two blocks (the source's own shards)."""
    shards: list[OutputShard] = []
    first = 0
    for block in blocks:
        for start in range(first, first + block, size):
            shards.append(OutputShard(len(shards), start, min(start + size, first + block)))
        first += block
    return shards


def group_shards(shards: Sequence[OutputShard], batch_size: int) -> list[list[OutputShard]]:
    """Neighboring shards, together at least 64 batches, except for the last group."""
    groups: list[list[OutputShard]] = []
    for shard in shards:
        if groups and shard.start - groups[-1][0].start < _MIN_GROUP_BATCHES * batch_size:
            groups[-1].append(shard)
        else:
            groups.append([shard])
    return groups


def split_into_windows(group: Sequence[OutputShard], batch_size: int) -> list[range]:
    """The samples of a group in windows of eight batches."""
    start, stop, size = group[0].start, group[-1].stop, _WINDOW_BATCHES * batch_size
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def run_identity(config: RecaptionConfig, source: Source) -> Identity:
    """The identity of a recaptioning: its config, its captioner and its samples."""
    inputs = {"samples": len(source), "captioner": "server" if config.endpoint else "transformers"}
    # another model, or other data, may be in their place
    if not config.endpoint and Path(config.model).is_dir():
        inputs["model"] = directory_hash(config.model)
    is_artifact = (Path(config.path) / MANIFEST).is_file()  # whose shards, maybe terabytes, are not hashed again
    described = read_manifest(config.path) if is_artifact else source.describe()
    if content := described.get("hash") or described.get("index_hash"):
        inputs["source"] = content
    if content := source.contents():
        inputs["content"] = content
    return identity("clips recaption", config, inputs)


def is_finished(config: RecaptionConfig, run: Identity) -> bool:
    """Whether the output is complete.

    Raises:
        UserError: it belongs to another run.
    """
    work = Path(config.output) / WORK_DIR
    if check_finished(config.output, KIND, run, work=work, contents=False):  # terabytes
        return True
    recorded = read_run(work / RUN)
    if recorded is not None:
        run.reject_other(config.output, recorded)
    return False


def _is_done(shard: OutputShard, config: RecaptionConfig) -> bool:
    return (Path(config.output) / shard_name(shard.number, config)).is_file()


def _caption_group(
    group: Sequence[OutputShard], source: Source, captioner: Captioner, config: RecaptionConfig, progress: Progress
) -> None:
    missing = [shard for shard in group if not _is_done(shard, config)]
    windows = [
        window
        for window in split_into_windows(group, config.batch_size)
        if any(window.start < shard.stop and shard.start < window.stop for shard in missing)
    ]
    writer: ShardWriter | None = None
    try:
        for window, samples, captions in caption_windows(windows, source, captioner, config):
            for index in window:
                if not missing or index < missing[0].start:
                    continue
                shard, sample, generated = missing[0], samples[index], captions[index]
                writer = writer or ShardWriter(shard.number, config)
                if isinstance(sample, str) or isinstance(generated, str):
                    tokens, reason = 0, str(generated)
                else:
                    tokens = sum(caption.tokens for caption in generated)
                    kept, reason = filter_captions(generated, config)
                    if kept:
                        try:
                            record = source.record(index)
                        except InvalidSampleError as error:
                            reason = str(error)
                        else:
                            if config.output_format == "tar" and config.caption_column in record.fields:
                                reason = f"has the field '{config.caption_column}' already"
                            else:
                                writer.add(record, sample.sample, kept, tokens)
                                reason = ""
                if reason:
                    writer.dropped.add([(index - shard.start, source.name(index), reason)])
                progress.advance(tokens=tokens)
                if index == shard.stop - 1:
                    writer.dropped.check(
                        str(writer.target), "max_invalid_ratio", config.max_invalid_ratio, shard.stop - shard.start
                    )
                    writer.finish()
                    log_info(f"{writer.summary()} · {progress.rates()}")
                    del missing[0]
                    writer = None
    finally:
        if writer is not None:
            writer.abandon()
    for window in windows:
        _window_file(window, config).unlink(missing_ok=True)


def caption_windows(
    windows: Sequence[range], source: Source, captioner: Captioner, config: RecaptionConfig
) -> Iterator[tuple[range, SamplesByIndex, CaptionsByIndex]]:
    """Each window with its samples and their captions, or the reasons why there are none.

    A window is read while the one before is captioned. Its captions are stored until those of its group are written.
    """
    pending: deque[tuple[range, SamplesByIndex, CaptionsByIndex, Callable[[], CaptionsByIndex]]] = deque()

    def finish_oldest() -> tuple[range, SamplesByIndex, CaptionsByIndex]:
        window, samples, stored, captions = pending.popleft()
        if new := captions():
            written = {
                str(index): [dataclasses.astuple(each) for each in texts]
                for index, texts in (stored | new).items()
                if not isinstance(texts, str)  # tried again after an interruption
            }
            atomic_write(_window_file(window, config), with_checksum(written))
        invalid = {index: sample for index, sample in samples.items() if isinstance(sample, str)}
        return window, samples, stored | new | invalid

    for window, samples in _read_ahead(windows, source, config):
        file, stored = _window_file(window, config), CaptionsByIndex()
        if file.is_file():  # of an interrupted run: a shard may take hours
            try:
                content = read_with_checksum(file)
                stored = {int(index): [GeneratedCaption(*each) for each in texts] for index, texts in content.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                log_info(f"{file}: damaged; its samples are captioned again")
        valid = [each for each in samples.values() if isinstance(each, PromptedImage) and each.index not in stored]
        pending.append((window, samples, stored, captioner.submit(window, valid)))
        if len(pending) > captioner.windows_ahead:
            yield finish_oldest()
    while pending:
        yield finish_oldest()


def _window_file(window: range, config: RecaptionConfig) -> Path:
    return Path(config.output) / WORK_DIR / f"captions-{window.start}.json"


def _read_ahead(
    windows: Sequence[range], source: Source, config: RecaptionConfig
) -> Iterator[tuple[range, SamplesByIndex]]:
    with concurrent.futures.ThreadPoolExecutor(config.num_workers, thread_name_prefix="reader") as executor:

        def submit(window: range) -> list[concurrent.futures.Future[PromptedImage | str]]:
            return [executor.submit(_read_image, source, index, config) for index in window]

        try:
            pending = submit(windows[0])
            for window, following in itertools.zip_longest(windows, windows[1:], fillvalue=range(0)):
                submitted = submit(following)
                yield window, {index: future.result() for index, future in zip(window, pending, strict=True)}
                pending = submitted
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _read_image(source: Source, index: int, config: RecaptionConfig) -> PromptedImage | str:
    try:
        sample = source.read(index, np.random.default_rng([config.seed, index]))
        image = decode_image(sample.image, at_least=config.max_image_size)
    except (InvalidSampleError, InvalidImageError) as error:
        return str(error)
    image.thumbnail((config.max_image_size, config.max_image_size))
    return PromptedImage(index, sample, image, config.prompt.replace(WEB_CAPTION_PLACEHOLDER, sample.web))


def filter_captions(generated: Sequence[GeneratedCaption], config: RecaptionConfig) -> tuple[list[str], str]:
    """The cleaned, distinct captions of allowed length, and the reason if there are none."""
    captions, reason = list[str](), "no caption written"
    for output in generated:
        text = clean_caption(output, drop_incomplete_sentence=config.drop_incomplete_sentence)
        words = len(text.split())
        if not words:
            continue
        if words < config.min_words:
            reason = "caption too short"
        elif config.max_words is not None and words > config.max_words:
            reason = "caption too long"
        elif text not in captions:
            captions.append(text)
    return captions, reason


def clean_caption(generated: GeneratedCaption, *, drop_incomplete_sentence: bool) -> str:
    """Without reasoning and line breaks; without a truncated text's last sentence if a complete one precedes it."""
    text = " ".join(without_reasoning(generated.text).split())
    if drop_incomplete_sentence and not generated.ended and (end := _SENTENCE_END.search(f"{text} ")):
        return text[: end.end()]
    return text


def print_estimate(config: RecaptionConfig, source: Source, captioner: Captioner) -> None:
    """Caption ``config.estimate`` images, evenly spaced in the source, and print time, tokens and cost of all of them.

    Raises:
        UserError: none of the images can be captioned.
    """
    total = len(source)
    indices = sorted({number * total // config.estimate for number in range(min(config.estimate, total))})
    with concurrent.futures.ThreadPoolExecutor(config.num_workers) as executor:
        samples = list(executor.map(lambda index: _read_image(source, index, config), indices))
    images = [sample for sample in samples if isinstance(sample, PromptedImage)]
    started = time.monotonic()
    captions = captioner.submit(range(total), images)()
    seconds = time.monotonic() - started
    generated_captions = [generated for generated in captions.values() if not isinstance(generated, str)]
    if not generated_captions:
        reason = next(str(each) for each in (*samples, *captions.values()) if isinstance(each, str))
        raise UserError(f"estimate: none of {len(indices):,} images could be captioned: {reason}")
    written = sum(caption.tokens for generated in generated_captions for caption in generated)
    log_info(f"{len(generated_captions):,} of {len(indices):,} images captioned in {seconds:.1f} s")
    field = "requests_in_flight" if config.endpoint else "batch_size"
    log_estimate(
        part=len(indices),
        total=total,
        seconds=seconds,
        tokens=(captioner.prompt_tokens, written),
        prices=config.token_prices,
        concurrent=(field, getattr(config, field)),
        processes=config.share()[1],
    )
