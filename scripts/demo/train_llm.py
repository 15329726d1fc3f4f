"""Train a tiny Llama with its own tokenizer on conversations without their images, and write it as an LLM directory.

    python scripts/demo/train_llm.py --config llm.yaml

In a study it is the command of an entry of ``data``, whose directory an entry of ``llms`` names, see
scripts/studies/demo.yaml. A LLaVA takes any causal LM of transformers: this one exists because it learns the words of
the demo's scenes in a minute. Anything larger is a case for transformers, TRL or torchtitan.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from clips.commandline.parsing import parse_config
from clips.core.artifact import atomic_artifact_dir, write_manifest
from clips.data.formats.dataset_format import IMAGE, Conversation
from clips.errors import UserError
from clips.safe_text import log_info
from llava_bridge.conversation import IGNORE_INDEX, ConversationEncoder, resolve_chat_template
from llava_bridge.data import ConversationSourceConfig, read_samples
from llava_bridge.data.batches import ConversationCollator, ConversationDataset, RandomOrder

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
TURN_TOKENS = ("<|user|>", "<|assistant|>")  # as the chat template "turns" writes them
TEXTS_FOR_TOKENIZER = 10_000
MLP_RATIO = 2.75
MAX_LENGTH = 256
"""Tokens of a training sample."""
MAX_POSITIONS = 512
"""Of the LLM: a LLaVA adds the tokens of images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """The LLM and its training.

    Args:
        output: the directory to write.
        data: sources of conversations or captions, as those of ``llava-bridge train``; images are left out.
        vocab_size: entries of the byte-pair tokenizer, 300 or more.
        hidden_size: width.
        num_hidden_layers: depth.
        num_attention_heads: a divisor of the width.
        max_steps: optimizer steps.
        global_batch_size: samples per step.
        learning_rate: peak of the cosine schedule.
        warmup_ratio: ratio of the steps with linear warmup.
        seed: seed of initial weights and of the order of samples.
    """

    output: str
    data: list[ConversationSourceConfig]
    vocab_size: int = 1024
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    max_steps: int = 800
    global_batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_ratio: float = 0.03
    seed: int = 0


def train_llm(config: LlmConfig) -> None:
    """Train the LLM and write its directory."""
    samples = [without_images(sample) for data in config.data for sample in read_samples(data, config.seed)]
    tokenizer = train_tokenizer([" ".join(turn.content for turn in sample.turns) for sample in samples], config)
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=int(config.hidden_size * MLP_RATIO),
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=False,
            # With the 0.02 of large models small ones learn to look up words in their context several times later.
            initializer_range=config.hidden_size**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    chat = ConversationEncoder(tokenizer, tokenizer.chat_template, image_tokens=0)
    dataset = ConversationDataset(samples, chat, MAX_LENGTH)
    loss = fit(model, dataset, ConversationCollator(None, tokenizer.pad_token_id), config)
    with atomic_artifact_dir(config.output, kind="llm") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_manifest(folder, kind="llm", config=config)
    log_info(f"{config.output}: {config.max_steps} steps, final loss {loss:.4f}")


def without_images(sample: Conversation) -> Conversation:
    """The conversation with its text alone."""
    turns = [turn._replace(content=turn.content.replace(IMAGE, "").strip()) for turn in sample.turns]
    return dataclasses.replace(sample, images=(), turns=turns) if sample.images else sample


def train_tokenizer(texts: Sequence[str], config: LlmConfig) -> Any:
    """A byte-level BPE tokenizer of ``texts``, with ``<image>`` as one token and a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, BEGIN, END, IMAGE, *TURN_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts[:: max(1, len(texts) // TEXTS_FOR_TOKENIZER)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE, "user_token": TURN_TOKENS[0], "assistant_token": TURN_TOKENS[1]},
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = resolve_chat_template(None, "turns")
    return tokenizer


def fit(model: Any, dataset: ConversationDataset, collate: ConversationCollator, config: LlmConfig) -> float:
    """Train with AdamW in float32, which is faster than bf16 for matrices this small; returns the last loss."""
    # As in transformers' Trainer: biases and norms have no weight decay.
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    warmup = math.ceil(config.warmup_ratio * config.max_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, config.max_steps)
    order = iter(RandomOrder(len(dataset), config.max_steps * config.global_batch_size, config.seed))
    loss = math.nan
    for step in range(1, config.max_steps + 1):
        batch = collate([dataset[next(order)] for _ in range(config.global_batch_size)])
        following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        answered = (following != IGNORE_INDEX).any(0).nonzero()[:, 0]  # no row needs logits at other positions
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=(batch["input_ids"] != model.config.pad_token_id).long(),
            labels=batch["labels"],
            logits_to_keep=answered,
            shift_labels=following[:, answered].contiguous(),
        )
        output.loss.backward()
        clip_gradients(matrices, vectors)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = output.loss.item()
        if step % 100 == 0:
            log_info(f"step {step}/{config.max_steps}  loss {loss:.4f}")
    return loss


def clip_gradients(*groups: Sequence[torch.Tensor]) -> None:
    """Scale all gradients to a norm of at most 1, computed in float64 as DeepSpeed does (torch's: in float32)."""
    gradients = [[weight.grad for weight in group if weight.grad is not None] for group in groups]
    squares = torch.stack([sum(gradient.double().norm() ** 2 for gradient in group) for group in gradients])
    scale = 1 / (torch.linalg.vector_norm(squares.float().sqrt()) + 1e-6).clamp(min=1.0)
    for gradient in itertools.chain.from_iterable(gradients):
        gradient.mul_(scale)


if __name__ == "__main__":
    try:
        if (given := parse_config(LlmConfig, sys.argv[1:], prog="train_llm.py")) is not None:  # else help
            train_llm(given)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
