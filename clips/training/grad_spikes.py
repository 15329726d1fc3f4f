"""Gradient norms that are outliers, as after an invalid batch or in a diverging training."""

from __future__ import annotations

import statistics

from clips.errors import UserError
from clips.training.train_state import TrainState

_WINDOW, _MIN_NORMS, _MAX_SPIKES_IN_A_ROW = 100, 20, 10


def is_grad_spike(loop: TrainState, norm: float, limit: float) -> bool:
    """Whether a gradient's norm is more than ``limit`` times the median norm of the last hundred steps.

    The first twenty steps are never spikes. The norms of spikes do not enter the median.

    Args:
        loop: the run's state, with the norms.
        norm: of this step's gradient.
        limit: ``optimizer.grad_spike_factor``.

    Raises:
        UserError: ten spikes in a row, so the training diverges.
    """
    median = statistics.median(loop.norms) if len(loop.norms) >= _MIN_NORMS else None
    if median is None or norm <= limit * median:
        loop.norms = [*loop.norms, norm][-_WINDOW:]
        loop.spikes_in_a_row = 0
        return False
    loop.skipped += 1
    loop.spikes_in_a_row += 1
    if loop.spikes_in_a_row == _MAX_SPIKES_IN_A_ROW:
        raise UserError(
            f"step {loop.step + 1}: for {_MAX_SPIKES_IN_A_ROW} steps the gradient's norm was more than {limit:g} times "
            f"the median {median:.3g} (optimizer.grad_spike_factor); stopped. A lower optimizer.learning_rate may help "
            "(see allow_changes_on_resume)"
        )
    return True
