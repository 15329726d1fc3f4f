"""A small Llama with its own tokenizer, for training from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from clips.errors import UserError, check_at_least
from llava_bridge.conversation import IMAGE, resolve_chat_template

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
TURN_TOKENS = ("<|user|>", "<|assistant|>")  # as the chat template "turns" writes them
_TEXTS_FOR_TOKENIZER = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallLlamaConfig:
    """The Llama that the llm_pretrain stage builds if no LLM is given.

    Args:
        vocab_size: entries of the byte-pair tokenizer, which is trained on the same texts.
        hidden_size: width.
        num_hidden_layers: depth.
        num_attention_heads: a divisor of the width.
        mlp_ratio: width of the gated MLP over the model's width.
        max_position_embeddings: maximum sequence length in tokens, images included.
        initializer_range: standard deviation of the initial weights; null is 1/√hidden_size, with which small models
            learn to retrieve from their context several times sooner than with the 0.02 of large ones.
    """

    vocab_size: int = 1024
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    mlp_ratio: float = 2.75
    max_position_embeddings: int = 1024
    initializer_range: float | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise UserError(
                f"llm_from_scratch.vocab_size: expected at least 300 (256 bytes and some pairs), got {self.vocab_size}"
            )
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        check_at_least(1, self, *sizes, prefix="llm_from_scratch.")
        if self.initializer_range is not None and self.initializer_range <= 0:
            raise UserError(f"llm_from_scratch.initializer_range: expected more than 0, got {self.initializer_range}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"llm_from_scratch.num_attention_heads: expected a divisor of {self.hidden_size} with even quotient, "
                f"got {self.num_attention_heads}"
            )


def train_tokenizer(texts: Sequence[str], config: SmallLlamaConfig) -> Any:
    """Train a byte-level BPE tokenizer on ``texts`` (some ten thousand, evenly sampled).

    It has the chat template ``turns`` and an ``<image>`` token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, BEGIN, END, IMAGE, *TURN_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts[:: max(1, len(texts) // _TEXTS_FOR_TOKENIZER)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE, "user_token": TURN_TOKENS[0], "assistant_token": TURN_TOKENS[1]},
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = resolve_chat_template(None, "turns")
    return tokenizer


def new_llama(config: SmallLlamaConfig, tokenizer: Any) -> Any:
    """Build an untrained ``LlamaForCausalLM`` for ``tokenizer``, in float32; seed torch before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=int(config.hidden_size * config.mlp_ratio),
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=False,
            initializer_range=config.initializer_range or config.hidden_size**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
