"""Kernels of layers under torch.compile, as Inductor fuses them for a GPU, from shapes; no code is generated."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map

from clips.planning.profilers import FORMULAS, replaced


class CompiledKernel(NamedTuple):
    """A kernel of a compiled graph.

    Args:
        operator: torch's, if Inductor does not generate the kernel but calls it.
        kind: what it computes.
        flops: of ``operator``, by torch's formulas.
        bytes: read and written.
        is_masked: whether it is attention under a dense mask.
    """

    operator: Any
    kind: str
    flops: float
    bytes: int
    is_masked: bool = False


_MULTIPROCESSORS = 132  # of an H100 or H200

Record = Callable[[list[CompiledKernel]], AbstractContextManager[None]]


@contextlib.contextmanager
def lowered_layers(layers: Sequence[nn.Module], record: Record) -> Iterator[None]:
    """Compile ``layers`` with fake parameters, for each of their shapes, up to the kernels.

    Inductor schedules with its Triton backend for CPUs, so that fusions are those of a GPU without having one. The
    bytes are those that ``torch._inductor.metrics`` counts.

    Args:
        layers: modules that are compiled separately.
        record: called with the kernels of a graph whenever it runs, in the forward or the backward pass; the graph's
            operators run on fake tensors within the returned context.
    """
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties

    def lower(graph: Any, inputs: Any, **options: Any) -> Any:
        return _lower(graph, inputs, options, record)

    def compile_graph(graph: Any, inputs: Any) -> Any:
        return compile_fx(graph, inputs, inner_compile=lower)

    no_cache = inductor.patch(fx_graph_cache=False, fx_graph_remote_cache=False, cpu_backend="triton")
    no_limit = dynamo.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000, automatic_dynamic_shapes=False)
    with no_cache, no_limit, functorch.patch(enable_autograd_cache=False), warnings.catch_warnings():
        # torch warns of its own look at the gradients of a graph's inputs.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        properties = DeviceProperties.create
        with (
            replaced(GraphLowering, "compile_to_module", _stop_at_kernels),
            replaced(DeviceProperties, "create", lambda device: _as_gpu(properties(device))),
        ):
            for layer in layers:
                layer.compile(backend=compile_graph, dynamic=False)
            try:
                yield
            finally:
                for layer in layers:
                    layer._compiled_call_impl = None


def _as_gpu(properties: Any) -> Any:
    """Return a CPU's properties with a GPU's number of multiprocessors, by which Inductor splits reductions."""
    return properties._replace(multi_processor_count=_MULTIPROCESSORS)


class _Scheduled(Exception):  # noqa: N818
    """Ends the compilation of a graph at its kernels."""

    def __init__(self, kernels: list[CompiledKernel]) -> None:
        super().__init__("scheduled")
        self.kernels = kernels


def _lower(graph: Any, inputs: Any, options: dict[str, Any], record: Record) -> Any:
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.compile_fx import compile_fx_inner

    operators = torch.fx.GraphModule(graph, copy.deepcopy(graph.graph))  # Inductor's passes change the original
    kernels: list[CompiledKernel] = []
    try:
        compile_fx_inner(graph, inputs, **options)
    except Exception as error:  # torch wraps it in its own classes
        kernels = _scheduled(error).kernels

    def run(*arguments: Any) -> Any:
        with record(kernels):
            return operators(*arguments)

    return make_boxed_func(run)


def _scheduled(error: BaseException) -> _Scheduled:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _Scheduled):
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    if cause is None:
        raise error
    return cause


def _stop_at_kernels(graph: Any) -> Any:
    """Take the place of ``GraphLowering.compile_to_module``."""
    graph.init_wrapper_code()
    graph._update_scheduler()
    raise _Scheduled([kernel for node in graph.scheduler.nodes if (kernel := _kernel(node)) is not None])


def _kernel(node: Any) -> CompiledKernel | None:
    """Return the kernel of a node of Inductor's scheduler; None for one that computes nothing."""
    from torch._inductor.ir import MultiOutput
    from torch._inductor.scheduler import NopKernelSchedulerNode

    if isinstance(node, NopKernelSchedulerNode):
        return None
    size = node.get_read_write_buffers_sizes()
    if not node.is_extern():
        return CompiledKernel(None, "fused reduction" if node.is_reduction() else "fused pointwise", 0.0, size)
    if isinstance(node.node, MultiOutput):
        return None
    calls = [call for call in node.node.get_origins() if _operator(call) in FORMULAS]
    if not calls:
        return CompiledKernel(None, str(node.node.python_kernel_name), 0.0, size)
    args, kwargs, result = tree_map(
        lambda value: value.meta["val"] if isinstance(value, torch.fx.Node) else value,
        (calls[0].args, calls[0].kwargs, calls[0]),
    )
    operator = _operator(calls[0])
    flops = float(FORMULAS[operator](*args, **kwargs, out_val=result))
    return CompiledKernel(operator, operator.__name__, flops, size, kwargs.get("attn_mask") is not None)


def _operator(call: Any) -> Any:
    return getattr(call.target, "overloadpacket", None)
