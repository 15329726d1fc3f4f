"""The model of a row, loaded when the first benchmark asks for it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.config import LmmsModel, RunConfig
from clips.artifact import directory_hash, versions
from clips.errors import UserError
from llava_bridge.model.parts import model_directory, open_clip_directory

if TYPE_CHECKING:
    from benchmarks.encoders.embed import DualEncoder
    from benchmarks.kept import KeptAnswers
    from clips.parallel.processes import Processes

Part = Literal["encoder", "llava"]
_WANTED: dict[Part, str] = {
    "encoder": "expected an encoder directory, for this benchmark compares pictures and texts",
    "llava": "expected a LLaVA directory, for this benchmark asks questions about pictures",
}


@dataclass(frozen=True)
class Row:
    """One row of the table: an encoder, a LLaVA, or both.

    Args:
        config: the run's config.
    """

    config: RunConfig

    @functools.cached_property
    def device(self) -> str:
        """``"cuda"`` or ``"cpu"``. Raises UserError where cuda is asked for and there is none."""
        import torch

        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device: expected a GPU for cuda, found none")
        if self.config.device != "auto":
            return self.config.device

        return "cuda" if torch.cuda.is_available() else "cpu"

    @functools.cached_property
    def processes(self) -> Processes:
        """Who shares the evaluation."""
        from benchmarks.sharing import join

        return join()

    def kept_answers(self, task: str, content: str) -> KeptAnswers:
        """Where the LLaVA's answers to a task's questions are kept.

        Args:
            task: its name.
            content: hash of its data.
        """
        from benchmarks.kept import KEPT, KeptAnswers, key_of

        key = key_of(
            task=task,
            content=content,
            model=self.model("llava")["hash"],
            device=self.device,
            precision=str(self.llava[0].dtype),
            libraries={name: versions().get(name) for name in ("lmms-eval", "transformers", "torch")},
        )
        folder = Path(self.config.results) / KEPT / "answers" / key
        return KeptAnswers(folder, self.processes, again=self.config.again)

    @functools.cached_property
    def encoder(self) -> DualEncoder:
        """The encoder with its text tower.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from benchmarks.encoders.embed import load_dual_encoder

        return load_dual_encoder(self.path("encoder"), self.device, self.config.precision)

    @functools.cached_property
    def llava(self) -> tuple[Any, Any]:
        """(model, processor) of the LLaVA.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from benchmarks.mllm.tasks import go_offline

        go_offline()
        from benchmarks.mllm.answering import load_for_evaluation

        return load_for_evaluation(self.path("llava"), self.device, self.config.precision)

    @functools.cached_property
    def lmms(self) -> Any:
        """The model of lmms-eval's that stands in the LLaVA's place. Raises UserError where it cannot be loaded."""
        from benchmarks.mllm.other_models import load_other

        if self.config.lmms is None:
            raise UserError("lmms: expected one of lmms-eval's models")
        return load_other(self.config.lmms)

    def load(self, needs: Part) -> None:
        """Load the part that a benchmark uses, now."""
        _ = self.encoder if needs == "encoder" else self.llava if self.config.lmms is None else self.lmms

    def path(self, needs: Part) -> str:
        """Where the part that a benchmark uses lies: its directory, or the hub's copy.

        Raises:
            UserError: the row lacks it, it cannot read texts, or there is no such directory.
        """
        given = getattr(self.config, needs)
        if given is None:
            raise UserError(f"{needs}: {_WANTED[needs]}")
        if needs == "encoder" and given.startswith("timm:"):
            raise UserError(f"{needs}: '{given}' has no text tower; {_WANTED[needs]}")
        if needs == "encoder" and given.startswith("transformers:"):
            raise UserError(f"{needs}: '{given}' must be made such a directory by `clips import`; {_WANTED[needs]}")
        path = open_clip_directory(given) if needs == "encoder" else model_directory(given, needs)
        if not path.is_dir():
            raise UserError(f"{needs}: {given}: no such directory; {_WANTED[needs]}")
        return str(path)

    def model(self, needs: Part) -> dict[str, str]:
        """Path, or name on the hub, and hash of the part that a benchmark uses."""
        if needs == "llava" and self.config.lmms is not None:
            return _other_model(self.config.lmms)
        return {"path": getattr(self.config, needs), "hash": _model_hash(self.path(needs))}


def _other_model(config: LmmsModel) -> dict[str, str]:
    """Name and hash of a model of lmms-eval's: of its arguments, and of each directory that they name."""
    from benchmarks.mllm.other_models import check_known

    check_known(config.model)
    values = [argument.partition("=")[2] for argument in config.args.split(",")]
    hashes = [_model_hash(value) for value in values if value and Path(value).is_dir()]
    text = " ".join([config.model, config.args, *hashes])
    return {"path": f"lmms-eval's {config.model} ({config.args})", "hash": hashlib.sha256(text.encode()).hexdigest()}


@functools.cache
def _model_hash(path: str) -> str:
    return directory_hash(path)
