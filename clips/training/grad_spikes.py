"""Steps whose gradient stands out from those before, as one broken batch or a training that diverges makes it."""

from __future__ import annotations

import statistics

from clips.errors import UserError
from clips.training.train_state import TrainState

_KEPT, _NEEDED, _IN_A_ROW = 100, 20, 10


def is_grad_spike(loop: TrainState, norm: float, limit: float) -> bool:
    """Whether a gradient is better not followed: its norm is more than ``limit`` times the median of those before.

    The first twenty steps never are; the norms of such steps do not count for later ones.

    Args:
        loop: where the run stands; it remembers the norms.
        norm: of this step's gradient.
        limit: ``optimizer.grad_spike_factor``.

    Raises:
        UserError: ten steps in a row stood out: this is no outlier.
    """
    usual = statistics.median(loop.norms) if len(loop.norms) >= _NEEDED else None
    if usual is None or norm <= limit * usual:
        loop.norms = [*loop.norms, norm][-_KEPT:]
        loop.spikes_in_a_row = 0
        return False
    loop.skipped += 1
    loop.spikes_in_a_row += 1
    if loop.spikes_in_a_row == _IN_A_ROW:
        raise UserError(
            f"step {loop.step + 1}: for {_IN_A_ROW} steps the gradient's norm was more than {limit:g} times the usual "
            f"{usual:.3g} (optimizer.grad_spike_factor); stopped. A lower optimizer.learning_rate may "
            "help (see allow_changes_on_resume)"
        )
    return True
