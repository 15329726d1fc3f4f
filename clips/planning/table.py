"""A plan as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

_PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "average": "average of weights",
    "exchange": "buffers of exchange",
    "copies": "bf16 copies of weights",
    "activations": "activations, work space",
    "contrast": "contrastive loss",
    "batch": "batch and features",
    "validation": "validation",
    "allowance": "allowance",
}
"""Part of `clips.planning.footprint.Rehearsal.footprint` → what it is called."""

_HELD = ("samples_at_once", "samples_per_gpu")


def show(plan: dict[str, Any]) -> None:
    """Print ``plan``, see `clips.planning.plan.make_plan`."""
    console = Console()
    gpu = plan["gpu"]
    for number, stage in enumerate(plan["stages"], 1):
        title = f"Stage {number} of {len(plan['stages'])}: {stage['image_size']} pixels, {gpu['count']} × {gpu['kind']}"
        console.print(f"\n[bold]{title}[/bold]")
        console.print(_facts(stage))
        console.print(_memory(stage, gpu))
    if plan["training_data"] is not None:
        console.print(f"training data: {_gb(plan['training_data'])} GB")
    else:
        console.print("training data: not on this machine; --pictures and --bytes_per_picture tell what they take")
    for table in (_clusters(plan), _held_at_once(plan)):
        console.print(table)
    if any(_needs_parts(plan)):
        console.print("Where fewer samples fit at once than a GPU's step has, give the stage micro_batch: so many.")
    for line in plan["basis"]:
        console.print(line, style="dim")


def _needs_parts(plan: dict[str, Any]) -> Iterator[bool]:
    """For each stage, alone and in each cluster, whether it fits only in parts that its config does not set yet."""
    for cluster in [*plan["clusters"], None]:
        for number, stage in enumerate(plan["stages"]):
            place = {key: cluster[key][number] for key in _HELD} if cluster and cluster["hours"] else stage
            yield stage["may_take_parts"] and 0 < place["samples_at_once"] < place["samples_per_gpu"]


def _facts(stage: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    counts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in stage["parameters"].items())
    table.add_row("parameters", f"{counts} (millions)")
    table.add_row("FLOPs of a sample", f"{stage['flops_per_sample'] / 1e9:,.1f} G, forward and backward")
    table.add_row(
        "length",
        f"{stage['samples']:,} samples, {stage['steps']:,} steps of {stage['batch_size']:,}, {stage['precision']}",
    )
    speed, storage = stage["speed"], stage["storage"]
    if speed is None:
        table.add_row("speed", "[red]not one sample fits[/red]")
    else:
        slowest = speed["samples_per_second_nothing_overlapped"]
        table.add_row("speed", f"{speed['samples_per_second']:,.0f} samples/s ({slowest:,.0f} if nothing overlaps)")
        table.add_row("time", f"{speed['hours']:,.1f} h, {speed['gpu_hours']:,.0f} GPU hours")
        table.add_row(
            "a GPU's step", f"{stage['samples_per_gpu']:,} samples, {stage['samples_at_once']:,} of them at once"
        )
    if validation := stage["validation"]:
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in validation.items() if size)
        table.add_row("validation", f"{_gb(sum(validation.values()))} GB of a GPU, between steps: {parts}")
    table.add_row("storage", f"encoder {_gb(storage['encoder'])} GB, checkpoints {_gb(storage['checkpoints'])} GB")
    return table


def _memory(stage: dict[str, Any], gpu: dict[str, Any]) -> Table:
    again = ", layers computed again" if stage["activation_checkpointing"] else ""
    table = Table(
        title=f"GB of a GPU with {max(1, stage['samples_at_once'])} samples at once{again}", title_justify="left"
    )
    table.add_column("part")
    for parallel in stage["memory"]:
        table.add_column(f"{parallel} *" if parallel == stage["parallel"] else parallel, justify="right")
    columns = list(stage["memory"].values())
    for part, name in _PARTS.items():
        sizes = [column["parts"].get(part, 0.0) for column in columns]
        if any(sizes):
            table.add_row(name, *map(_gb, sizes))
    totals = [sum(column["parts"].values()) for column in columns]
    table.add_section()
    table.add_row(
        f"in all, of {_gb(gpu['memory'])}",
        *(f"[red]{_gb(size)}[/red]" if size > gpu["memory"] else _gb(size) for size in totals),
    )
    table.add_row("largest batch of a GPU", *(f"{column['largest_batch']:,}" for column in columns))
    table.add_row("… layers computed again", *(f"{column['largest_batch_checkpointed']:,}" for column in columns))
    return table


def _clusters(plan: dict[str, Any]) -> Table:
    table = Table(title=f"The whole training on {plan['gpu']['kind']}s, as configured", title_justify="left")
    _add_columns(table, ["GPUs", "days", "GPU hours", *_stages(plan, "samples/s")])
    for cluster in plan["clusters"]:
        if cluster["hours"] is None:
            table.add_row(str(cluster["count"]), "—", "—", *["—"] * len(plan["stages"]))
            continue
        rates = (f"{rate:,.0f}" for rate in cluster["samples_per_second"])
        table.add_row(str(cluster["count"]), f"{cluster['hours'] / 24:,.1f}", f"{cluster['gpu_hours']:,.0f}", *rates)
    return table


def _held_at_once(plan: dict[str, Any]) -> Table:
    table = Table(title="Samples that a GPU holds at once, of those of its step", title_justify="left")
    _add_columns(table, ["GPUs", *_stages(plan, "samples")])
    for cluster in plan["clusters"]:
        if cluster["hours"] is None:
            table.add_row(str(cluster["count"]), cluster["reason"])
            continue
        held = zip(cluster["samples_at_once"], cluster["samples_per_gpu"], strict=True)
        table.add_row(str(cluster["count"]), *(f"{part:,} of {whole:,}" for part, whole in held))
    return table


def _add_columns(table: Table, names: list[str]) -> None:
    for name in names:
        table.add_column(name, justify="right")


def _stages(plan: dict[str, Any], what: str) -> list[str]:
    """Headings of ``what`` of each stage."""
    count = len(plan["stages"])
    return [what] if count == 1 else [f"{what}\nstage {number}" for number in range(1, count + 1)]


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 0.05e9 else f"{size / 1e9:.2g}"
