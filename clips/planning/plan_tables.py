"""The tables of ``clips plan``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from clips.core.artifact import log_info
from clips.planning.feeding import feeding
from clips.planning.memory import PARALLELS, Layout
from clips.planning.plan import Speed, StagePlan, data_bytes, plan_stages
from clips.planning.plan_config import TrainPlanConfig
from clips.planning.roofline import Kernels
from clips.training.setup import has_trainable_batchnorm
from clips.training.train_config import EncoderTrainConfig

_KERNEL_COLUMNS = ("kernels", "GB", "TFLOP", "ms", "of all")
_SHOWN_KINDS = 16
_COUNTS = (8, 16, 32, 64, 128, 256, 512)
_PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "average": "EMA of weights",
    "exchange": "communication buffers",
    "copies": "bf16 copies of weights",
    "activations": "activations, temporary",
    "contrast": "contrastive loss",
    "batch": "batch and features",
    "validation": "validation",
    "allowance": "allowance",
}
"""Part of `clips.planning.plan.StagePlan.memory` → its name in the table."""


def print_plan(config: TrainPlanConfig, training: EncoderTrainConfig) -> None:
    """Print the resources of each stage and of the complete training."""
    console, stages = Console(), plan_stages(config, training)
    for number, stage in enumerate(stages, 1):
        log_info(f"{config.train_config}: stage {number} of {len(stages)} in a dry run …")
        tables = _facts(stage), _memory(stage)
        size = stage.model.model.image_size
        title = f"Stage {number} of {len(stages)}: {size} pixels, {config.num_gpus} × {config.gpu}"
        console.print(f"\n[bold]{title}[/bold]")
        for table in [*tables, *(_rooflines(stage) if config.roofline else ())]:
            console.print(table)
    data = data_bytes(config, training)
    console.print(
        "training data: not local; --num_images and --bytes_per_image state its size"
        if data is None
        else f"training data: {_gb(data)} GB"
    )
    clusters = {count: speeds(stages, count) for count in sorted({*_COUNTS, config.num_gpus})}
    console.print(_times(config, stages, clusters))
    console.print(_concurrent_bytes(stages, clusters))
    feasible = [count for count, found in clusters.items() if not isinstance(found, str)]
    if any(_needs_micro_batches(stages, count) for count in [config.num_gpus, *feasible]):
        console.print(
            "Where fewer samples fit at once than a GPU's step has, set the stage's micro_batch_size to them."
        )
    for line in _basis(config, stages[0].stated_mfu):
        console.print(line, style="dim")


def speeds(stages: list[StagePlan], count: int) -> list[Speed] | str:
    """Return the speed of each stage on ``count`` GPUs, or why there is none."""
    if any(stage.stage.global_batch_size % count for stage in stages):
        return "the batch cannot be divided by it"
    if any(count % (stage.stage.distributed.shard_group_size or 1) for stage in stages):
        return "no multiple of distributed.shard_group_size"
    found = [speed for stage in stages if (speed := stage.speed(stage.layout(count)))]
    return found if len(found) == len(stages) else "not enough memory"


def _needs_micro_batches(stages: list[StagePlan], count: int) -> bool:
    """Whether a stage fits only with micro-batches, which its config does not set yet."""
    return any(
        0 < stage.at_once(stage.layout(count)) < stage.local(count)
        and stage.stage.micro_batch_size is None
        and not has_trainable_batchnorm(stage.model.model)
        for stage in stages
    )


def _facts(plan: StagePlan) -> Table:
    model, stage, count = plan.model, plan.stage, plan.config.num_gpus
    layout, local = plan.layout(count), plan.local(count)
    table = Table(show_header=False, box=None)
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in model.model.named_children()}
    sizes = {name: size for name, size in sizes.items() if size} | {"all": model.parameters, "trained": model.trained}
    table.add_row("parameters", ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items()) + " (millions)")
    table.add_row("FLOPs per sample", f"{model.flops(count) / 1e9:,.1f} G, forward and backward")
    batch = stage.global_batch_size
    length = f"{plan.steps * batch:,} samples, {plan.steps:,} steps of {batch:,}, {plan.precision}"
    table.add_row("length", length)
    speed, storage = plan.speed(layout), plan.storage()
    if speed is None:
        table.add_row("speed", "[red]not one sample fits[/red]")
    else:
        samples = f"{speed.samples_per_second:,.0f} samples/s ({speed.slowest:,.0f} if nothing overlaps)"
        table.add_row("speed", samples)
        table.add_row("time", f"{speed.hours:,.1f} h, {speed.hours * count:,.0f} GPU hours")
        table.add_row("a GPU's step", f"{local:,} samples, {speed.at_once:,} of them at once")
        gpus = min(count, plan.gpu.per_node)
        rate = speed.samples_per_second * gpus / count
        for row in feeding(stage, model.model.image_size, rate, gpus=gpus, batch_size=local).items():
            table.add_row(*row)
    if validation := model.validation(layout):
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in validation.items() if size)
        table.add_row("validation", f"{_gb(sum(validation.values()))} GB of a GPU, between steps: {parts}")
    table.add_row("storage", f"encoder {_gb(storage['encoder'])} GB, checkpoints {_gb(storage['checkpoints'])} GB")
    return table


def _memory(plan: StagePlan) -> Table:
    """Bytes by part under each strategy."""
    own, local = plan.layout(plan.config.num_gpus), plan.local(plan.config.num_gpus)
    at_once, limit = plan.at_once(own) or 1, plan.gpu.memory
    interval = {0: "", 1: ", every layer checkpointed"}.get(
        own.checkpointing, f", one of {own.checkpointing} layers checkpointed"
    )
    table = Table(title=f"GB of a GPU with {at_once} samples at once{interval}", title_justify="left")
    table.add_column("part")
    layouts = [dataclasses.replace(own, parallel=parallel) for parallel in PARALLELS]
    for layout in layouts:
        table.add_column(f"{layout.parallel} *" if layout == own else layout.parallel, justify="right")
    columns = [plan.memory(layout, local=local, at_once=at_once) for layout in layouts]
    for part, name in _PARTS.items():
        sizes = [column[part] for column in columns]
        if any(sizes):
            table.add_row(name, *map(_gb, sizes))
    table.add_section()
    totals = (sum(column.values()) for column in columns)
    table.add_row(
        f"total, of {_gb(limit)}", *(f"[red]{_gb(size)}[/red]" if size > limit else _gb(size) for size in totals)
    )
    for name, checkpointing in (
        ("largest batch of a GPU", 0),
        ("… checkpointing every 2nd layer", 2),
        ("… every layer", 1),
    ):
        found = (plan.largest_batch(dataclasses.replace(layout, checkpointing=checkpointing)) for layout in layouts)
        table.add_row(name, *(f"{size:,}" for size in found))
    return table


def _rooflines(plan: StagePlan) -> Iterator[Table]:
    """Yield the kernels of a GPU's step, and the bytes that it sends under each strategy."""
    layout = plan.layout(plan.config.num_gpus)
    samples, peak = min(plan.at_once(layout) or 1, 256), plan.gpu.peak(plan.precision)
    kernels = plan.roofline(samples, checkpointing=layout.checkpointing)
    total = sum(part.seconds for part in kernels.values())
    mfu = samples * plan.model.flops(layout.count) / total / peak  # without recomputation
    table = _numeric_table(f"A step of {samples} samples by the roofline", "phase", "kind", *_KERNEL_COLUMNS)
    for column in table.columns[:2]:
        column.justify = "left"
    shown = list(kernels.items())[:_SHOWN_KINDS]
    rest = [part for _, part in list(kernels.items())[_SHOWN_KINDS:]]
    for (phase, kind), part in shown:
        table.add_row(phase, kind, *_kernel_cells([part], total))
    table.add_row("", f"{len(rest)} other kinds", *_kernel_cells(rest, total))
    table.add_section()
    table.add_row("", "all", *_kernel_cells(list(kernels.values()), total))
    table.caption = f"MFU {mfu:.1%}, {samples / total:,.0f} images/s of a GPU, as predicted"
    yield table
    sent = _numeric_table("GB that a GPU sends in a step (time at the data sheet's bandwidth)", "strategy", "8", "64")
    group = layout.shard_group_size or plan.gpu.per_node
    rows: dict[str, Layout] = {parallel: Layout(parallel=parallel, count=1, checkpointing=0) for parallel in PARALLELS}
    if "fsdp" in rows:
        rows |= {f"fsdp, groups of {group}": dataclasses.replace(rows["fsdp"], shard_group_size=group)}
    for name, row in rows.items():
        sizes = []
        for count in (8, 64):
            if plan.stage.global_batch_size % count or count % (row.shard_group_size or 1):
                sizes.append("—")
                continue
            spread, local = dataclasses.replace(row, count=count), plan.local(count)
            size, seconds = (sum(of(spread, local)) for of in (plan.bytes_sent, plan.sending_seconds))
            sizes.append(f"{_gb(size)} ({1e3 * seconds:,.0f} ms)")
        sent.add_row(name, *sizes)
    yield sent


def _kernel_cells(parts: Sequence[Kernels], total: float) -> Iterator[str]:
    seconds = sum(part.seconds for part in parts)
    yield f"{sum(part.count for part in parts):,}"
    yield f"{sum(part.bytes for part in parts) / 1e9:,.1f}"
    yield f"{sum(part.flops for part in parts) / 1e12:,.1f}"
    yield f"{1e3 * seconds:,.1f}"
    yield f"{seconds / total:.0%}"


def _times(config: TrainPlanConfig, stages: list[StagePlan], clusters: dict[int, list[Speed] | str]) -> Table:
    table = _numeric_table(
        f"The whole training on {config.gpu}s, as configured",
        "GPUs",
        "days",
        "GPU hours",
        *_headers(stages, "samples/s"),
    )
    for count, found in clusters.items():
        if isinstance(found, str):
            table.add_row(str(count), "—", "—", *["—"] * len(stages))
            continue
        hours = sum(speed.hours for speed in found)
        rates = (f"{speed.samples_per_second:,.0f}" for speed in found)
        table.add_row(str(count), f"{hours / 24:,.1f}", f"{hours * count:,.0f}", *rates)
    return table


def _concurrent_bytes(stages: list[StagePlan], clusters: dict[int, list[Speed] | str]) -> Table:
    table = _numeric_table("Samples of a GPU at once, of those of its step", "GPUs", *_headers(stages, "samples"))
    for count, found in clusters.items():
        cells = (
            [found]
            if isinstance(found, str)
            else [f"{speed.at_once:,} of {stage.local(count):,}" for speed, stage in zip(found, stages, strict=True)]
        )
        table.add_row(str(count), *cells)
    return table


def _numeric_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _headers(stages: list[StagePlan], name: str) -> list[str]:
    return [name] if len(stages) == 1 else [f"{name}\nstage {number}" for number in range(1, len(stages) + 1)]


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 0.05e9 else f"{size / 1e9:.2g}"


def _basis(config: TrainPlanConfig, mfu: float | None) -> Iterator[str]:
    """Yield the assumptions behind the numbers."""
    yield (
        "Counted on the model: parameters, FLOPs, and the tensors of a step, texts without padding. Compared with "
        "measurements on CPU, with one and two processes: tensors within 10 %; a CPU process used up to 23 % more than "
        "planned (docs/performance.md)."
    )
    if mfu is None:
        yield (
            "Utilization: predicted by a roofline of the kernels: matrix products at 66 % of the peak (assumed), "
            "memory at 53 % of its bandwidth and 10.5 µs a kernel at least (fitted to an H200), no waiting. "
            "--metrics_file uses a run's."
        )
    else:
        yield f"MFU {mfu:.0%}: {f'the median of {config.metrics_file}' if config.metrics_file else 'assumed'}."
    yield (
        f"Assumed, not measured: {config.reserve_gb:g} GB for context and libraries, {config.fragmentation:.0%} for "
        "fragmentation. Not included: effects of torch.compile on memory, waiting for data, failures, the "
        "time of validation."
    )
    yield (
        "Estimated, not measured: the time of more than one GPU, with ring algorithms at the data sheet's bandwidth "
        "and gradients that are sent during the backward pass."
    )
