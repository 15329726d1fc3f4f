"""How a command of the documentation is run in miniature, or why it is not run.

A command without a rule is run as it stands. The first rule that fits is taken; one that fits no command is an error.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from docs_blocks import Shell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What becomes of the commands that contain ``has``.

    Args:
        has: a part of the command.
        swap: parts of the command that are replaced, each with what it is replaced by.
        add: what is appended.
        typed: what is typed while it runs.
        shared: whether it needs the real data next to the checkout, as ``--paths.shared``; not run without them.
        skip: why it is not run.
    """

    has: str
    swap: tuple[tuple[str, str], ...] = ()
    add: str = ""
    typed: str = ""
    shared: bool = False
    skip: str = ""

    def fits(self, command: Shell) -> bool:
        return self.has in command.text


_LMMS_EVAL = Path(__file__).parent / "benchmarks/peer_files/lmms_eval/20261123_225014_results.json"
_ONE_STEP = "--align.max_steps 1 --align.global_batch_size 4 --instruct.max_steps 1 --instruct.global_batch_size 4"
_FEW = f"{_ONE_STEP} --precision fp32"
_MEASURES = "measures for minutes; in miniature in tests/scripts/test_scripts.py"

RULES = (
    # ------------------------------------------------------------ what is no command of the suite's
    Rule(has="make demo", skip="a quarter of an hour; in miniature in tests/test_packaging.py"),
    Rule(has="study run scripts/demo/mini.yaml", skip="tests/test_packaging.py runs it"),
    Rule(has="make ", skip="these tests are part of it, or beside it in .ci/run"),
    Rule(has="source .venv/", skip="the tests run in the environment already"),
    Rule(has="pip install", skip="needs a network"),
    Rule(has="python scripts/fuzz.py", skip="an hour; a little of it in tests/test_fuzz.py"),
    Rule(has="clips-bench report openvision", skip="the results of an encoder on the Hub"),
    Rule(has="podman ", skip="needs a container engine"),
    Rule(has="python scripts/bench/", skip=_MEASURES),
    Rule(has="bash scripts/gpu/", skip="packs wheels, or takes minutes; parts of it in tests/scripts/test_scripts.py"),
    Rule(has="--endpoint '[http://a:8000", skip="servers: tests/clips/test_clips_recaption_endpoint.py starts one"),
    # ------------------------------------------------------------ what needs more than this machine
    Rule(has="vllm serve", skip="needs vLLM; with it tests/llava_bridge/test_bridge_vllm.py generates"),
    Rule(has="srun ", skip="needs SLURM; tests/scripts/test_slurm.py plays it"),
    Rule(has="export MASTER_ADDR", skip="needs SLURM"),
    Rule(has="--profile ", skip="needs SLURM; tests/benchmarks/test_study_slurm.py plays it"),
    Rule(has="sbatch ", skip="needs SLURM; tests/scripts/test_slurm.py plays it"),
    Rule(has="deepspeed --num_gpus 8", skip="tests/clips/test_clips_distributed.py starts two processes by it"),
    Rule(has="--hostfile", skip="needs several machines"),
    Rule(has="--nnodes", skip="needs several machines"),
    Rule(has="hf upload", skip="needs the hub; tests/test_hub_upload.py plays it"),
    Rule(has="logs/model/", swap=(("logs/model/20260101_120000_results.json", str(_LMMS_EVAL)),)),
    Rule(has="clip_benchmark eval", skip="tests/benchmarks/test_bench_peers.py runs it where it is installed"),
    Rule(has="clips-bench download", skip="needs the hub; tests/benchmarks/test_bench_fetch.py plays it"),
    Rule(has="llava-hf/", skip="needs the hub; tests/llava_bridge/test_bridge_hub.py plays it"),
    Rule(has="transformers:openai/", skip="needs the hub"),
    Rule(has="hf-hub:", skip="needs the hub"),
    # ------------------------------------------------------------ what would take long
    Rule(has="scripts/studies/lengths.yaml", swap=(("study run", "study plan"),), shared=True),
    Rule(has="python scripts/judge_claims.py", skip="tests/scripts/test_judge_claims.py runs it on these scores"),
    Rule(has="python scripts/insert_tables.py docs/scores/README.md", skip="changes the page"),
    Rule(has="clips import epoch_1.pt --architecture ViT-B-32", swap=(("ViT-B-32", "clips-tiny"),)),
    Rule(has="torchrun --nproc-per-node 8", swap=(("--nproc-per-node 8", "--nproc-per-node 2"),)),
    Rule(has="--distributed.num_processes 8", swap=(("processes 8", "processes 2"),)),
    Rule(has="llava-bridge train --llava llava-1.5-7b", add=_FEW),
    Rule(has="llava-bridge train", add=_FEW),
    Rule(has="llava-bridge chat runs/mine-llava", typed="What is it?\n\n"),
    Rule(
        has="--model models/captioner",
        swap=(("models/captioner", "runs/mine-llava"),),
        add="--import_modules '[llava_bridge]' --batch_size 4",
    ),
    Rule(has="clips recaption shards", add="--batch_size 4 --caption_column new_caption"),  # they have re_caption
    # ------------------------------------------------------------ what the world has otherwise
    Rule(
        has="clips-bench report runs/results --reference_results 'clips:*Llama-3'",
        swap=(("runs/results", "results/mine"),),
    ),
    Rule(has="languages: [ar, bn, de, en]", swap=(("[ar, bn, de, en]", "[de, en]"),)),
    Rule(has="pope:precision", swap=(("pope:precision", "pope:yes"),)),
    Rule(has="runs/rescored", skip="drawn scores; tests/benchmarks/test_bench_scorer_code.py scores again"),
    Rule(has="clips-bench score", skip="LLaVA's own files; tests/benchmarks/test_bench_score.py has them"),
)
NOT_RUN = {"pretrained=True": "needs the hub", "import mteb": "needs mteb and the hub"}
"""Text in a block of Python → why it is compiled only."""
if importlib.util.find_spec("inspect_ai") is None:
    NOT_RUN["inspect_ai"] = "needs inspect-ai"
SWAPS = {
    ("README.md", "mine.yaml"): (
        ("clips-b-16", "clips-tiny"),
        ("10000000", "8"),
        ("global_batch_size: 1024", "global_batch_size: 8"),
    ),
    ("docs/training.md", "own.yaml"): (("clips-b-16", "clips-tiny"), ("10000000", "8"), ("1024", "8")),
    ("docs/tutorial.md", "study.yaml"): (
        ("  untrained: {model: {pretrained_trunk: null}, recipe: {name: clip}, max_steps: 0}   # random weights\n", ""),
        ("max_steps: 170", "max_steps: 1"),
        ("global_batch_size: 64", "global_batch_size: 4"),
        ("steps: 60", "steps: 1"),
        ("steps: 120", "steps: 1"),
    ),
}
"""Page and title of a YAML block → what is replaced in it before it is written."""


def rule_for(command: Shell) -> Rule:
    return next((rule for rule in RULES if rule.fits(command)), Rule(has=""))
