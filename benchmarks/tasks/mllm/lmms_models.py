"""lmms-eval's own models, evaluated with this suite's items, protocol and statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries
from benchmarks.tasks.mllm.offline_tasks import error_reason, go_offline, suppress_output
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    from benchmarks.tasks.run_config import LmmsModel


def load_lmms_model(config: LmmsModel) -> Any:
    """Load one of lmms-eval's models.

    Raises:
        UserError: an unknown name, a missing library, or any other error of its class.
    """
    check_lmms_model_name(config.model)
    go_offline()
    from lmms_eval.models import get_model

    arguments = config.model_args + ("" if "batch_size=" in config.model_args else ",batch_size=1")
    try:
        with suppress_output():
            return get_model(config.model).create_from_arg_string(arguments.removeprefix(","))
    except Exception as error:
        # lmms-eval replaces modules that cannot be imported (vllm, sglang) by None
        is_missing_library = isinstance(error, TypeError) and "'NoneType' object" in str(error)
        reason = "a library that it needs is not installed" if is_missing_library else error_reason(error)
        raise UserError(
            f"lmms: lmms-eval's {config.model} cannot be loaded with '{config.model_args}' ({reason})"
        ) from None


def check_lmms_model_name(name: str) -> None:
    """Reject a name that lmms-eval does not know. Raises UserError with the close matches."""
    go_offline()
    from lmms_eval.models import AVAILABLE_MODELS, MODEL_REGISTRY_V2

    if name not in {*AVAILABLE_MODELS, *MODEL_REGISTRY_V2.list_model_names()}:
        raise unknown_name_error(name, AVAILABLE_MODELS, "model of lmms-eval's ('lmms.model')")


def model_settings(model: Any, name: str) -> Entries:
    """Protocol entries of an lmms-eval model, whose class determines its preprocessing."""
    inner = getattr(model, "_model", None)
    return {
        "input_model": f"lmms-eval's {name}",
        "precision": str(getattr(inner, "dtype", "as its class decides")).removeprefix("torch."),
    }
