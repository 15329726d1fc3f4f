"""Load models from a user's files: all of their weights, or a one-line error about the files."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.errors import UserError
from clips.safe_text import log_info

_MAX_DEPTH = 4  # of a state dict in a checkpoint
_OF_OPTIMIZER = re.compile(r"optim|opt(\.|$)|exp_avg|grad|sched|scaler", re.IGNORECASE)
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
    # Without the last transformers would ask on the terminal whether to run a directory's code.
    safely: dict[str, Any] = {"use_safetensors": not pickled, "weights_only": True, "trust_remote_code": False}
    options |= {**safely, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if directory is not None:
        require_float_weights(directory, what)
    with library_errors_as_user_errors(f"{what} cannot be loaded"), silence_transformers():
        model, report = kind.from_pretrained(directory, **options)
        lacks_tied = report["missing_keys"] and report["missing_keys"] <= set(model._tied_weights_keys or ())
        if lacks_tied and model.config.get_text_config().tie_word_embeddings and not model.config.tie_word_embeddings:
            # transformers 4 stated in the LLM's config alone that LLaVA-NeXT's output layer is its embedding
            model.config.tie_word_embeddings = True
            model, report = kind.from_pretrained(directory, **{**options, "config": model.config})
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{what} lacks weights that its config.json needs: '{missing[0]}'{more}")
    if mismatched := sorted(report["mismatched_keys"]):
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
    """Merge the adapters of a LLaVA's directory, if any, into its loaded weights.

    Raises:
        UserError: they do not fit.
    """
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
    """Read the state dict in a file: safetensors, or what trainers save by ``torch.save``.

    It may be at any depth of a training checkpoint. Of raw and averaged weights the raw ones are taken, and a line of
    the log says so. Names lose the parts that wrappers of modules add.

    Raises:
        UserError: the file is missing, is no checkpoint, has several models, or holds other objects than tensors, plain
            values and numpy's arrays.
    """
    content: Any = read_safetensors(path, str(path)) if path.suffix == ".safetensors" else _read_torch(path)
    sets = {name: _without_wrappers(tensors, path) for name, tensors in _state_dicts(content)}
    if not sets:
        raise UserError(f"{path}: expected names with tensors, or a training checkpoint with 'state_dict'")
    taken, others = _choose_model(sets, path, usual=("state_dict", "model_state_dict", "model", "module", ""))
    if others or is_averaged(taken):
        weights = "averaged weights" if is_averaged(taken) else "weights"
        inside, without = f" in '{taken}'" if taken else "", "".join(f", not those in '{name}'" for name in others)
        log_info(f"{path}: the {weights}{inside} are taken{without}")
    return sets[taken]


def select_model(weights: Mapping[str, torch.Tensor], part: str, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the one model in a state dict whose names have ``part``, without what precedes its names.

    Trainers keep a model next to losses, copies with averaged weights and other tensors, each under a prefix:
    Lightning's ``model.`` or ``net.``, for example. A line of the log says what is taken and what is not.

    Args:
        weights: the state dict.
        part: of the dotted names of every model: that of the image tower.
        path: of the file, for messages.

    Raises:
        UserError: no name has this part, or several models have it.
    """
    if any("lora_" in name for name in weights):
        raise UserError(f"{path}: it has adapters of PEFT (LoRA); merge them before: model.merge_and_unload()")
    parts = {name: name.split(".") for name in weights}
    models: dict[str, dict[str, torch.Tensor]] = {
        "".join(f"{outer}." for outer in own[: own.index(part)]): {}
        for own in parts.values()
        if part in own and not _OF_OPTIMIZER.match(own[0])
    }
    if not models:
        columns = itertools.takewhile(lambda column: len({*column}) == 1, zip(*parts.values(), strict=False))
        first, common = min(weights), ".".join(column[0] for column in columns)
        names = f"all of its names begin with '{common}.'" if common else f"its names are such as '{first}'"
        is_theirs = any("vision_model." in name for name in weights)
        hint = "; of a model of transformers, give the directory" if is_theirs else ""
        raise UserError(f"{path}: expected open_clip's names, such as {part}.conv1.weight; {names}{hint}")
    left = []
    for name, value in weights.items():
        prefix = max((each for each in models if name.startswith(each)), key=len, default=None)
        if prefix is None or _OF_OPTIMIZER.match(name):
            left.append(name)
        else:
            models[prefix][name.removeprefix(prefix)] = value
    taken, _ = _choose_model(models, path)
    is_mean = models[taken].pop("n_averaged", None) is not None or is_averaged(taken)  # of torch's AveragedModel
    left = [*(f"{prefix}*" for prefix in models if prefix != taken), *left]
    if taken or left or is_mean:
        model = f"averaged weights '{taken}*'" if is_mean else f"weights '{taken}*'"
        without = f", without {', '.join(left[:3])}" if left else ""
        more = f" and {len(left) - 3} more" if left[3:] else ""
        log_info(f"{path}: the {model} are taken{without}{more}")
    return models[taken]


def is_averaged(name: str) -> bool:
    """Whether a name in a checkpoint is of averaged weights, or of the teacher that trainers keep as such."""
    return bool(
        re.search(r"(^|[._])(ema|swa|avg|average[ds]?|averaging|polyak|shadow|teacher)([._\d]|$)", name.lower())
    )


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the dotted names of all mappings in a checkpoint that hold tensors by name, but for an optimizer's."""
    import torch

    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and not _OF_OPTIMIZER.match(key):
            yield from _state_dicts(value, f"{name}.{key}".lstrip("."), depth + 1)


def _without_wrappers(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    # Parts of names that DDP, torch.compile, FSDP and activation checkpointing add, also within a name:
    wrappers = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
    weights: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in wrappers)
        if plain in weights:
            raise UserError(f"{path}: expected one tensor for {plain}, got another as {name}")
        weights[plain] = value
    return weights


def _choose_model(
    sets: Mapping[str, Mapping[str, Any]], path: Path, usual: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Return the name of the largest state dict, and the names of those with the same tensors, averaged ones last.

    Raises:
        UserError: there are several that are not averaged, and none has one of the ``usual`` names.
    """
    ends = {name: {".".join(key.split(".")[-3:]) for key in content} for name, content in sets.items()}
    largest = max(ends.values(), key=len)

    def rank(name: str) -> tuple[bool, int]:
        last = name.rpartition(".")[2]
        return is_averaged(name), usual.index(last) if last in usual else len(usual)

    first, *others = sorted((name for name, own in ends.items() if 2 * len(own & largest) > len(largest)), key=rank)
    if others and rank(first) == rank(others[0]):
        raise UserError(f"{path}: expected one model, got '{first}' and '{others[0]}'; save the one to read alone")
    return first, others


def _read_torch(path: Path) -> Any:
    import argparse

    import numpy as np
    import torch

    # Learning rates, random states and arguments, which hold no code; numpy 1 has other names of the same functions.
    scalar: Any = np.float64().__reduce__()[0]
    array: Any = np.zeros(1).__reduce__()[0]
    kinds = [*np.typecodes["AllInteger"], *np.typecodes["Float"], *np.typecodes["Complex"], "?", "U", "S"]
    plain = [
        *((function, f"numpy.core.multiarray.{function.__name__}") for function in (scalar, array)),
        *(scalar, array, np.ndarray, np.dtype, argparse.Namespace),
        *{type(np.dtype(kind)) for kind in kinds},
    ]
    expected = "expected a state dict in safetensors or torch's format"
    with library_errors_as_user_errors(f"{path}: {expected}"):
        try:
            with torch.serialization.safe_globals(plain), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*TorchScript archive", category=UserWarning)
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            needed = re.search(r"GLOBAL (\S+)", str(error))  # pickle's opcode that looks up functions and classes
            only = "and only tensors, plain values and numpy's arrays are read"
            kind = f"it needs {needed[1]}, {only}" if needed else "no checkpoint"
            raise UserError(f"{path}: rejected: {kind}; {expected}") from None
        except RuntimeError as error:
            if "TorchScript" not in str(error):
                raise
            raise UserError(
                f"{path}: a TorchScript archive, as OpenAI's; {expected}. If you trust it: python -c \"import torch; "
                "torch.save(torch.jit.load('IN.pt', 'cpu').state_dict(), 'OUT.pt')\", then import OUT.pt "
                "(OpenAI's with --architecture NAME-quickgelu)"
            ) from None


def first_mismatch(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Return the first difference from a module's state dict, in words: of names, shapes or kinds of numbers.

    None if they match. Integers, and floating point numbers of 8 bits, are no weights without their scales.
    """
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    extra = [name for name in weights if name not in expected]
    both = [(name, value, expected[name]) for name, value in weights.items() if name in expected]
    reshaped = [
        f"{name}: {tuple(own.shape)}, expected {tuple(to.shape)}" for name, own, to in both if own.shape != to.shape
    ]
    others = [
        f"{name}: {str(own.dtype).removeprefix('torch.')}, expected {str(to.dtype).removeprefix('torch.')}"
        for name, own, to in both
        if _kind(own.dtype) != _kind(to.dtype) and not name.endswith("num_batches_tracked")
    ]
    for problem, names in (
        ("has another shape of", reshaped),
        ("lacks", missing),
        ("has the unexpected", extra),
        ("has another kind of numbers in", others),
    ):
        if names:
            name, colon, sizes = names[0].partition(": ")
            return f"{problem} {name}" + (f" and {len(names) - 1} more" if names[1:] else "") + colon + sizes
    return None


def require_float_weights(path: Path, where: str) -> None:
    """Reject a model's files whose weights are integers or floating point numbers of 8 bits, which need scales.

    transformers and open_clip would convert them to other numbers. A model of transformers whose config.json states its
    quantization is left to transformers.

    Args:
        path: a file of weights, or a directory of transformers.
        where: the beginning of the UserError.
    """
    import torch
    from safetensors import safe_open

    files = [path]
    if path.is_dir():
        config = path / "config.json"
        if config.is_file() and b'"quantization_config"' in config.read_bytes():
            return
        files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    for file in files:
        with library_errors_as_user_errors(f"{where}: {file.name} cannot be read"):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as stored:
                    names = stored.keys()
                    kinds = {name: stored.get_slice(name).get_dtype() for name in names}
            else:
                content = torch.load(file, map_location="meta", weights_only=True)
                kinds = {name: str(value.dtype) for _, part in _state_dicts(content) for name, value in part.items()}
        reject_other_weights(kinds, where)


def reject_other_weights(kinds: Mapping[str, str], where: str) -> None:
    """Reject weights that are no floating point numbers of 16 bits or more; the UserError begins with ``where``.

    Args:
        kinds: name of a tensor → dtype, as torch or safetensors writes it.
        where: the beginning of the UserError.
    """
    floats = re.compile(r"(torch\.)?(b?float(16|32|64)|B?F(16|32|64))")
    others = [name for name, kind in kinds.items() if name.endswith("weight") and not floats.fullmatch(kind)]
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        kind = kinds[others[0]].removeprefix("torch.")
        raise UserError(f"{where}: expected floating point numbers as weights, got {kind} in {others[0]}{more}")


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating point" if dtype.itemsize > 1 else str(dtype)
    return str(dtype) if dtype.is_complex or dtype.itemsize == 0 or str(dtype) == "torch.bool" else "integer"


def require_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise UserError, which begins with ``where``, if a training that diverged left NaN or infinite weights."""
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        raise UserError(f"{where}: expected finite weights, got NaN or infinity in {broken[0]}{more}")
