"""Any model that lmms-eval knows as a row of ours: our items, protocol and statistics, its own way of answering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries
from benchmarks.tasks.mllm.offline_tasks import error_reason, go_offline, suppress_output
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    from benchmarks.tasks.run_config import LmmsModel


def load_lmms_model(config: LmmsModel) -> Any:
    """One of lmms-eval's models.

    Raises:
        UserError: lmms-eval knows no model of that name, a library of its own is missing, or it cannot be loaded.
    """
    check_lmms_model_name(config.model)
    go_offline()
    from lmms_eval.models import get_model

    arguments = config.model_args + ("" if "batch_size=" in config.model_args else ",batch_size=1")
    try:
        with suppress_output():
            return get_model(config.model).create_from_arg_string(arguments.removeprefix(","))
    except Exception as error:
        why = _ABSENT if isinstance(error, TypeError) and "'NoneType' object" in str(error) else error_reason(error)
        raise UserError(
            f"lmms: lmms-eval's {config.model} cannot be loaded with '{config.model_args}' ({why})"
        ) from None


_ABSENT = "a library that it needs is not installed"
"""Its classes put None in the place of what cannot be imported (vllm, sglang), and break down where they call it."""


def check_lmms_model_name(name: str) -> None:
    """Refuse a name that lmms-eval does not know. Raises UserError with the near misses."""
    go_offline()
    from lmms_eval.models import AVAILABLE_MODELS, MODEL_REGISTRY_V2

    if name not in {*AVAILABLE_MODELS, *MODEL_REGISTRY_V2.list_model_names()}:
        raise unknown_name_error(name, AVAILABLE_MODELS, "model of lmms-eval's ('lmms.model')")


def model_settings(model: Any, name: str) -> Entries:
    """What the protocol says of such a model: how it takes pictures and text is its class's affair."""
    inner = getattr(model, "_model", None)
    return {
        "input_model": f"lmms-eval's {name}",
        "precision": str(getattr(inner, "dtype", "as its class decides")).removeprefix("torch."),
    }
