"""Synthetic captions for a dataset: the first step of VeCLIP and Recap-DataComp-1B.

    clips recaption /data/cc12m --web_caption .txt --model llava-hf/llava-1.5-7b-hf --output /data/cc12m-recap
    torchrun --nproc-per-node 8 -m clips.cli recaption --config recaption.yaml
    clips recaption --config recaption.yaml --shard $SLURM_ARRAY_TASK_ID/64       (a SLURM array 1-64)

After an interruption the same command resumes with the missing shards. The last process to finish writes sizes.json,
manifest.json and README.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from clips.commandline.progress import Progress
from clips.core.artifact import atomic_write, check_finished, log_info
from clips.core.identity import RUN, Identity, identity, read_run, reject_other_run, run_text
from clips.data.sources import InvalidSampleError, Source, open_source
from clips.recaption.captioning import (
    Captioner,
    PromptedImage,
    caption_windows,
    filter_captions,
    print_estimate,
)
from clips.recaption.recaption_config import RecaptionConfig
from clips.recaption.shard_writers import (
    WORK_DIR,
    CaptionedSample,
    ShardWriter,
    finalize_dataset,
    save_model_record,
    shard_name,
)
from clips.typed_data import checked

_MIN_GROUP_BATCHES = 64  # at most one of them is not full
_WINDOW_BATCHES = 8
KIND = "captions"


def load_captioner(config: RecaptionConfig) -> Captioner:
    """The captioner of ``config``: of servers, or a local model."""
    if config.endpoint:
        from clips.recaption.chat_captioner import ChatCaptioner

        return ChatCaptioner(config)
    from clips.recaption.caption_model import CaptionModel

    return CaptionModel(config)


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """Samples ``start`` … ``stop - 1`` of the source; ``number`` is in the shard's file name."""

    number: int
    start: int
    stop: int


def run_recaption(config: RecaptionConfig) -> None:
    """Run `clips recaption`."""
    config = checked(config)
    source = open_source(config)
    if config.estimate:
        print_estimate(config, source, load_captioner(config))
        return
    shards = split_into_shards(source.blocks, config.shard_size)
    run = _run_identity(config, len(source))
    if _is_finished(config, run):
        log_info(f"{config.output}: done before")
        return
    number, count = config.share()
    groups = group_shards(shards, config.batch_size)[number::count]
    missing = [shard for group in groups for shard in group if not _is_done(shard, config)]
    if missing:
        captioner = load_captioner(config)  # its errors leave no output behind
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


def _run_identity(config: RecaptionConfig, samples: int) -> Identity:
    captioner = "server" if config.endpoint else "transformers"
    return identity("clips recaption", config, {"samples": samples, "captioner": captioner})


def _is_finished(config: RecaptionConfig, run: Identity) -> bool:
    """Whether the output is complete. UserError if it belongs to another run."""
    work = Path(config.output) / WORK_DIR
    if check_finished(config.output, KIND, run, work=work, contents=False):  # terabytes
        return True
    recorded = read_run(work / RUN)
    if recorded is not None:
        reject_other_run(config.output, recorded, run)
    return False


def _is_done(shard: OutputShard, config: RecaptionConfig) -> bool:
    return (Path(config.output) / shard_name(shard.number, config)).is_file()


def _caption_group(
    group: Sequence[OutputShard], source: Source, captioner: Captioner, config: RecaptionConfig, progress: Progress
) -> None:
    """Write the missing shards of a group; a window shared with finished shards is captioned again."""
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
                        reason = _write(writer, sample, kept, tokens, source)
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


def _write(writer: ShardWriter, sample: PromptedImage, captions: list[str], tokens: int, source: Source) -> str:
    """Append a sample; returns the reason if it is invalid, else an empty string."""
    try:
        record = source.record(sample.index)
    except InvalidSampleError as error:
        return str(error)
    writer.add(CaptionedSample(record, sample.sample.image, sample.sample.web, captions), tokens)
    return ""
