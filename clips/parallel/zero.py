"""Training under DeepSpeed's ZeRO: an entry of `clips.parallel.strategies.STRATEGIES` for each stage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import utils
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.method.clips_model import MAX_LOGIT_SCALE, ClipsModel
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.parallel.ddp import ADAM_STATE_NAMES, DDPStrategy
from clips.parallel.distributed import DistributedContext
from clips.parallel.distributed_config import ZERO_REDUCE_BUCKET_SIZE


class ZeroStrategy(DDPStrategy):
    """Sharded optimizer state (stage 1) and gradients (stage 2).

    Args:
        encoder: the model, on the device.
        optim: the optimizer's settings.
        processes: the processes that share the work.
        stage: ZeRO stage, 1 or 2.
    """

    def __init__(
        self, encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext, *, stage: int
    ) -> None:
        self.encoder, self.processes = encoder, processes
        self.model: Any
        os.environ.setdefault("LOCAL_RANK", "0")  # without a launcher; DeepSpeed insists on it
        deepspeed.init_distributed(auto_mpi_discovery=False)
        self.inner = build_optimizer(encoder, optim, encoder.no_decay_names())
        for group in self.inner.param_groups:
            group["lr"] = 0.0  # stage 3 creates its state by a step of its own
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": optim.max_grad_norm or 0.0,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": ZERO_REDUCE_BUCKET_SIZE},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.model, self.optimizer, _, _ = deepspeed.initialize(model=encoder, optimizer=self.inner, config=settings)
        for state in self.inner.state.values():
            state["step"].zero_()

    # ---- a step

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """See `DataParallel`."""
        self.model.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `DataParallel`."""
        self.model.backward(loss)

    def clip(self, limit: float | None) -> Tensor | None:
        """See `DataParallel`: DeepSpeed clips while it updates."""
        return None

    def update(self, rate: float) -> float | None:
        """See `DataParallel`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.step()
        scale = self.encoder.clip.logit_scale
        value = utils.safe_get_full_fp32_param(scale)
        allowed = value.clamp(0.0, MAX_LOGIT_SCALE)
        if scale.requires_grad and not torch.equal(allowed, value):
            self._set(scale, allowed)
        self.share_buffers()
        return float(self.model.get_global_grad_norm())

    def zero_grad(self) -> None:
        """See `DataParallel`."""
        self.model.zero_grad()

    # ---- single parameters in the shards: DeepSpeed's own setters fail if sizes do not divide evenly

    def _set(self, parameter: Tensor, value: Tensor, moment: str | None = None) -> None:
        if moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)

    def _make_state(self) -> None:
        """Make the optimizer's state where there is none yet, and tell each parameter where its part of it is.

        DeepSpeed 0.19 itself tells the parameters of the first group only.
        """
        zero = self.optimizer
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            state = self._state_of(flat)
            for parameter in group:
                if parameter._hp_mapping is not None:
                    parameter._hp_mapping.set_optim_state_fragment(flat, state)

    def _state_of(self, flat: Tensor) -> dict[str, Tensor]:
        state = self.inner.state[flat]
        for moment in ADAM_STATE_NAMES:
            state.setdefault(moment, torch.zeros_like(flat))
        state.setdefault("step", torch.zeros((), device=flat.device))
        return state

    # ---- checkpoint contents

    def moments(self) -> dict[str, Tensor]:
        """See `DataParallel`; full tensors, each on the process that writes it."""
        self._make_state()
        step = next(iter(self.inner.state.values()))["step"]
        found: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                for moment in ADAM_STATE_NAMES:
                    gathered = utils.safe_get_full_optimizer_state(parameter, moment)
                    if self._is_mine(f"{name}.{moment}"):
                        found[f"{name}.{moment}"] = gathered.cpu()
                if self._is_mine(f"{name}.step"):
                    found[f"{name}.step"] = step.reshape(())
        return found

    def empty_optimizer_state_dict(self) -> dict[str, Tensor]:
        """See `DataParallel`; full tensors, on every process."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                shape = getattr(parameter, "ds_shape", parameter.shape)
                found |= {f"{name}.{moment}": torch.zeros(shape) for moment in ADAM_STATE_NAMES}
                found[f"{name}.step"] = torch.zeros(())
        return found

    def load_optimizer_state_dict(self, moments: Mapping[str, Tensor]) -> None:
        """See `DataParallel`."""
        self._make_state()
        for name, parameter in self.encoder.named_parameters():
            if f"{name}.step" in moments:
                for moment in ADAM_STATE_NAMES:
                    self._set(parameter, moments[f"{name}.{moment}"].to(parameter.device), moment)
        steps = [value for name, value in moments.items() if name.endswith(".step")]
        for state in self.inner.state.values():
            state["step"].copy_(torch.stack(steps).max())  # ZeRO counts for all parameters together


class Zero3Strategy(ZeroStrategy):
    """Parameters, gradients and the optimizer's state in shards (stage 3). Arguments as `Zero`."""

    shards_weights = True

    def __init__(self, encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext) -> None:
        super().__init__(encoder, optim, processes, stage=3)

    def _set(self, parameter: Any, value: Tensor, moment: str | None = None) -> None:
        own = self._share(parameter, value)
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, own)
            parameter.ds_tensor.data.copy_(own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, moment)

    def _share(self, parameter: Any, value: Tensor) -> Tensor:
        """This process's shard of ``value``, a full tensor."""
        share = parameter.ds_tensor.numel()
        flat = F.pad(value.flatten(), (0, share * self.processes.count - value.numel()))
        return flat[share * self.processes.rank :][:share]

    def _make_state(self) -> None:
        for flat in self.optimizer.fp32_partitioned_groups_flat:
            self._state_of(flat)

    def weights(self) -> dict[str, Tensor]:
        """See `DataParallel`; full tensors, on the main process."""
        found = {}
        for name, value in self.encoder.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
                if self.processes.is_main:
                    found[name] = value.detach().to("cpu", copy=True)
        return found

    def held(self) -> dict[str, Tensor]:
        """See `DataParallel`; flat shards, and full buffers."""
        state = self.encoder.state_dict(keep_vars=True)
        return {name: getattr(value, "ds_tensor", value) for name, value in state.items()}

    def gathered(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `DataParallel`; full tensors, on the main process."""
        found = {}
        for name, value in self.encoder.state_dict(keep_vars=True).items():
            whole = held[name]
            if hasattr(value, "ds_id"):
                flat = whole.new_empty(whole.numel() * self.processes.count)
                dist.all_gather_into_tensor(flat, whole)
                whole = flat[: value.ds_numel].view(value.ds_shape)
            if self.processes.is_main:
                found[name] = whole.detach().to("cpu", copy=True)
        return found

    def load_ema_state_dict(self, held: Mapping[str, Tensor], load: Callable[[Mapping[str, Tensor]], None]) -> None:
        """See `DataParallel`; full tensors are filled, of which each process keeps its shard."""
        state = self.encoder.state_dict(keep_vars=True)
        whole = {name: held[name].new_zeros(getattr(value, "ds_shape", value.shape)) for name, value in state.items()}
        load(whole)
        for name, value in state.items():
            held[name].copy_(self._share(value, whole[name]) if hasattr(value, "ds_id") else whole[name])

    def own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `DataParallel`; only the main process has full weights."""
        return dict(state)
