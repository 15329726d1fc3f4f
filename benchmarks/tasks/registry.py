"""The benchmarks: each file that defines some registers them, with a config class of their own settings.

    @benchmark("retrieval", config=RetrievalConfig, data_hash=data_hash, benchmark_type="retrieval", needs="encoder", …)
    def evaluate(model: EvalModel, config: RetrievalConfig) -> Evaluation:

Any other name denotes a task of lmms-eval.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from benchmarks.results.results import check_name
from clips.core.identity import RUN_ONLY
from clips.errors import UserError
from clips.lazy_import import import_from_string
from clips.ranges import Positive
from clips.typed_data import from_plain, to_plain

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel, RequiredModel
    from benchmarks.tasks.evaluation import Evaluation

FILES = (
    "encoders.retrieval",
    "encoders.long_retrieval",
    "encoders.multilingual",
    "encoders.classification",
    "encoders.linear_probe",
    "encoders.recaption",
    "compositional.caption_scores",
    "compositional.llava_choice",
    "mllm.lmms_benchmarks",
)
"""The modules that register benchmarks, below this package. They are imported when one is looked up, and import no
model library themselves."""

_UNLISTED = "benchmarks.tasks.mllm.lmms_benchmarks:UnlistedTaskConfig"
Evaluate = Callable[["EvalModel", Any], "Evaluation | None"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """One benchmark and its data: the settings of all; a benchmark's own class adds its own.

    Args:
        name: the column in the table, and the name of the result file.
        data: the path of its data.
        task: the benchmark to run (``clips-bench list``), any task name of lmms-eval, or a custom task: its YAML file,
            its directory, or ``FOLDER/TASK``. By default ``name``.
        limit: use at most this number of images or questions (in classification evenly spaced); for trials. The
            protocol states it.
    """

    name: str = dataclasses.field(metadata=RUN_ONLY)
    data: str = dataclasses.field(metadata=RUN_ONLY)  # its hash counts
    task: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)  # its entry counts
    limit: Positive | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "name")

    def local_paths(self) -> dict[str, str]:
        """Field → path that must exist; a Hub repo id need not."""
        is_hub = getattr(self, "format", None) == "datasets"
        paths = {"data": None if is_hub else self.data, "image_root": getattr(self, "image_root", None)}
        return {field: path for field, path in paths.items() if path is not None}

    @property
    def entry(self) -> str:
        """Its name in the registry or in lmms-eval."""
        return self.task or self.name

    @classmethod
    def variants(cls) -> Mapping[str, type[BenchmarkConfig]]:
        """Names of benchmarks → the class of their settings, for ``--help``."""
        return settings_by_kind()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """pydantic's hook: an item of ``benchmarks`` has the class of its benchmark."""
        if cls is not BenchmarkConfig:
            return handler(source)
        from pydantic_core import core_schema

        def read(values: Any) -> BenchmarkConfig:
            if not isinstance(values, Mapping):
                raise UserError(f"benchmarks: expected a mapping for each, got {values!r:.80}")
            config: BenchmarkConfig = configure(**values)
            return config

        return core_schema.no_info_plain_validator_function(read, json_schema_input_schema=handler(source))


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        evaluate: (model, config) → its evaluation; None in processes other than rank 0 that do not score.
        config: the class of its config: its settings.
        data_hash: config → SHA-256 of the data that it reads.
        benchmark_type: the type of its results.
        about: one line: the measured quantity.
        needs: ``"encoder"`` (with a text tower), ``"tower"`` (an encoder with or without one) or ``"llava"``.
        trivial_baseline_note: one sentence below the table: the score of a model that ignores the image.
        items: number of questions or images of the published set; None for the user's data.
        license: of the published set, as its source states it.
        size: approximate size of the published set on disk; empty if unknown.
        details: heading → text, printed by ``clips-bench list NAME``: prompt, scorer, source, pitfalls.
    """

    evaluate: Evaluate
    config: type[BenchmarkConfig]
    data_hash: Callable[[Any], str]
    benchmark_type: Literal["retrieval", "classification", "captions", "choice", "mllm"]
    about: str
    needs: RequiredModel
    trivial_baseline_note: str = ""
    items: int | None = None
    license: str = ""
    size: str = ""
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def further_inputs(self, config: Any, results: str) -> Mapping[str, str | None]:
        """What the result depends on besides model, data and settings; ``results`` is the directory of the results."""
        return {}

    def scorer_hash(self) -> str:
        """SHA-256 of a library's code that scores; empty if this suite's does."""
        return ""


_registered: dict[str, Benchmark] = {}
Function = TypeVar("Function", bound=Evaluate)


def register(name: str, entry: Benchmark) -> None:
    """Add a benchmark to the built-in ones."""
    _registered[name] = entry


def benchmark(name: str, *, kind: type[Benchmark] = Benchmark, **fields: Any) -> Callable[[Function], Function]:
    """Decorator: register a function as ``evaluate`` of the benchmark ``name``; ``fields`` are those of ``kind``."""

    def decorate(evaluate: Function) -> Function:
        register(name, kind(evaluate=evaluate, **fields))
        return evaluate

    return decorate


def all_benchmarks() -> Mapping[str, Benchmark]:
    """Name → built-in benchmark."""
    for file in FILES:
        importlib.import_module(f"benchmarks.tasks.{file}")
    return _registered


def get_benchmark(name: str) -> Benchmark:
    """The built-in benchmark ``name``, or else an lmms-eval task by its name or a custom one's path.

    Raises:
        UserError: unknown name (the message lists close matches), or a group of tasks (it lists the members).
    """
    for file in FILES:  # no further than the one that defines it
        importlib.import_module(f"benchmarks.tasks.{file}")
        if name in _registered:
            return _registered[name]
    benchmark: Benchmark = import_from_string("benchmarks.tasks.mllm.lmms_benchmarks:find_task")(name)
    return benchmark


def configure(**values: Any) -> Any:
    """The config of a benchmark from plain values, of the class that ``task``, or else ``name``, chooses.

    Raises:
        UserError: an unknown benchmark, or a setting that is unknown, missing, of the wrong type, or none of this
            benchmark's; the message names the benchmark and the setting, and lists those that the benchmark takes.
    """
    name = values.get("task") or values.get("name")
    if not isinstance(name, str):
        raise UserError(f"benchmarks: expected 'name', a benchmark or the name of its column, got {values!r:.80}")
    own = "/" in name or name.endswith((".yaml", ".yml"))  # a task of the user's; the file need not exist yet
    kind = import_from_string(_UNLISTED) if own else get_benchmark(name).config
    takes = {field.name: field for field in dataclasses.fields(kind)}
    if not values.keys() <= takes.keys():
        # a default is accepted anyway: --print_config once wrote those of all benchmarks
        every = [field for each in settings_by_kind().values() for field in dataclasses.fields(each)]
        defaults = {field.name: to_plain(field.default) for field in every}
        values = {
            key: value
            for key, value in values.items()
            if key in takes or key not in defaults or to_plain(value) != defaults[key]
        }
    try:
        return from_plain(kind, values, what=f"benchmarks.{values.get('name', name)}")
    except UserError as error:
        unknown = not values.keys() <= takes.keys()
        raise UserError(f"{error} ('{name}' takes {', '.join(takes)})" if unknown else str(error)) from None


def settings_by_kind() -> dict[str, type[BenchmarkConfig]]:
    """Names of benchmarks that share a config class, separated by commas → that class."""
    names: dict[type[BenchmarkConfig], list[str]] = {}
    for name, entry in all_benchmarks().items():
        names.setdefault(entry.config, []).append(name)
    names[import_from_string(_UNLISTED)] = ["any other task of lmms-eval"]
    return {", ".join(each): kind for kind, each in names.items()}
