"""The model FLOPs utilization (MFU) of ``llava-bridge train``: the command itself, in its instruct stage.

    python scripts/bench/bridge_mfu.py --device cuda --precision bf16               (L/14 at 336 px, an LLM of 0.5 B)
    python scripts/bench/bridge_mfu.py --threads 2 --encoder timm:test_vit@random --hidden 256 --layers 4 --batch 4 \
        --length 512 --vocabulary 4000 --matrix 1024 --steps 6

Encoder and LLM have random weights, on which the speed does not depend. The encoder is frozen; projector and LLM train
on rows full of tokens, with ``--images`` JPEG files each. A step's time is the mean over the steps after the first
``--warmup``, from the command's metrics.jsonl, and includes reading, decoding, optimizer and log. The peak is that of a
large matrix product in the step's precision, measured alternately with the training; a step's operations are those of
its matrix products and attentions, counted for one row on the CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import begin, common_parser, flops, record, spread, table
from mfu import matrix_product
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from clips.typed_data import from_plain
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import set_trainable_parts, setup_stage
from llava_bridge.training.train_config import LlavaTrainConfig

LLMS: dict[str, dict[str, Any]] = {  # Qwen 2.5's
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "vocab_size": 151_936}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18_944, "vocab_size": 152_064}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


def main() -> None:
    args = begin(arguments())
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(args, Path(folder))
        row, sizes = operations(config, Path(folder))
        encoder, llm = (f"{size / 1e6:,.0f} M" for size in sizes)
        print(f"encoder {encoder}, LLM {llm} weights, {args.batch} rows of {args.length}")
        product, repeats = matrix_product(args, args.precision)
        peaks, rates = [], []
        for _ in range(args.rounds):
            start = time.perf_counter()
            product()
            peaks.append(2 * args.matrix**3 * repeats / (time.perf_counter() - start) / 1e12)
            rates.append(row * args.batch / args.processes / trained(args, config, Path(folder)) / 1e12)
    ratios = [rate / peak for rate, peak in zip(rates, peaks, strict=True)]
    tokens = spread([rate * 1e12 / row * args.length for rate in rates])
    record(args, peak_tflops=spread(peaks), tflops=spread(rates), mfu=spread(ratios), tokens_per_second=tokens)
    head = ["precision", "processes", "peak TFLOP/s", "step TFLOP/s", "MFU", "tokens/s of a process"]
    cells = [f"{spread(peaks):.3g}", f"{spread(rates):.3g}", f"{spread(ratios):.1%}", f"{tokens:.4g}"]
    print(table(head, [[args.precision, str(args.processes), *cells]]))


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--encoder", default="timm:vit_large_patch14_clip_336@random")
    parser.add_argument("--llm", default="0.5b", choices=list(LLMS), help="the shape of one of Qwen 2.5")
    parser.add_argument("--hidden", type=int, help="another width, with heads of 64")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row, images included")
    parser.add_argument("--images", type=int, default=2, help="in each row")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step, over all processes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3, help="first steps that are not counted")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--matrix", type=int, default=4096, help="rows and columns of the product that is the peak")
    return parser.parse_args()


def write_config(args: argparse.Namespace, folder: Path) -> Path:
    """The config of the training, with its LLM and its data."""
    write_llm(args, folder / "llm")
    rng, samples = np.random.default_rng(0), []
    for number in range(args.batch):
        names = [f"{number}-{image}.jpg" for image in range(args.images)]
        for name in names:  # as smooth as a photo
            small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / name)
        turns = [
            {"from": "human", "value": "<image>\n" * args.images + "Go on."},
            {"from": "gpt", "value": " ".join(rng.choice(WORDS, args.length))},  # more tokens than the row has left
        ]
        samples.append({"image": names, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(samples))
    data = [{"path": str(folder / "data.json"), "image_root": str(folder)}]
    stage = {"data": data, "max_steps": args.steps, "global_batch_size": args.batch, "max_length": args.length}
    config: dict[str, Any] = {"output": str(folder / "llava"), "encoder": args.encoder, "llm": str(folder / "llm")}
    config |= {"stages": ["instruct"], "instruct": stage, "precision": args.precision}
    config |= {"distributed": {"num_processes": args.processes}, "save_steps": 0, "logging_steps": 1}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_llm(args: argparse.Namespace, folder: Path) -> None:
    """An untrained Qwen 2, with a tokenizer of some words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    given = {"num_hidden_layers": args.layers, "vocab_size": args.vocabulary, "hidden_size": args.hidden}
    if args.hidden:
        given |= {"intermediate_size": args.hidden * 38 // 7, "num_attention_heads": args.hidden // 64}
        given |= {"num_key_value_heads": max(1, args.hidden // 448)}
    config = Qwen2Config(**LLMS[args.llm] | {name: value for name, value in given.items() if value})
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(("<unk>", "</s>", *dict.fromkeys(WORDS)))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)


def operations(config: Path, folder: Path) -> tuple[float, tuple[int, int]]:
    """Operations of forward and backward of a row, on the CPU; the numbers of weights of encoder and LLM."""
    parsed: LlavaTrainConfig = from_plain(LlavaTrainConfig, yaml.safe_load(config.read_text()))
    setup = setup_stage(resolve_inputs(parsed), "instruct")
    set_trainable_parts(setup, parsed.instruct, "instruct")
    batch = setup.collator([setup.dataset[0]])
    assert not batch.pop("invalid_samples")
    parts = (setup.parts["vision"], setup.model.model.language_model)
    sizes = (sum(weight.numel() for weight in part.parameters()) for part in parts)
    setup.model.model.language_model.set_attn_implementation("eager")
    with sdpa_kernel(SDPBackend.MATH):  # of the encoder: torch's counter ignores the fused attention of a CPU
        row = flops(lambda: LlavaLoss(setup.model)(**batch)["loss"].backward())
    return row, tuple(sizes)  # type: ignore[return-value]


def trained(args: argparse.Namespace, config: Path, folder: Path) -> float:
    """Seconds of a step of the command; the output is removed."""
    command = [sys.executable, "-m", "llava_bridge", "train", "--config", str(config)]
    subprocess.run(command, check=True)  # its output shows why it failed
    lines = (folder / "llava" / "metrics.jsonl").read_text().splitlines()[args.warmup :]
    shutil.rmtree(folder / "llava")
    times = [json.loads(line)["time"] for line in lines]
    return float(times[-1] - times[0]) / (len(times) - 1)


if __name__ == "__main__":
    main()
