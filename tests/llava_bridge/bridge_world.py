"""The bridge's miniature world: an encoder by open_clip, an LLM, images with talk, LLaVAs of them, trainings."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import torch

    from llava_bridge.data import ConversationSourceConfig
    from llava_bridge.training.inputs import Inputs
    from llava_bridge.training.train_config import AlignConfig, LlavaTrainConfig, StageConfig

COLORS = ("red", "green", "blue", "yellow")
VIT: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16, "no_ln_pre": True}
    | {"pool_type": "avg", "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d"},
    "text_cfg": {"context_length": 8, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 1},
}
TRUNK = {**VIT, "vision_cfg": {"timm_model_name": "test_resnet", "timm_model_pretrained": False}}
TRUNK["vision_cfg"]["image_size"] = 64
RESNET = {**VIT, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
OPENAI_VIT = {
    **VIT,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
}
"""As OpenAI's: transformers has a class of its own for it."""
SMALL_LLM = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_LLM |= {"num_key_value_heads": 2, "max_position_embeddings": 256}
"""Of a transformers config, whose other fields depend on the kind."""
MAMBA = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LLM_KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "granite": {"logits_scaling": 8.0, "tie_word_embeddings": True},
    "cohere": {"logit_scale": 0.0625, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "falcon_h1": {"lm_head_multiplier": 0.5, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, **MAMBA},
    "granitemoehybrid": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "layer_types": ["mamba", "attention"]}
    | {"shared_intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "mamba_n_heads": 8, **MAMBA},
    "gemma4_text": {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0},  # as that of 31B
}
"""``model_type`` → what differs from `SMALL_LLM`."""
TEXTS = [f"The shape is {color}. USER: What color is it? ASSISTANT: {color}" for color in COLORS] * 8


def open_clip_model(model_cfg: dict[str, Any], seed: int = 0) -> Any:
    import torch

    from clips.lazy_import import without_wandb

    with without_wandb():
        from open_clip.model import CLIP, CustomTextCLIP
    torch.manual_seed(seed)
    kind = CustomTextCLIP if "timm_model_name" in model_cfg["vision_cfg"] else CLIP
    return kind(**model_cfg).eval()


def make_encoder(directory: Path, model_cfg: dict[str, Any]) -> Any:
    """Write an encoder directory in open_clip's hub layout; return open_clip's own model."""
    from safetensors.torch import save_file

    model = open_clip_model(model_cfg)
    directory.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        directory / "open_clip_model.safetensors",
    )
    preprocess: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    preprocess |= {"interpolation": "bilinear", "resize_mode": "squash"}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    return model


def make_llm(directory: Path, context: int = 128, *, width: int = 32, tied: bool = False) -> Path:
    """A tiny untrained Llama; ``tied``: its output layer has the weights of its embedding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(context)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return save(directory, LlamaForCausalLM(config), tokenizer)


def make_llm_of(kind: str, tokenizer: Any, folder: Path, **more: Any) -> Any:
    """An untrained LLM of a kind with this tokenizer; also in ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**({} if kind == "gpt2" else SMALL_LLM), **LLM_KINDS.get(kind, {}), **more}
    numbers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields, **numbers)).eval()
    save(folder, widen(llm, 0.3), tokenizer)
    return llm


def make_tokenizer(context: int = 128) -> Any:
    """Byte pairs of ``TEXTS``, with a token for each role of the chat template ``turns``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from llava_bridge.conversation import IMAGE, resolve_chat_template

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", IMAGE, "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    pairs.train_from_iterator(TEXTS, trainer)
    roles = {"image_token": IMAGE, "user_token": "<|user|>", "assistant_token": "<|assistant|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=roles,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = resolve_chat_template(None, "turns")
    return tokenizer


def make_llava(directory: Path, encoder: Path, llm: Path, **parts: Any) -> Path:
    """An untrained LLaVA around the two."""
    from llava_bridge.model.build import LlavaParts, build_llava

    return save(directory, *build_llava(LlavaParts(encoder=str(encoder), llm=str(llm), **parts)))


def save(directory: Path, *parts: Any) -> Path:
    """A model, its processor or tokenizer: each as transformers saves it."""
    for part in parts:
        part.save_pretrained(directory)
    return directory


def widen(model: Any, std: float) -> Any:
    """Random matrices of a wide spread, as untrained layers of norm 1 hide mistakes."""
    import torch

    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std) if parameter.ndim > 1 else None
    return model


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    import numpy as np

    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def logits(model: Any, processor: Any, picture: Image.Image, prompt: str = "What?") -> torch.Tensor:
    """(1, T, V): of one question about an image, as our own chat encoder writes it."""
    import torch

    from llava_bridge.model.build import make_conversation_encoder

    chat = make_conversation_encoder(model, processor)
    ids = torch.tensor([chat.prompt_ids([{"role": "user", "content": f"<image>\n{prompt}"}], [picture])])
    with torch.no_grad():
        return model(input_ids=ids, **processor.image_processor(picture, return_tensors="pt")).logits


def make_talk(directory: Path, samples: int = 16) -> Path:
    """Images of one color and a conversation about each, in LLaVA's form, and the same as text."""
    directory.mkdir(parents=True)
    rows = []
    for number in range(samples):
        color = COLORS[number % len(COLORS)]
        Image.new("RGB", (40, 24), color).save(directory / f"{number}.png")
        talk = [("human", "<image>\nWhat color is it?"), ("gpt", color)]
        talk += [("human", "Sure?"), ("gpt", "yes" * (number % 3 + 1))]
        turns = [{"from": who, "value": value} for who, value in talk]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (directory / "talk.json").write_text(json.dumps(rows))

    return directory


SHAPES = ((40, 24), (24, 40), (64, 64), (200, 30))
"""Widths and heights of an album's images."""


def make_album(directory: Path) -> Path:
    """Noise of several shapes with talk about one image, two, and none."""
    directory.mkdir(parents=True)
    for number, size in enumerate(SHAPES):
        Image.effect_noise(size, 60).convert("RGB").save(directory / f"{number}.png")
    shown = [[number] for number in range(len(SHAPES))] + [[0, 2], [], []]
    rows = [
        {
            "id": str(number),
            "image": [f"{one}.png" for one in pictures],
            "conversations": [
                {"from": "human", "value": "<image>\n" * len(pictures) + "What color is it?"},
                {"from": "gpt", "value": COLORS[number % len(COLORS)]},
            ],
        }
        for number, pictures in enumerate(shown)
    ]
    (directory / "talk.json").write_text(json.dumps(rows))
    return directory


def source(talk: Path, file: str = "talk.json", **fields: Any) -> list[ConversationSourceConfig]:
    """The data of a stage: one of the files of `make_talk` and `make_album`."""
    from llava_bridge.data import ConversationSourceConfig

    return [ConversationSourceConfig(path=str(talk / file), **fields)]


LLAVA_ZERO3_OFFLOAD: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16}
    | {"hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 1e5,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""scripts/zero3_offload.json of LLaVA's authors."""


class Parts(NamedTuple):
    """Of what a LLaVA is made and trained: directories of an encoder, an LLM and conversations."""

    encoder: Path
    llm: Path
    talk: Path


def inputs_of(config: LlavaTrainConfig) -> Inputs:
    """Those of a config whose models and data are not read."""
    from clips.core.identity import identity
    from llava_bridge.training.inputs import Inputs, resolve_deepspeed
    from llava_bridge.training.launch import launcher_world_size

    processes = launcher_world_size() or config.distributed.num_processes or 1
    deepspeed: Any = {name: resolve_deepspeed(config, name, processes) for name in config.stages}
    run = identity("llava-bridge train", config)
    return Inputs(config=config, processes=processes, gpus=0, models={}, data={}, deepspeed=deepspeed, identity=run)


def stage(talk: Path, file: str = "talk.json", **fields: Any) -> StageConfig:
    """Three steps of four samples at a high rate; ``fields`` override it."""
    from llava_bridge.training.train_config import StageConfig

    return StageConfig(**stage_fields(talk, file, **fields))


def align_stage(talk: Path, file: str = "talk.json", **fields: Any) -> AlignConfig:
    """The same as the stage align."""
    from llava_bridge.training.train_config import AlignConfig

    return AlignConfig(**stage_fields(talk, file, **fields))


def stage_fields(talk: Path, file: str = "talk.json", **fields: Any) -> dict[str, Any]:
    usual = {"max_steps": 3, "global_batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0}
    return {"data": source(talk, file), **usual, **fields}


def instruct_file(directory: Path, name: str, parts: Parts, settings: Mapping[str, Any], **fields: Any) -> Path:
    """A run of the stage instruct alone, of ``settings``, on a finished encoder and LLM."""
    usual = {"stages": ["instruct"], "encoder": str(parts.encoder), "llm": str(parts.llm)}
    return config_file(directory, name, parts.talk, **{**usual, "instruct": stage(parts.talk, **settings), **fields})


def config_file(directory: Path, name: str, talk: Path, **fields: Any) -> Path:
    """A tiny run of both stages, on a new LLM; ``fields`` of TrainConfig override it."""
    from clips.typed_data import to_yaml
    from llava_bridge.training.train_config import AlignConfig, LlavaTrainConfig, StageConfig

    data = source(talk)
    settings: dict[str, Any] = {
        "output": str(directory / name),
        "align": AlignConfig(data=data, max_steps=4, global_batch_size=4),
        "instruct": StageConfig(data=data, max_steps=6, global_batch_size=4, learning_rate=1e-3),
        "precision": "fp32",
        "logging_steps": 1,
    }
    if not {"llm", "llava"} & fields.keys():
        settings["llm"] = str(make_llm(directory / "llm", context=96))
    path = directory / f"{name}.yaml"
    path.write_text(to_yaml(LlavaTrainConfig(**{**settings, **fields})))
    return path


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python process, one thread."""
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True, timeout=1200)


def python(code: str, **environment: str) -> list[str]:
    """The lines that a fresh Python process prints, which ends well."""
    done = run_python("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def train(path: Path, *flags: str, **environment: str) -> str:
    """What ``llava-bridge train`` prints, which ends well."""
    done = run_python("-m", "llava_bridge", "train", "--config", str(path), *flags, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@contextlib.contextmanager
def training(path: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own; killed at the end."""
    words = [sys.executable, *(command or ("-m", "llava_bridge", "train")), "--config", str(path)]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(words, env=own, stdout=printed, stderr=printed, text=True)
        process.printed = lambda: (printed.seek(0), printed.read())[1]  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            text = process.printed()  # type: ignore[attr-defined]
            process.printed = lambda: text  # type: ignore[attr-defined]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Until ``what`` is so, while the process runs."""
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.printed()  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, process.printed()  # type: ignore[attr-defined]
        time.sleep(0.02)


def ended_by(number: signal.Signals, process: subprocess.Popen[str]) -> str:
    """What the process has printed until a signal ended it."""
    process.send_signal(number)
    process.wait(timeout=100)
    return process.printed()  # type: ignore[attr-defined, no-any-return]


def run_cli(*words: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of ``llava-bridge`` in this process."""
    from clips.commandline.commands import dispatch
    from llava_bridge.cli import ABOUT, COMMANDS

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = dispatch("llava-bridge", ABOUT, COMMANDS, words)
    return status, out.getvalue(), err.getvalue()


def trained_alone(*files: Path, driver: str = "swap_driver.py", **environment: str) -> str:
    """Train by config files, one after the other, in one process that a launcher would start; return what it prints."""
    done = run_python(str(Path(__file__).with_name(driver)), *map(str, files), **launched(), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def launched() -> dict[str, str]:
    """What a launcher tells the only process that it starts."""
    from llava_bridge.training.launch import free_port

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return {**alone, "MASTER_PORT": str(free_port())}


def metrics(directory: Path, *names: str) -> list[Any]:
    """Of each logged step: a value, or a tuple of several."""
    file = directory / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be being written
    return [row[names[0]] if len(names) == 1 else tuple(row[name] for name in names) for row in rows]


def losses(directory: Path) -> list[float]:
    return metrics(directory, "loss")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


PARTS = {"vision_tower": "vision", "projector": "projector", "image_newline": "newline"}
PARTS |= {"language_model": "llm", "lm_head": "llm"}


_KEY_BIAS_STEPS = 0.03  # three at a rate of 1e-2: AdamW scales the rounding errors that are these biases' gradient


def moved(before: Path, after: Path) -> set[str]:
    """Which parts of two LLaVAs differ."""
    one, other = weights(before), weights(after)
    assert one.keys() == other.keys()
    changed = [name for name, value in one.items() if (other[name] - value).abs().max() > 1e-6]
    return {part for name in changed for mark, part in PARTS.items() if mark in name}


def assert_same_training(one: Path, other: Path, within: float, within_losses: float | None = None) -> None:
    """The same losses and, at the end, the same weights."""
    import pytest
    import torch

    expected = losses(other)
    assert expected
    assert losses(one) == pytest.approx(expected, abs=within if within_losses is None else within_losses)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        rounding = within and "vision_tower" in name and name.endswith("k_proj.bias")  # the softmax ignores them
        atol = _KEY_BIAS_STEPS if rounding else within
        torch.testing.assert_close(ours[name], value.to(ours[name].dtype), atol=atol, rtol=within, msg=name)


def run_processes(count: int, driver: str, *arguments: str, timeout: float, **environment: str) -> str:
    """Run a driver in several processes that share a training, as a launcher starts them; return what they print.

    All are ended when one fails, or after ``timeout`` seconds, which counts as a failure.
    """
    import pytest
    import torch

    if 0 < torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs, or none")
    command = [sys.executable, str(Path(__file__).with_name(driver)), *arguments]
    place = {**launched(), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    shared = {**os.environ, **place, **environment}
    with tempfile.TemporaryFile("w+") as printed:
        started = [
            subprocess.Popen(command, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, stdout=printed, stderr=printed)
            for rank in map(str, range(count))
        ]
        deadline = time.monotonic() + timeout
        try:
            while any(one.poll() is None for one in started):
                if time.monotonic() > deadline or any(one.poll() for one in started):
                    break
                time.sleep(0.05)
            statuses = [one.poll() for one in started]
        finally:
            for one in started:
                one.kill()
                one.wait()
        printed.seek(0)
        text = printed.read()
    assert statuses == [0] * count, f"ended with {statuses} (None: after {timeout:.0f} s not at all): {text[-3000:]}"
    return text
