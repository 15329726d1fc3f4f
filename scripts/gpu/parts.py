"""The parts of scripts/gpu/run.py as command lines, those to be measured next first; a small form of each for a CPU.

``{data}`` is the kit's data, ``{work}`` a folder for large files. Scripts also get ``--device`` and ``--json``; pytest,
whose tests take a GPU if there is one, gets ``--json``.
"""

from __future__ import annotations

SECONDS = 460
"""The limit of a part; what it has measured until then remains."""

_PLUGINS = "-p pytest_results -p no:cacheprovider -p no:benchmark"  # which warns about the processes of xdist
_CAPTIONS = "--captions {data}/data/capsfusion_5k.jsonl"
_PHOTOS = "--photos {data}/data/cc12m_32.tar " + _CAPTIONS
_LLM = "scripts/bench/random_llm.py --tokenizer {data}/models/stories15M --out {work}/llm"
_STEP = "scripts/bench/mfu.py --image-size 224 --batch 256 --precisions bf16 --matrix 8192 --steps 5 --architecture"
_PROFILE = "scripts/bench/profile_step.py --image-size 224 --batch 256 --precisions bf16 --architecture"
_OPEN_CLIP = (
    "scripts/bench/step_vs_open_clip.py --image-size 224 --batch 256 --precisions bf16 --recipes clip --rounds 10"
)
_BRIDGE = "scripts/bench/packed_step.py --precision bf16 --matrix 8192 --steps 3"

FULL: dict[str, list[str]] = {
    "repeat": ["scripts/bench/repeated_steps.py --architecture clips-b-16 --batch 96 --precisions bf16"],
    "blind": [
        _LLM,
        "scripts/bench/blind_time.py --shared {data} --llm {work}/llm --tower 24 1024 336 --tokens 2 --benchmarks pope "
        "--items 3600 --questions 18 --part-only --rounds 2",
    ],
    "loader": [
        f"scripts/bench/loader.py {_PHOTOS} --workers 8 --batch-size 256 --burst 2048 --samples 2048 --rounds 3",
        f"scripts/bench/loader.py {_PHOTOS} --workers 14 --batch-size 256 --burst 4096 --samples 4096 --rounds 3",
    ],
    "recalls": [
        "scripts/bench/recall_speed.py --rounds 3",
        "scripts/bench/recall_speed.py --sizes 20000x100000 100000x500000 --alone --rounds 3",
    ],
    "photos": ["scripts/bench/photos.py --shared {data} --workers 8 --steps 340"],
    "bridge": [
        "scripts/bench/bridge_mfu.py --precision bf16 --matrix 8192 --batch 8 --rounds 1",
        f"{_BRIDGE} --llm 0.5b --batch 8",
        f"{_BRIDGE} --llm 0.5b --batch 8 --samples 8 --attention sdpa varlen",
        f"{_BRIDGE} --llm 7b --batch 2",
        f"{_BRIDGE} --llm 7b --batch 2 --samples 8 --attention sdpa varlen",
        _LLM,
        "scripts/bench/bridge_step.py --shared {data} --llm {work}/llm --rounds 3",
    ],
    "tests": [
        f"-m pytest -q {_PLUGINS} -n 12 --dist loadfile --timeout 200 -m 'not slow' -o log_level=WARNING "
        "--continue-on-collection-errors tests/",
    ],
    "open_clip": [
        f"{_OPEN_CLIP} --architecture clips-b-16 {_CAPTIONS}",
        f"{_OPEN_CLIP} --architecture clips-l-14 {_CAPTIONS}",
    ],
    "profile": [
        f"{_PROFILE} clips-l-14",
        f"{_PROFILE} clips-l-14 --compile",
        f"{_PROFILE} clips-b-16",
        f"{_PROFILE} clips-s-16 --compile",
    ],
    "equal": [
        f"scripts/bench/device_equal.py --architecture clips-b-16 --batch 8 --compile {_CAPTIONS}",
        "scripts/bench/device_equal.py --architecture clips-s-16 --batch 16 --recipes coca clips --strategies ddp",
    ],
    "step_l14": [f"{_STEP} clips-l-14", f"{_STEP} clips-l-14 --compile"],
    "step_b16": [f"{_STEP} clips-b-16", f"{_STEP} clips-b-16 --compile"],
    "step_s16": [f"{_STEP} clips-s-16", f"{_STEP} clips-s-16 --compile"],
    "loss": ["scripts/bench/loss_memory.py --bf16", "scripts/bench/loss_memory.py --widths 512 768"],
    "answers": [
        _LLM,
        "scripts/bench/answers.py --shared {data} --llm {work}/llm --dtype bfloat16 --images 8 --tower 24 1024 336 "
        "--rounds 2",
    ],
}
"""Name → command lines."""

_TINY = "--architecture clips-tiny --batch 4 --precisions fp32"
_TINY_STEP = f"scripts/bench/mfu.py {_TINY} --recipes clip --matrix 256 --steps 2 --rounds 2"
_TINY_LLM = "--hidden 64 --layers 1"
SMALL: dict[str, list[str]] = {
    "repeat": [f"scripts/bench/repeated_steps.py {_TINY} --steps 2"],
    "blind": [
        f"{_LLM} {_TINY_LLM}",
        "scripts/bench/blind_time.py --shared {data} --llm {work}/llm --tower 2 64 32 --benchmarks pope --items 54 "
        "--questions 18 --part-only --rounds 1",
    ],
    "loader": [f"scripts/bench/loader.py {_PHOTOS} --workers 1 --batch-size 8 --burst 32 --samples 64 --rounds 2"],
    "recalls": ["scripts/bench/recall_speed.py --sizes 100x500 --rounds 1"],
    "photos": ["scripts/bench/photos.py --shared {data} --steps 1 --batch 4 --limit 8 --recipes clips"],
    "bridge": [
        f"scripts/bench/bridge_mfu.py {_TINY_LLM} --encoder timm:test_vit@random --length 512 --batch 2 "
        "--vocabulary 1000 --matrix 256 --steps 6 --rounds 1",
        f"scripts/bench/packed_step.py {_TINY_LLM} --encoder timm:test_vit@random --length 512 --images 1 --batch 2 "
        "--samples 4 --attention sdpa varlen --vocabulary 1000 --matrix 256 --rounds 2 --precision bf16",
        f"{_LLM} {_TINY_LLM}",
        "scripts/bench/bridge_step.py --shared {data} --llm {work}/llm --rounds 1 --samples 12 --micro-batch 2 "
        "--steps 4 --vocabulary 2000 --packed-length 512",
    ],
    "tests": [f"-m pytest -q {_PLUGINS} -n 0 tests/test_clips_losses.py -k naive"],
    "open_clip": [
        f"scripts/bench/step_vs_open_clip.py {_TINY} --image-size 32 --recipes clip --text-attention all --rounds 2 "
        f"{_CAPTIONS}",
    ],
    "profile": [f"scripts/bench/profile_step.py {_TINY} --recipes clip --top 5"],
    "equal": [f"scripts/bench/device_equal.py {_TINY} --recipes clip --strategies ddp fsdp zero2"],
    "step_l14": [f"{_TINY_STEP} --compile"],
    "step_b16": [_TINY_STEP],
    "step_s16": [f"{_TINY_STEP} --checkpointing"],
    "loss": ["scripts/bench/loss_memory.py --samples 1 --widths 64 --global-batches 256 --local-batch 64 --rounds 2"],
    "answers": [
        f"{_LLM} {_TINY_LLM}",
        "scripts/bench/answers.py --shared {data} --llm {work}/llm --images 2 --questions 3 --tower 2 64 32 --rounds 1",
    ],
}
"""The same parts, a few seconds each on a CPU."""
