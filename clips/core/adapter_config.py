"""Settings of low-rank adapters, for the towers of an encoder and for a LLaVA, and their form in PEFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from clips.errors import UserError, check_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) next to frozen linear layers.

    Args:
        r: rank of the matrices.
        lora_alpha: the adapters' output is scaled by lora_alpha / r.
        lora_dropout: dropout probability of their inputs.
        use_dora: also learn magnitudes (DoRA, arXiv 2402.09353).
        target_modules: names of linear layers, such as q_proj; null adapts all of them.
    """

    r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    use_dora: bool = False
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_at_least(1, self, "r", prefix="lora.")
        if not self.lora_alpha > 0:
            raise UserError(f"lora.lora_alpha: expected more than 0, got {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora.lora_dropout: expected a ratio from 0 to below 1, got {self.lora_dropout}")

    def for_peft(self, layers: Iterable[str]) -> Any:
        """Return PEFT's LoraConfig that adapts the ``target_modules`` among ``layers``, dotted names.

        Raises:
            UserError: ``target_modules`` names none of them.
        """
        import peft

        layers, chosen = list(layers), self.target_modules
        targets = [name for name in layers if chosen is None or name.rpartition(".")[2] in chosen]
        if not targets:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers})) or "a model with linear layers"
            raise UserError(f"lora.target_modules: expected some of {known}, got {list(chosen or ())}")
        return peft.LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora_dropout,
            use_dora=self.use_dora,
            target_modules=targets,
            bias="none",
        )
