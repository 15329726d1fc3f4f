"""Text towers that are language models of transformers, in open_clip's layout (its ``HFTextEncoder``).

A ``text_cfg`` with ``hf_model_name`` selects one. open_clip itself builds five types of masked LMs; this module builds
any type, also causal LMs, under the same names of weights.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clips.errors import UserError
from clips.lazy_import import without_wandb
from clips.model.loading import library_errors_as_user_errors, load_pretrained
from clips.model_refs import HF_HUB_PREFIX, OPEN_CLIP_WEIGHTS, resolve_model_dir

_FIELD = "model.architecture: hf_model_name"
POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler", "max_pooler", "last_pooler")


def read_text_config(reference: str) -> Any:
    """Return the config of a language model: a directory, or a repo id on the Hub.

    Raises:
        UserError: it is missing, or not in the transformers format.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    directory = _resolve(reference, _FIELD)
    with library_errors_as_user_errors(f"{_FIELD}: {reference}: expected a model in the transformers format"):
        config = AutoConfig.from_pretrained(directory)
    if MODEL_MAPPING.get(type(config), None) is None or not hasattr(config, "vocab_size"):
        raise UserError(f"{_FIELD}: {reference}: expected a language model, got a {config.model_type}")
    config.use_cache = False
    if config.pad_token_id is None:  # as of most causal LMs
        tokenizer = load_tokenizer(reference)
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        taken = {None, *tokenizer("").input_ids}  # ids do not distinguish padding from an added token
        config.pad_token_id = next((token for token in known if token not in taken), None)
        if config.pad_token_id is None:
            raise UserError(
                f"{_FIELD}: {reference}: expected a token for padding, the end of a text or unknown words that the "
                "tokenizer does not add to each text; set pad_token_id in its config.json"
            )
    return config


def _resolve(reference: str, field: str) -> Path:
    """Return the directory of a reference, which in open_clip's configs may have no organization."""
    if Path(reference).is_dir() or reference.startswith(HF_HUB_PREFIX):
        return resolve_model_dir(reference, field)
    return resolve_model_dir(f"{HF_HUB_PREFIX}{reference}", field)


def load_tokenizer(reference: str) -> Any:
    """Load the tokenizer of a language model.

    Raises:
        UserError: it is missing.
    """
    from transformers import AutoTokenizer

    field = "model.architecture: hf_tokenizer_name"
    directory = _resolve(reference, field)
    with library_errors_as_user_errors(f"{field}: {reference}: no tokenizer"):
        return AutoTokenizer.from_pretrained(directory)


def text_model_cfg(text: dict[str, Any]) -> dict[str, Any]:
    """Return a ``text_cfg`` with the sizes of its language model, without its initial weights.

    Raises:
        UserError: no such model, an unknown pooler, or more tokens than it has positions for.
    """
    config = read_text_config(text["hf_model_name"])
    pooler = text.get("hf_pooler_type", "mean_pooler")
    if pooler not in POOLERS:
        raise UserError(f"model.architecture: hf_pooler_type: expected one of {', '.join(POOLERS)}, got {pooler}")
    length, limit = text.get("context_length", 77), _max_length(text["hf_model_name"])  # open_clip's default
    if limit is not None and length > limit:
        raise UserError(f"model.context_length: expected at most {limit}, the language model's, got {length}")
    local = Path(text["hf_model_name"])
    return {key: value for key, value in text.items() if key != "output_tokens"} | {
        "hf_model_name": str(local.absolute()) if local.is_dir() else text["hf_model_name"],
        "hf_tokenizer_name": text.get("hf_tokenizer_name") or text["hf_model_name"],
        "hf_model_pretrained": False,
        "hf_pooler_type": pooler,
        "context_length": length,
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
    }


def _max_length(reference: str) -> int | None:
    """Return the number of tokens that a language model has positions for; None if it has no limit.

    In models like RoBERTa the first token's position follows the padding's index.
    """
    from transformers import AutoModel

    config = read_text_config(reference)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    with torch.device("meta"):
        modules = AutoModel.from_config(config).named_modules()
    tables = (table for name, table in modules if "position" in name and isinstance(table, nn.Embedding))
    return limit - max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


class HFTextTower(nn.Module):
    """A language model, a pooler and a projection, with the interface and the weights of open_clip's HFTextEncoder.

    Args:
        model_name_or_path: of the language model.
        output_dim: E, the width of the embedding.
        config: of the language model; None reads it.
        pooler_type: an entry of ``POOLERS``.
        proj_type: ``linear``, ``mlp``, or None if the widths are equal.
        pretrained: not used: :func:`read_language_model` reads weights.
        output_tokens: not supported.
    """

    def __init__(
        self,
        model_name_or_path: str,
        output_dim: int,
        config: Any = None,
        pooler_type: str = "mean_pooler",
        proj_type: str | None = None,
        pretrained: bool = False,
        output_tokens: bool = False,
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        config = read_text_config(model_name_or_path) if config is None else config
        model = AutoModel.from_config(config, dtype=torch.float32, **_model_options(config, pooler_type))
        self.config = config
        self.transformer = model.encoder if config.is_encoder_decoder else model
        self.pooler_type, self.output_dim = pooler_type, output_dim
        self.vocab_size, self.context_length = config.vocab_size, getattr(config, "max_position_embeddings", 0)
        self.proj = _projection(config.hidden_size, output_dim, proj_type)

    def forward(self, text: Tensor) -> Tensor:
        """Return features (B, E) of tokens (B, L)."""
        return self.encode(text)[0]

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, E) and the last layer's tokens (B, L, width), without a pooled class token."""
        outputs, mask = self._run(text)
        tokens = outputs.last_hidden_state
        return self.proj(self._pool(outputs, mask)), tokens[:, 1:] if self.pooler_type.startswith("cls_") else tokens

    def encode_features(self, text: Tensor) -> Tensor:
        """Return features (B, E) of tokens (B, L)."""
        return self.proj(self.pooled(text))

    def pooled(self, text: Tensor) -> Tensor:
        """Return the pooled output (B, width), computed up to the longest text, which is best read on the CPU."""
        used = (text != self.pad_token_id).any(dim=0).nonzero()
        return self._pool(*self._run(text[:, : int(used.max()) + 1 if len(used) else 1]))

    @property
    def pad_token_id(self) -> int:
        """The token that is masked."""
        return int(self.config.pad_token_id)

    def _run(self, text: Tensor) -> tuple[Any, Tensor]:
        text = text.to(self.transformer.device, non_blocking=True)
        places = torch.arange(text.shape[1], device=text.device)
        last = ((text != self.pad_token_id) * places).amax(dim=1, keepdim=True)  # 0 of an empty text: one token counts
        mask = (places <= last).long()  # the padding token within a text, if it is that of unknown words, is none
        return self.transformer(input_ids=text, attention_mask=mask), mask

    def _pool(self, outputs: Any, mask: Tensor) -> Tensor:
        tokens = outputs.last_hidden_state
        if self.pooler_type == "mean_pooler":
            return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        if self.pooler_type == "max_pooler":
            return tokens.masked_fill(mask[..., None] == 0, -torch.inf).amax(dim=1)
        if self.pooler_type == "last_pooler":
            return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(dim=1) - 1]
        own = getattr(outputs, "pooler_output", None) if self.pooler_type == "cls_pooler" else None
        return tokens[:, 0] if own is None else own

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the language model up to its last ``unlocked_layers`` layers; the projection stays trainable.

        Raises:
            IndexError: it has fewer layers.
        """
        lists = [module for module in self.transformer.modules() if isinstance(module, nn.ModuleList)]
        layers = max(lists, key=len)
        first = None if not unlocked_layers else next(layers[-unlocked_layers].parameters())
        trains = False
        for value in self.transformer.parameters():  # in the order of computation
            trains = trains or value is first
            value.requires_grad = trains

    def train(self, mode: bool = True) -> HFTextTower:
        """Set the training mode, except for a frozen language model, which has no dropout."""
        super().train(mode)
        self.transformer.train(mode and any(value.requires_grad for value in self.transformer.parameters()))
        return self


def read_language_model(text_cfg: dict[str, Any]) -> Any:
    """Return the language model of a ``text_cfg`` with its weights; of encoder and decoder the encoder.

    Raises:
        UserError: it is missing, or lacks weights.
    """
    from transformers import AutoModel

    name = text_cfg["hf_model_name"]
    config, directory = read_text_config(name), _resolve(name, _FIELD)
    if (directory / OPEN_CLIP_WEIGHTS).is_file() and not (directory / "model.safetensors").is_file():
        raise UserError(
            f"model.pretrained: expected {name}, or model.pretrained_text: false for random weights, "
            "since this encoder directory has its language model's weights only among its own"
        )
    options = _model_options(config, text_cfg["hf_pooler_type"])
    model = load_pretrained(AutoModel, directory, f"{_FIELD}: {name}", config=config, dtype=torch.float32, **options)
    return model.encoder if config.is_encoder_decoder else model


def _model_options(config: Any, pooler_type: str) -> dict[str, Any]:
    from transformers import MODEL_MAPPING

    kind: Any = MODEL_MAPPING.get(type(config), None)
    has_pooler = "add_pooling_layer" in inspect.signature(kind).parameters
    return {"add_pooling_layer": pooler_type == "cls_pooler"} if has_pooler else {}


def _projection(width: int, output_dim: int, kind: str | None) -> nn.Module:
    if kind is None:
        if width != output_dim:
            raise UserError(
                f"model.architecture: hf_proj_type: expected linear or mlp for {width} to {output_dim} channels"
            )
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, output_dim, bias=False)
    if kind != "mlp":
        raise UserError(f"model.architecture: hf_proj_type: expected linear or mlp, got {kind}")
    hidden = (width + output_dim) // 2
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, output_dim, bias=False))


@contextlib.contextmanager
def own_text_towers() -> Iterator[None]:
    """Let open_clip build its towers of transformers as :class:`HFTextTower`."""
    with without_wandb():
        import open_clip

    module: Any = open_clip.model
    before = module.HFTextEncoder
    module.HFTextEncoder = HFTextTower
    try:
        yield
    finally:
        module.HFTextEncoder = before


def with_own_text_config(cfg: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a ``model_cfg`` whose language model is that of the encoder directory, if it has a copy of its config."""
    text = cfg.get("text_cfg", {})
    if "hf_model_name" not in text or not (directory / "config.json").is_file():
        return cfg
    return cfg | {"text_cfg": text | {"hf_model_name": str(directory.absolute())}}
