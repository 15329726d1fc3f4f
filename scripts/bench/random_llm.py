"""Write a directory of an LLM with random weights, for benchmarks whose speed does not depend on them.

    python scripts/bench/random_llm.py --tokenizer ../shared/models/stories15M --llm 0.5b --out llm

The tokenizer's directory gives the vocabulary. The shape is one of Qwen 2.5.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from measure import common_parser
from packed_step import add_llm_arguments, text_config
from transformers import AutoTokenizer, Qwen2ForCausalLM


def main() -> None:
    args = arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = text_config(args, vocab_size=len(tokenizer), dtype="bfloat16", **ends)
    config.initializer_range = config.hidden_size**-0.5  # large enough for answers to depend on the image
    with torch.device(args.device):
        llm: Any = Qwen2ForCausalLM(config)
    llm.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def arguments() -> argparse.Namespace:
    parser = common_parser(__doc__)
    add_llm_arguments(parser)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
