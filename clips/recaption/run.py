"""Synthetic captions for a dataset: the first step of VeCLIP and Recap-DataComp-1B.

    clips recaption /data/cc12m --web_caption .txt --model llava-hf/llava-1.5-7b-hf --output /data/cc12m-recap
    torchrun --nproc-per-node 8 -m clips.cli recaption --config recaption.yaml
    clips recaption --config recaption.yaml --shard $SLURM_ARRAY_TASK_ID/64       (a SLURM array 1-64)

After an interruption the same command resumes with the missing shards. The last process to finish writes sizes.json,
manifest.json and README.md.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clips.commandline.progress import Progress
from clips.core.artifact import atomic_write, check_finished, log_info
from clips.core.identity import RUN, identity, read_run, reject_other_run, run_text
from clips.data.images import InvalidImageError, decode_image
from clips.data.sources import InvalidSampleError, Sample, Source, open_source, shard_lengths
from clips.recaption.recaption_config import WEB_CAPTION_PLACEHOLDER, RecaptionConfig
from clips.recaption.shard_writers import (
    WORK_DIR,
    CaptionedSample,
    ShardWriter,
    finalize_dataset,
    save_model_record,
    shard_name,
)

if TYPE_CHECKING:
    from clips.recaption.caption_model import CaptionModel, GeneratedCaption


_MIN_GROUP_BATCHES = 64  # at most one of them is not full
_WINDOW_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """Samples ``start`` … ``stop - 1`` of the source; ``number`` is in the shard's file name."""

    number: int
    start: int
    stop: int


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


def overlaps(window: range, shard: OutputShard) -> bool:
    """Whether the window contains samples of the shard."""
    return window.start < shard.stop and shard.start < window.stop


_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)(?!.*[.!?][\"'”’)\]]*\s)", re.DOTALL)


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
    """Collapse whitespace; drop the incomplete last sentence of a truncated text if a complete one precedes it."""
    text = " ".join(generated.text.split())
    if drop_incomplete_sentence and not generated.ended and (end := _SENTENCE_END.search(f"{text} ")):
        return text[: end.end()]
    return text


KIND = "captions"


@dataclasses.dataclass(frozen=True)
class LoadedSample:
    """A valid sample of the source with its decoded image."""

    index: int
    sample: Sample
    image: Image.Image


def run_recaption(config: RecaptionConfig) -> None:
    """Run `clips recaption`."""
    source = open_source(config)
    shards = split_into_shards(shard_lengths(source), config.shard_size)
    if not _start_or_resume(config, len(source)):
        log_info(f"{config.output}: done before")
        return
    number, count = config.share()
    groups = group_shards(shards, config.batch_size)[number::count]
    missing = [shard for group in groups for shard in group if not _is_done(shard, config)]
    if missing:
        from clips.recaption.caption_model import CaptionModel

        caption_model = CaptionModel(config)
        save_model_record(config, caption_model)
        with Progress("captioning", sum(shard.stop - shard.start for shard in missing), "samples") as progress:
            for group in groups:
                if any(not _is_done(shard, config) for shard in group):
                    _caption_group(group, source, caption_model, config, progress)
    num_missing = sum(not _is_done(shard, config) for shard in shards)
    if num_missing:
        rest = f"{num_missing} of {len(shards)} shards are missing or other processes write them"
        log_info(f"{config.output}: this part is done; {rest}")
    else:
        finalize_dataset(config, source, [shard_name(shard.number, config) for shard in shards])


def _start_or_resume(config: RecaptionConfig, samples: int) -> bool:
    """Create the directory or resume in it; False if it is complete. UserError if it belongs to another run."""
    work, run = Path(config.output) / WORK_DIR, identity("clips recaption", config, {"samples": samples})
    if check_finished(config.output, KIND, run, work=work):
        return False
    recorded = read_run(work / RUN)
    if recorded is None:
        atomic_write(work / RUN, run_text(run))
    else:
        reject_other_run(config.output, recorded, run)
    return True


def _is_done(shard: OutputShard, config: RecaptionConfig) -> bool:
    return (Path(config.output) / shard_name(shard.number, config)).is_file()


def _caption_group(
    group: Sequence[OutputShard],
    source: Source,
    caption_model: CaptionModel,
    config: RecaptionConfig,
    progress: Progress,
) -> None:
    """Write the missing shards of a group; a window shared with finished shards is captioned again."""
    missing = [shard for shard in group if not _is_done(shard, config)]
    windows = split_into_windows(group, config.batch_size)
    windows = [window for window in windows if any(overlaps(window, shard) for shard in missing)]
    writer: ShardWriter | None = None
    try:
        for window, samples in _read_ahead(windows, source, config):
            captions = _caption_window(window, samples, caption_model, config)
            for index in window:
                if not missing or index < missing[0].start:
                    continue
                shard = missing[0]
                writer = writer or ShardWriter(shard.number, config)
                generated = captions.get(index, [])
                if reason := _add_sample(writer, samples[index], generated, source, config):
                    writer.dropped.add([(index - shard.start, source.name(index), reason)])
                progress.advance(tokens=sum(caption.tokens for caption in generated))
                if index == shard.stop - 1:
                    _finish(writer, shard, config)
                    log_info(f"{writer.summary()} · {progress.rates()}")
                    del missing[0]
                    writer = None
    finally:
        if writer is not None:
            writer.abandon()


def _read_ahead(
    windows: Sequence[range], source: Source, config: RecaptionConfig
) -> Iterator[tuple[range, dict[int, LoadedSample | str]]]:
    """Each window with its samples, or the reasons why they are invalid; the next window is read meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(config.num_workers, thread_name_prefix="reader") as executor:

        def submit(window: range) -> list[concurrent.futures.Future[LoadedSample | str]]:
            return [executor.submit(_read, source, index, config) for index in window]

        try:
            pending = submit(windows[0])
            for window, following in itertools.zip_longest(windows, windows[1:], fillvalue=range(0)):
                submitted = submit(following)
                yield window, {index: future.result() for index, future in zip(window, pending, strict=True)}
                pending = submitted
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _read(source: Source, index: int, config: RecaptionConfig) -> LoadedSample | str:
    try:
        sample = source.read(index, np.random.default_rng([config.seed, index]))
        image = decode_image(sample.image, at_least=config.max_image_size)
    except (InvalidSampleError, InvalidImageError) as error:
        return str(error)
    image.thumbnail((config.max_image_size, config.max_image_size))
    return LoadedSample(index, sample, image)


def _caption_window(
    window: range, samples: dict[int, LoadedSample | str], caption_model: CaptionModel, config: RecaptionConfig
) -> dict[int, list[GeneratedCaption]]:
    """Index → captions of the valid samples, generated in batches of prompts of similar length."""
    valid = [sample for sample in samples.values() if isinstance(sample, LoadedSample)]
    texts = [config.prompt.replace(WEB_CAPTION_PLACEHOLDER, sample.sample.web) for sample in valid]
    prompts = {sample.index: caption_model.prompt(text) for sample, text in zip(valid, texts, strict=True)}
    valid.sort(key=lambda sample: len(prompts[sample.index]))
    generated: dict[int, list[GeneratedCaption]] = {}
    for start in range(0, len(valid), config.batch_size):
        batch = valid[start : start + config.batch_size]
        images, batch_prompts = [sample.image for sample in batch], [prompts[sample.index] for sample in batch]
        seed = int(np.random.SeedSequence([config.seed, window.start, start]).generate_state(1)[0])
        captions = caption_model.describe(images, batch_prompts, seed)
        generated |= {sample.index: each for sample, each in zip(batch, captions, strict=True)}
    return generated


def _add_sample(
    writer: ShardWriter,
    loaded: LoadedSample | str,
    generated: list[GeneratedCaption],
    source: Source,
    config: RecaptionConfig,
) -> str:
    """Append a sample; returns the reason if it has no caption, else an empty string."""
    if isinstance(loaded, str):
        return loaded
    captions, reason = filter_captions(generated, config)
    if captions:
        captioned = CaptionedSample(source.record(loaded.index), loaded.sample.image, loaded.sample.web, captions)
        writer.add(captioned, sum(caption.tokens for caption in generated))
    return "" if captions else reason


def _finish(writer: ShardWriter, shard: OutputShard, config: RecaptionConfig) -> None:
    """Complete a shard, unless too many of its samples were dropped."""
    writer.dropped.check(str(writer.target), "max_invalid_ratio", config.max_invalid_ratio, shard.stop - shard.start)
    writer.finish()
