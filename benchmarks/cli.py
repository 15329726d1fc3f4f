"""The ``clips-bench`` command."""

from __future__ import annotations

import sys

from clips.commandline.commands import Command, dispatch

COMMANDS = {
    "run": Command(
        help="evaluate one model on a list of benchmarks",
        target="benchmarks.tasks.run_benchmarks:run_benchmarks",
        examples=(
            "clips-bench run --model_name clip --encoder runs/clip --output results \\",
            "    --benchmarks '[{name: coco, task: retrieval, data: dataset_coco.json}]'",
            "clips-bench run --model_name mine --llava runs/llava --output results \\",
            "    --benchmarks '[{name: pope, data: mllm}]'",
        ),
    ),
    "run encoder": Command(
        help="evaluate one encoder directory, during its training or after",
        target="benchmarks.tasks.run_benchmarks:run_encoder",
        positional=("model",),
        examples=(
            "clips-bench run encoder runs/clip --benchmarks '[{name: coco, task: retrieval, data: dataset_coco.json}]'",
            "clips-bench run encoder runs/clip --benchmarks '[{name: imagenet, task: classification, data: wds}]'",
        ),
    ),
    "run llava": Command(
        help="evaluate one LLaVA directory",
        target="benchmarks.tasks.run_benchmarks:run_llava",
        positional=("model",),
        examples=(
            "clips-bench run llava runs/llava --benchmarks '[{name: pope, data: mllm}, {name: gqa, data: mllm}]'",
            "clips-bench run llava llava-hf/llava-1.5-7b-hf --benchmarks '[{name: pope, data: mllm, limit: 100}]'",
        ),
    ),
    "list": Command(
        help="list the built-in benchmarks and their settings",
        target="benchmarks.tasks.listing:run_list",
        positional=("benchmark",),
        examples=("clips-bench list", "clips-bench list pope"),
    ),
    "download": Command(
        help="download the data of MLLM benchmarks from the Hub, for offline use",
        target="benchmarks.tasks.mllm.download:run_download",
        positional=("tasks",),
        examples=(
            "clips-bench download pope,gqa --output mllm",
            "clips-bench download pope --output mllm --update true",
        ),
    ),
    "score": Command(
        help="score precomputed answers, without a model",
        target="benchmarks.tasks.mllm.score_answers:run_score",
        examples=(
            "clips-bench score --task pope --answers answers.jsonl --data mllm --output results --model_name mine",
            "clips-bench score --results results --task pope --data mllm --output rescored",
        ),
    ),
    "study run": Command(
        help="run the pending steps of a study, then write its report and print the answer",
        target="benchmarks.analysis.study_with_report:run_study_with_report",
        positional=("study",),
        examples=(
            "clips-bench study run study.yaml --jobs 2",
            "clips-bench study run study.yaml --profile slurm",
        ),
    ),
    "study plan": Command(
        help="list the steps of a study and those that would run",
        target="benchmarks.study.commands:plan_study",
        positional=("study",),
        examples=("clips-bench study plan study.yaml", "clips-bench study plan study.yaml --include '[clips]'"),
    ),
    "study status": Command(
        is_interactive=True,
        help="print the progress of a study; --follow updates it",
        target="benchmarks.study.commands:study_status",
        positional=("study",),
        examples=("clips-bench study status study.yaml", "clips-bench study status study.yaml --follow"),
    ),
    "study power": Command(
        help="print the seeds that a study needs to detect a difference",
        target="benchmarks.analysis.power_command:print_power",
        positional=("study",),
        examples=(
            "clips-bench study power runs/pilot --difference 1",
            "clips-bench study power runs/pilot --difference 0.5 --num_tests 3",
        ),
    ),
    "study rerun": Command(
        help="run selected steps of a study again, and their dependents",
        target="benchmarks.analysis.study_with_report:rerun_study_with_report",
        positional=("study",),
        examples=(
            "clips-bench study rerun study.yaml --steps 'evaluate-*'",
            "clips-bench study rerun study.yaml --include '[clips]'",
        ),
    ),
    "study accept": Command(
        help="mark outputs of a study as current, despite a change",
        target="benchmarks.study.accept:accept_outputs",
        positional=("study",),
        rest="steps",
        examples=(
            "clips-bench study accept study.yaml encoder-clip-s0",
            "clips-bench study accept study.yaml 'evaluate-*'",
        ),
    ),
    "report": Command(
        help="write a page and tables from a study, results, or tables of items",
        target="benchmarks.report.report_command:run_report",
        rest="inputs",
        examples=(
            "clips-bench report results --baseline clip",
            "clips-bench report items.parquet published.csv results --formats latex,csv",
        ),
    ),
    "import": Command(
        help="write lmms-eval's results, or tables of items, as a directory of results",
        target="benchmarks.exchange.import_command:run_import",
        rest="files",
        examples=(
            "clips-bench import logs/model/results.json --output results",
            "clips-bench import items.csv published.csv --output results",
        ),
    ),
    "provenance": Command(
        help="trace a result back to its model and data, and check that they are unchanged",
        target="benchmarks.analysis.provenance:run_provenance",
        positional=("result",),
        examples=("clips-bench provenance results/clip --benchmark coco", "clips-bench provenance runs/mine-llava"),
    ),
    "compare": Command(
        help="compare two results, models or studies: their numbers and what else differs",
        target="benchmarks.analysis.compare_command:compare",
        positional=("first", "second"),
        examples=(
            "clips-bench compare results/clip results/clips",
            "clips-bench compare old.csv new.csv --output difference.md",
        ),
    ),
    "verify": Command(
        help="validate the harness against reference results",
        target="benchmarks.analysis.verify:run_verify",
        examples=("clips-bench verify", "clips-bench verify --results results --reference_model ViT-B-32"),
    ),
}


def main() -> int:
    """Run the command that the command line names and return its exit status."""
    return dispatch("clips-bench", "Evaluate encoders and LLaVAs, and compare them in one report.", COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
