"""Weight name mappings between formats, readable in both directions, and weights files."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError, error_reason

Weights = dict[str, Tensor]
_PREFIXES = ("module.", "_orig_mod.")  # prefixes that DDP and torch.compile add to every name


@dataclass(frozen=True)
class WeightLink:
    """Tensors of open_clip and of another format that hold the same values.

    Args:
        ours: open_clip's name, or names whose tensors are concatenated by rows.
        theirs: the same of the other format.
        transposed: whether rows there are columns here.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


def weight_link(ours: str, theirs: str, *, transposed: bool = False) -> WeightLink:
    """Map one tensor to one."""
    return WeightLink((ours,), (theirs,), transposed)


def weight_bias_links(ours: str, theirs: str) -> list[WeightLink]:
    """Map a weight and a bias; ``{}`` in the names is replaced by either."""
    return [weight_link(ours.format(kind), theirs.format(kind)) for kind in ("weight", "bias")]


@dataclass(frozen=True)
class BlockNames:
    """A format's names of the parts of a transformer block; ``{}`` is replaced by weight or bias."""

    norm1: str
    qkv: tuple[str, ...]
    out: str
    norm2: str
    up: str
    down: str


OPEN_CLIP = BlockNames("ln_1.{}", ("attn.in_proj_{}",), "attn.out_proj.{}", "ln_2.{}", "mlp.c_fc.{}", "mlp.c_proj.{}")
TRANSFORMERS = BlockNames(
    "layer_norm1.{}",
    ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    "self_attn.out_proj.{}",
    "layer_norm2.{}",
    "mlp.fc1.{}",
    "mlp.fc2.{}",
)
TIMM = BlockNames("norm1.{}", ("attn.qkv.{}",), "attn.proj.{}", "norm2.{}", "mlp.fc1.{}", "mlp.fc2.{}")


def block_links(ours: tuple[str, BlockNames], theirs: tuple[str, BlockNames], layers: int) -> list[WeightLink]:
    """Map all blocks of a transformer; each side is a prefix, ``{}`` for the layer index, and its names."""
    (our_prefix, our_names), (their_prefix, their_names) = ours, theirs
    links = []
    for layer in range(layers):
        before, there = our_prefix.format(layer), their_prefix.format(layer)
        for part in ("norm1", "out", "norm2", "up", "down"):
            links += weight_bias_links(before + getattr(our_names, part), there + getattr(their_names, part))
        for kind in ("weight", "bias"):
            mine = tuple(before + name.format(kind) for name in our_names.qkv)
            links.append(WeightLink(mine, tuple(there + name.format(kind) for name in their_names.qkv)))
    return links


def to_open_clip(
    weights: Mapping[str, Tensor], links: Iterable[WeightLink], shapes: Mapping[str, torch.Size]
) -> Weights:
    """Return tensors under open_clip's names; an unmapped tensor keeps its name, and `fitted` rejects it."""
    return _moved(weights, [(link.theirs, link.ours, link.transposed) for link in links], shapes)


def from_open_clip(
    weights: Mapping[str, Tensor], links: Iterable[WeightLink], shapes: Mapping[str, torch.Size]
) -> Weights:
    """Tensors under the other format's names; as `to_ours`."""
    return _moved(weights, [(link.ours, link.theirs, link.transposed) for link in links], shapes)


def _moved(
    weights: Mapping[str, Tensor],
    moves: Sequence[tuple[tuple[str, ...], tuple[str, ...], bool]],
    shapes: Mapping[str, torch.Size],
) -> Weights:
    left = dict(weights)
    moved: Weights = {}
    for sources, targets, transposed in moves:
        if any(name not in left for name in sources) or len({left[name].shape[1:] for name in sources}) > 1:
            continue
        parts = [left.pop(name) for name in sources]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        joined = joined.t() if transposed else joined
        rows = [shapes[name][0] for name in targets if shapes.get(name)]
        if len(targets) == 1 or len(rows) < len(targets) or sum(rows) != len(joined):
            moved[targets[0]] = joined
        else:
            moved |= zip(targets, joined.split(rows), strict=True)
    return {name: _shaped(value, shapes.get(name)) for name, value in (left | moved).items()}


def _shaped(value: Tensor, wanted: torch.Size | None) -> Tensor:
    """Return ``value`` reshaped by axes of length 1 only; unchanged if it differs in more than those."""
    if wanted is not None and _long_axes(value.shape) == _long_axes(wanted):
        return value.reshape(wanted)
    return value


def _long_axes(shape: Sequence[int]) -> list[int]:
    return [length for length in shape if length != 1]


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each tensor of a module's state dict."""
    return {name: value.shape for name, value in module.state_dict().items()}


def conform(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], where: str | Path) -> Weights:
    """Return ``weights`` in the order, shapes and float type of an open_clip model.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; the first is named, the rest counted.
    """
    shaped = {name: _shaped(value, shapes.get(name)) for name, value in weights.items()}
    missing = [name for name in shapes if name not in shaped and not name.endswith("num_batches_tracked")]
    extra = [name for name in shaped if name not in shapes]
    unlike = [name for name in shaped if name in shapes and shaped[name].shape != shapes[name]]
    if unlike:
        name = unlike[0]
        found, wanted = (tuple(shape) for shape in (shaped[name].shape, shapes[name]))
        raise UserError(
            f"{where}: not of this architecture: {name} has shape {found}, expected {wanted}{_more(unlike)}"
        )
    for problem, names in (("lacks", missing), ("has the unexpected", extra)):
        if names:
            raise UserError(f"{where}: not of this architecture: it {problem} {names[0]}{_more(names)}")
    return {name: _plain(shaped[name]) for name in shapes if name in shaped}


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).contiguous().clone()


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def read_weights(path: Path) -> Weights:
    """Read the state dict in a file: safetensors, or tensors saved by ``torch.save``.

    The ``state_dict`` of a training checkpoint is extracted, and the prefixes of DDP and torch.compile are removed.

    Raises:
        UserError: the file is missing, is no checkpoint, or would run code when it is read.
    """
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: expected names with tensors, or a training checkpoint with 'state_dict'")
    weights = dict(found)
    for prefix in _PREFIXES * 2:  # the prefixes occur in either order
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own errors
        raise UserError(f"{path}: not a readable safetensors file ({error_reason(error)})") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = "GLOBAL" in str(error)  # pickle's opcodes that look up and call functions
        kind = "it holds more than tensors, and reading it would run code" if code else "no checkpoint"
        raise UserError(f"{path}: rejected: {kind}; expected a state dict in safetensors or torch's format") from None
    except Exception as error:  # a TorchScript archive, no archive, a truncated one: each raises its own error
        raise UserError(
            f"{path}: expected a state dict in safetensors or torch's format ({error_reason(error)})"
        ) from None
