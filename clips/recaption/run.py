"""Synthetic captions for a dataset: the first step of VeCLIP and Recap-DataComp-1B.

    clips recaption /data/cc12m --web_caption .txt --model llava-hf/llava-1.5-7b-hf --output /data/cc12m-recap
    torchrun --nproc-per-node 8 -m clips.cli recaption --config recaption.yaml
    clips recaption --config recaption.yaml --shard $SLURM_ARRAY_TASK_ID/64       (a SLURM array 1-64)

After an interruption the same command resumes with the missing shards. The last process to finish completes the
directory: sizes.json, manifest.json and README.md.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clips.commandline.progress import Progress
from clips.core.artifact import atomic_write, is_finished, log_info
from clips.core.identity import RUN, identity, read_run, reject_other_run, run_text
from clips.data.images import BadImageError, decode_image
from clips.data.sources import BadSampleError, Sample, Source, open_source, shard_lengths
from clips.recaption.cleaning import filter_captions
from clips.recaption.finalize import finalize_dataset, save_model_record
from clips.recaption.recaption_config import WEB_CAPTION_PLACEHOLDER, RecaptionConfig
from clips.recaption.shard_writers import WORK_DIR, CaptionedSample, ShardWriter, shard_name
from clips.recaption.work_split import OutputShard, group_shards, overlaps, split_into_shards, split_into_windows

if TYPE_CHECKING:
    from clips.recaption.caption_model import CaptionModel, GeneratedCaption

KIND = "captions"


@dataclasses.dataclass(frozen=True)
class LoadedSample:
    """A usable sample of the source, its image ready for the model."""

    index: int
    sample: Sample
    picture: Image.Image


def run_recaption(config: RecaptionConfig) -> None:
    """Carry out ``config``."""
    source = open_source(config)
    shards = split_into_shards(shard_lengths(source), config.shard_size)
    if not _begin(config, len(source)):
        log_info(f"{config.output}: done before")
        return
    number, count = config.share()
    groups = group_shards(shards, config.batch_size)[number::count]
    missing = [shard for group in groups for shard in group if not _is_done(shard, config)]
    if missing:
        from clips.recaption.caption_model import CaptionModel

        found = CaptionModel(config)
        save_model_record(config, found)
        with Progress("captioning", sum(shard.stop - shard.start for shard in missing), "samples") as progress:
            for group in groups:
                if any(not _is_done(shard, config) for shard in group):
                    _caption_group(group, source, found, config, progress)
    left = sum(not _is_done(shard, config) for shard in shards)
    if left:
        log_info(f"{config.output}: this part is done; {left} of {len(shards)} shards are other processes' or missing")
    else:
        finalize_dataset(config, source, [shard_name(shard.number, config) for shard in shards])


def _begin(config: RecaptionConfig, samples: int) -> bool:
    """Create the directory, or resume it; False if it is complete already.

    Raises:
        UserError: it holds something else, or captions with other settings.
    """
    work, run = Path(config.output) / WORK_DIR, identity("clips recaption", config, {"samples": samples})
    if is_finished(config.output, KIND, run, work=work):
        return False
    before = read_run(work / RUN)
    if before is None:
        atomic_write(work / RUN, run_text(run))
    else:
        reject_other_run(config.output, before, run)
    return True


def _is_done(shard: OutputShard, config: RecaptionConfig) -> bool:
    return (Path(config.output) / shard_name(shard.number, config)).is_file()


def _caption_group(
    group: Sequence[OutputShard], source: Source, describer: CaptionModel, config: RecaptionConfig, progress: Progress
) -> None:
    """Write the missing shards of a group; a window shared with finished shards is captioned again."""
    missing = [shard for shard in group if not _is_done(shard, config)]
    windows = [
        window
        for window in split_into_windows(group, config.batch_size)
        if any(overlaps(window, shard) for shard in missing)
    ]
    waiting = list(missing)
    opened: ShardWriter | None = None
    try:
        for window, samples in _read_ahead(windows, source, config):
            written = _caption_window(window, samples, describer, config)
            for index in window:
                if not waiting or index < waiting[0].start:
                    continue
                opened = opened or ShardWriter(waiting[0].number, config)
                said = written.get(index, [])
                if reason := _add(opened, samples[index], said, source, config):
                    opened.dropped.add([(index - waiting[0].start, source.name(index), reason)])
                progress.advance(tokens=sum(one.tokens for one in said))
                if index == waiting[0].stop - 1:
                    _finish(opened, waiting.pop(0), config)
                    _report(opened, progress)
                    opened = None
    finally:
        if opened is not None:
            opened.abandon()


def _report(shard: ShardWriter, progress: Progress) -> None:
    """Log a finished shard and the dropped samples."""
    dropped = f"; {shard.dropped.reasons()}" if shard.dropped.count else ""
    log_info(f"{shard.target.name}: {shard.written:,} captions{dropped} · {progress.rates()}")


def _read_ahead(
    windows: Sequence[range], source: Source, config: RecaptionConfig
) -> Iterator[tuple[range, dict[int, LoadedSample | str]]]:
    """Each window with its samples, or why they cannot be used; the next one is read meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(config.num_workers, thread_name_prefix="reader") as readers:

        def submit(window: range) -> list[concurrent.futures.Future[LoadedSample | str]]:
            return [readers.submit(_read, source, index, config) for index in window]

        try:
            pending = submit(windows[0])
            for number, window in enumerate(windows):
                following = submit(windows[number + 1]) if number + 1 < len(windows) else []
                yield window, {index: future.result() for index, future in zip(window, pending, strict=True)}
                pending = following
        finally:
            readers.shutdown(wait=True, cancel_futures=True)


def _read(source: Source, index: int, config: RecaptionConfig) -> LoadedSample | str:
    try:
        sample = source.read(index, np.random.default_rng([config.seed, index]))
        image = decode_image(sample.image, at_least=config.max_image_size)
    except (BadSampleError, BadImageError) as error:
        return str(error)
    image.thumbnail((config.max_image_size, config.max_image_size))
    return LoadedSample(index, sample, image)


def _caption_window(
    window: range, samples: dict[int, LoadedSample | str], describer: CaptionModel, config: RecaptionConfig
) -> dict[int, list[GeneratedCaption]]:
    """The captions of the usable samples, by their index; batches of prompts of similar length."""
    usable = [sample for sample in samples.values() if isinstance(sample, LoadedSample)]
    prompts = {
        found.index: describer.prompt(config.prompt.replace(WEB_CAPTION_PLACEHOLDER, found.sample.web))
        for found in usable
    }
    usable.sort(key=lambda found: len(prompts[found.index]))  # stable: equals stay in their order
    said: dict[int, list[GeneratedCaption]] = {}
    for start in range(0, len(usable), config.batch_size):
        batch = usable[start : start + config.batch_size]
        seed = int(np.random.SeedSequence([config.seed, window.start, start]).generate_state(1)[0])
        written = describer.describe(
            [found.picture for found in batch], [prompts[found.index] for found in batch], seed
        )
        said |= {found.index: texts for found, texts in zip(batch, written, strict=True)}
    return said


def _add(
    shard: ShardWriter, read: LoadedSample | str, said: list[GeneratedCaption], source: Source, config: RecaptionConfig
) -> str:
    """Append a sample; returns the reason if it has no caption, else an empty string."""
    if isinstance(read, str):
        return read
    captions, reason = filter_captions(said, config)
    if captions:
        captioned = CaptionedSample(source.record(read.index), read.sample.image, read.sample.web, captions)
        shard.add(captioned, sum(one.tokens for one in said))
    return "" if captions else reason


def _finish(opened: ShardWriter, shard: OutputShard, config: RecaptionConfig) -> None:
    """Complete a shard, unless too much of it was dropped."""
    opened.dropped.check(str(opened.target), "max_invalid_ratio", config.max_invalid_ratio, shard.stop - shard.start)
    opened.finish()
