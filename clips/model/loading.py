"""Load models from a user's files: all of their weights, or a one-line error about the files."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.errors import UserError

ADAPTER_DIR = "adapter"
"""The directory of unmerged adapters in a LLaVA's directory."""

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def library_errors_as_user_errors(what: str) -> Iterator[None]:
    """Convert any exception in the block to one line: ``what``, then the reason in brackets.

    Raises:
        UserError: the line; the block's own UserErrors pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise arbitrary exceptions for broken files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{what} ({reason})") from None


def load_pretrained(kind: Any, directory: Path | None, what: str, **options: Any) -> Any:
    """Load a transformers model completely from the safetensors in ``directory``, or from a pickle of tensors only.

    Args:
        kind: the model's class, or an ``Auto`` class.
        directory: in the transformers format; None if ``options`` have a ``state_dict`` and a ``config``.
        what: prefix of the error message. Pickles are read only if there is nothing else, and with ``weights_only``,
            which does not execute their code.
        options: other arguments of ``from_pretrained``.

    Raises:
        UserError: files are broken; weights are missing or of other shapes, which transformers would initialize at
            random.
    """
    pickled = directory is not None and any(directory.glob("*.bin")) and not any(directory.glob("*.safetensors"))
    safely: dict[str, Any] = {"use_safetensors": not pickled, "weights_only": True}
    options |= {**safely, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with library_errors_as_user_errors(f"{what} cannot be loaded"), silence_transformers():
        model, found = kind.from_pretrained(directory, **options)
        lacks_tied = found["missing_keys"] and found["missing_keys"] <= set(model._tied_weights_keys or ())
        if lacks_tied and model.config.get_text_config().tie_word_embeddings and not model.config.tie_word_embeddings:
            # transformers 4 stated in the LLM's config alone that LLaVA-NeXT's output layer is its embedding
            model.config.tie_word_embeddings = True
            model, found = kind.from_pretrained(directory, **{**options, "config": model.config})
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{what} lacks weights that its config.json needs: '{missing[0]}'{more}")
    if mismatched := sorted(found["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise UserError(
            f"{what} has weights that do not fit its config.json: '{name}' has shape {tuple(stored)}, "
            f"not {tuple(expected)}"
        )
    head = model.get_output_embeddings()
    configs = [] if head is None else [model.config, model.config.get_text_config()]
    if any(getattr(config, "tie_word_embeddings", False) for config in configs):
        # The files may have different weights for both, which transformers keeps, but would tie when rows are added or
        # the model is saved and loaded. And the LLaVA's config alone may state the tie of its LLM.
        tied = head.weight is model.get_input_embeddings().weight
        for config in configs:
            config.tie_word_embeddings = tied
    return model


def has_adapters(directory: Path) -> bool:
    """Whether a LLaVA's directory has PEFT's adapters next to its initial weights, which transformers alone ignores."""
    return (directory / ADAPTER_DIR).is_dir()


def merge_adapters(model: Any, directory: Path) -> Any:
    """Merge the adapters of a LLaVA's directory, if any, into its loaded weights. UserError: they do not fit."""
    if not has_adapters(directory):
        return model
    import peft

    with library_errors_as_user_errors(f"{directory / ADAPTER_DIR}: these adapters do not fit the model"):
        return peft.PeftModel.from_pretrained(model, directory / ADAPTER_DIR).merge_and_unload()


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Suppress transformers' warnings, such as its table of missing weights; the suite reports these itself."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def read_safetensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file; a UserError about it begins with ``what``."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{what}: no such file")
    with library_errors_as_user_errors(f"{what}: not a readable safetensors file"):
        return load_file(path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the state dict in a file: safetensors, or tensors saved by ``torch.save``.

    The ``state_dict`` of a training checkpoint is extracted, and names lose the parts that wrappers of modules add.

    Raises:
        UserError: the file is missing, is no checkpoint, or would run code when it is read.
    """
    import torch

    found: Any = read_safetensors(path, str(path)) if path.suffix == ".safetensors" else _read_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = isinstance(found, Mapping) and all(isinstance(value, torch.Tensor) for value in found.values())
    if not found or not tensors:
        raise UserError(f"{path}: expected names with tensors, or a training checkpoint with 'state_dict'")
    # Parts of names that DDP, torch.compile, FSDP and activation checkpointing add, also within a name:
    wrappers = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
    weights = {}
    for name, value in found.items():
        plain = ".".join(part for part in name.split(".") if part not in wrappers)
        if plain in weights:
            raise UserError(f"{path}: expected one tensor for {plain}, got another as {name}")
        weights[plain] = value
    return weights


def _read_torch(path: Path) -> Any:
    import numpy as np
    import torch

    # open_clip's trainer of before 2024 stored learning rates as numpy scalars, which hold no code.
    scalar: Any = np.float64().__reduce__()[0]
    numbers = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *map(type, map(np.dtype, ("f8", "f4", "i8"))),
    ]
    expected = "expected a state dict in safetensors or torch's format"
    with library_errors_as_user_errors(f"{path}: {expected}"):
        try:
            with torch.serialization.safe_globals(numbers), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*TorchScript archive", category=UserWarning)
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            code = "GLOBAL" in str(error)  # pickle's opcodes that look up and call functions
            found = "it contains more than tensors, and reading it would run code" if code else "no checkpoint"
            raise UserError(f"{path}: rejected: {found}; {expected}") from None
        except RuntimeError as error:
            if "TorchScript" not in str(error):
                raise
            raise UserError(
                f"{path}: a TorchScript archive, as OpenAI's; {expected}. If you trust it: python -c \"import torch; "
                "torch.save(torch.jit.load('IN.pt', 'cpu').state_dict(), 'OUT.pt')\", then import OUT.pt "
                "(OpenAI's with --architecture NAME-quickgelu)"
            ) from None


def first_mismatch(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> str | None:
    """Return the first difference from the names and shapes of a module's state dict, in words; None if they match."""
    missing = [name for name in shapes if name not in weights and not name.endswith("num_batches_tracked")]
    extra = [name for name in weights if name not in shapes]
    reshaped = [name for name in weights if name in shapes and weights[name].shape != shapes[name]]
    for problem, names in (("has another shape of", reshaped), ("lacks", missing), ("has the unexpected", extra)):
        if names:
            name, more = names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""
            sizes = f": {tuple(weights[name].shape)}, expected {tuple(shapes[name])}" if names is reshaped else ""
            return f"{problem} {name}{more}{sizes}"
    return None


def require_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise UserError, which begins with ``where``, if a training that diverged left NaN or infinite weights."""
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        raise UserError(f"{where}: expected finite weights, got NaN or infinity in {broken[0]}{more}")
