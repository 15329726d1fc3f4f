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

from clips.method.clips_model import ClipsModel
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.parallel.ddp import ADAM_STATE_NAMES, Strategy
from clips.parallel.distributed import DistributedContext
from clips.parallel.distributed_config import ZERO_REDUCE_BUCKET_SIZE


class ZeroStrategy(Strategy):
    """Sharded optimizer state (stage 1) and gradients (stage 2).

    Args:
        encoder: the model, on the device.
        optim: the optimizer's settings.
        processes: the processes of the training.
        stage: ZeRO stage, 1 or 2.
    """

    def __init__(
        self, encoder: ClipsModel, optim: OptimizerConfig, processes: DistributedContext, *, stage: int
    ) -> None:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it even without a launcher
        # On CPU DeepSpeed would first compile a shared-memory all-reduce for a minute; gloo needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False)
        self.inner = build_optimizer(encoder, optim, encoder.no_decay_names())
        for group in self.inner.param_groups:
            group["lr"] = 0.0  # stage 3 creates the optimizer's state by a step
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": optim.max_grad_norm or 0.0,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": ZERO_REDUCE_BUCKET_SIZE},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        model, optimizer, _, _ = deepspeed.initialize(model=encoder, optimizer=self.inner, config=settings)
        super().__init__(encoder, processes, model, optimizer)
        for state in self.inner.state.values():
            state["step"].zero_()

    # ---- a step

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """See `Strategy`."""
        self.model.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `Strategy`."""
        self.model.backward(loss)

    def clip_grad_norm(self, limit: float | None) -> Tensor | None:
        """See `Strategy`: DeepSpeed clips in its own step."""
        return None

    def optimizer_step(self, rate: float, *, is_finite: Tensor) -> float | None:
        """See `Strategy`; DeepSpeed updates the weights also with values that are not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.step()
        scale = self.encoder.clip.logit_scale
        if scale is not None:
            value = utils.safe_get_full_fp32_param(scale)
            allowed = value.clamp(0.0, self.encoder.max_logit_scale)
            if scale.requires_grad and not torch.equal(allowed, value):
                self._set(scale, allowed)
        self.broadcast_buffers()
        return float(self.model.get_global_grad_norm())

    def zero_grad(self) -> None:
        """See `Strategy`."""
        self.model.zero_grad()

    # ---- single parameters and their optimizer state

    def _set(self, parameter: Tensor, value: Tensor, moment: str | None = None) -> None:
        if moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)

    def _create_optimizer_state(self) -> None:
        """Create missing optimizer state and map it to each parameter; DeepSpeed 0.19 maps only the first group."""
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

    def optimizer_state_dict(self) -> dict[str, Tensor]:
        """See `Strategy`; full tensors, each on the process that writes it."""
        self._create_optimizer_state()
        step = next(iter(self.inner.state.values()))["step"]
        state: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                for moment in ADAM_STATE_NAMES:
                    gathered = utils.safe_get_full_optimizer_state(parameter, moment)
                    if self._is_own(f"{name}.{moment}"):
                        state[f"{name}.{moment}"] = gathered.cpu()
                if self._is_own(f"{name}.step"):
                    state[f"{name}.step"] = step.reshape(())
        return state

    def empty_optimizer_state_dict(self) -> dict[str, Tensor]:
        """See `Strategy`; full tensors, on every process."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                shape = getattr(parameter, "ds_shape", parameter.shape)
                state |= {f"{name}.{moment}": torch.zeros(shape) for moment in ADAM_STATE_NAMES}
                state[f"{name}.step"] = torch.zeros(())
        return state

    def load_optimizer_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Strategy`."""
        self._create_optimizer_state()
        for name, parameter in self.encoder.named_parameters():
            if f"{name}.step" in state:
                for moment in ADAM_STATE_NAMES:
                    self._set(parameter, state[f"{name}.{moment}"].to(parameter.device), moment)
        steps = [value for name, value in state.items() if name.endswith(".step")]
        for values in self.inner.state.values():
            values["step"].copy_(torch.stack(steps).max())  # ZeRO has one step count for all parameters


class Zero3Strategy(ZeroStrategy):
    """Parameters, gradients and the optimizer's state in shards (stage 3). Arguments as `ZeroStrategy`."""

    shards_weights = True

    def _set(self, parameter: Any, value: Tensor, moment: str | None = None) -> None:
        own = self._shard(parameter, value)  # DeepSpeed's setters of full tensors fail if sizes do not divide evenly
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, own)
            parameter.ds_tensor.data.copy_(own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, moment)

    def _shard(self, parameter: Any, value: Tensor) -> Tensor:
        """Return this process's shard of a full tensor."""
        size = parameter.ds_tensor.numel()
        flat = F.pad(value.flatten(), (0, size * self.processes.count - value.numel()))
        return flat[size * self.processes.rank :][:size]

    def _create_optimizer_state(self) -> None:
        for flat in self.optimizer.fp32_partitioned_groups_flat:
            self._state_of(flat)

    def state_dict(self) -> dict[str, Tensor]:
        """See `Strategy`; full tensors, on the main process."""
        state = {}
        for name, value in self.encoder.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
                if self.processes.is_main:
                    state[name] = value.detach().to("cpu", copy=True)
        return state

    def local_state_dict(self) -> dict[str, Tensor]:
        """See `Strategy`; flat shards, and full buffers."""
        state = self.encoder.state_dict(keep_vars=True)
        return {name: getattr(value, "ds_tensor", value) for name, value in state.items()}

    def gather_state_dict(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Strategy`; full tensors, on the main process."""
        state = {}
        for name, value in self.encoder.state_dict(keep_vars=True).items():
            full = local[name]
            if hasattr(value, "ds_id"):
                flat = full.new_empty(full.numel() * self.processes.count)
                dist.all_gather_into_tensor(flat, full)
                full = flat[: value.ds_numel].view(value.ds_shape)
            if self.processes.is_main:
                state[name] = full.detach().to("cpu", copy=True)
        return state

    def load_ema_state_dict(self, local: Mapping[str, Tensor], load: Callable[[Mapping[str, Tensor]], None]) -> None:
        """See `Strategy`; ``load`` fills full tensors, of which each process copies its shard."""
        state = self.encoder.state_dict(keep_vars=True)
        full = {name: local[name].new_zeros(getattr(value, "ds_shape", value.shape)) for name, value in state.items()}
        load(full)
        for name, value in state.items():
            local[name].copy_(self._shard(value, full[name]) if hasattr(value, "ds_id") else full[name])

    def select_own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Strategy`; only the main process has full weights."""
        return dict(state)
