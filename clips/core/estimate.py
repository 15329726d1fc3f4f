"""The time, tokens and cost of a long job, from a part of it."""

from __future__ import annotations

from clips.core.artifact import log_info


def log_estimate(
    *,
    part: int,
    total: int,
    seconds: float,
    tokens: tuple[int, int],
    prices: tuple[float, float] | None,
    concurrent: tuple[str, int],
    processes: int = 1,
) -> None:
    """Print what the whole job would take.

    Args:
        part: how many of the ``total`` images or questions were done.
        seconds: what they took, without loading.
        tokens: of their prompts and of the texts that were generated; both 0 if they are not known.
        prices: of a million tokens of either.
        concurrent: the setting that limits how many are processed at a time, and its value.
        processes: those that share the job.
    """
    scale, (field, limit) = total / part, concurrent
    hours = seconds * scale / 3600
    shared = f", {hours / processes:.2f} h in {processes:,}" if processes > 1 else ""
    log_info(f"estimate for all {total:,}, from {part:,}: {hours:.2f} h in one process{shared}")
    if part < limit:
        log_info(f"the time is too long: expected an estimate from {limit} or more ({field})")
    if any(tokens):
        prompts, generated = (count * scale for count in tokens)
        log_info(f"tokens: {prompts:,.0f} of prompts, {generated:,.0f} generated")
        if prices:
            log_info(f"cost: {(prices[0] * prompts + prices[1] * generated) / 1e6:,.2f}")
