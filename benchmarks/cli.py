"""The ``clips-bench`` command."""

from __future__ import annotations

import sys

from clips.commandline.commands import Command, dispatch

COMMANDS = {
    "run": Command(
        help="evaluate one model on a list of benchmarks", target="benchmarks.tasks.run_benchmarks:run_benchmarks"
    ),
    "run encoder": Command(
        help="evaluate one encoder directory, during its training or after",
        target="benchmarks.tasks.run_single:run_encoder",
        positional=("model",),
    ),
    "run llava": Command(
        help="evaluate one LLaVA directory", target="benchmarks.tasks.run_single:run_llava", positional=("model",)
    ),
    "similarity-map": Command(
        help="write an image–phrase similarity map",
        target="benchmarks.tasks.encoders.similarity_map_command:run_similarity_map",
        positional=("encoder",),
    ),
    "list": Command(help="the benchmarks that are known by name", target="benchmarks.tasks.list_command:run_list"),
    "prepare": Command(
        help="write local data in the layout that lmms-eval's tasks read",
        target="benchmarks.tasks.prepare_data:run_prepare",
        positional=("dataset",),
    ),
    "download": Command(
        help="download the data of MLLM benchmarks from the Hub, for offline use",
        target="benchmarks.tasks.mllm.download:run_download",
        positional=("tasks",),
    ),
    "score": Command(
        help="score precomputed answers, without a model",
        target="benchmarks.tasks.mllm.score_answers:run_score",
    ),
    "study run": Command(
        help="run what is missing of a study, then report it",
        target="benchmarks.analysis.study_with_report:run_study_with_report",
        positional=("study",),
    ),
    "study plan": Command(
        help="the steps of a study and which of them would run",
        target="benchmarks.study.study_commands:plan_study",
        positional=("study",),
    ),
    "study status": Command(
        help="how far a study is; --follow redraws it while it runs",
        target="benchmarks.study.study_commands:study_status",
        positional=("study",),
    ),
    "study rerun": Command(
        help="make chosen steps of a study again, and what depends on them",
        target="benchmarks.analysis.study_with_report:rerun_study_with_report",
        positional=("study",),
    ),
    "study accept": Command(
        help="take a study's outputs as they are, although something has changed",
        target="benchmarks.study.rerun_clean:accept_outputs",
        positional=("study",),
        rest="steps",
    ),
    "study clean": Command(
        help="remove a study's trash and what no step of it makes",
        target="benchmarks.study.rerun_clean:run_clean",
        positional=("study",),
    ),
    "report": Command(
        help="one page and tables from a study or a directory of results",
        target="benchmarks.report.report_command:run_report",
        positional=("directory",),
    ),
    "card": Command(
        help="write what was measured into a model's card",
        target="benchmarks.publishing.model_card:run_card",
        positional=("directory",),
    ),
    "publish": Command(
        help="push an encoder, a LLaVA or results to the Hugging Face hub",
        target="benchmarks.publishing.publish:run_publish",
        positional=("directory",),
    ),
    "diff": Command(
        help="in words, what differs between two results",
        target="benchmarks.analysis.diff_command:run_diff",
        positional=("first", "second"),
    ),
    "provenance": Command(
        help="from a number back to the data: what it rests on, and whether that is still so",
        target="benchmarks.analysis.provenance:run_provenance",
        positional=("result",),
    ),
    "compare": Command(
        help="compare two models or studies, with intervals and tests",
        target="benchmarks.analysis.compare_command:compare",
        positional=("first", "second"),
    ),
    "verify": Command(
        help="validate the harness against reference results", target="benchmarks.analysis.verify:run_verify"
    ),
    "contamination": Command(
        help="find images of a benchmark in the training data",
        target="benchmarks.analysis.contamination:run_contamination",
    ),
    "schema": Command(
        help="JSON Schemas of all configs, for editors that complete YAML",
        target="benchmarks.study.schema_command:write_schemas",
    ),
}


def main() -> int:
    """Run the command that the command line names and return its exit status."""
    return dispatch("clips-bench", "Evaluate encoders and LLaVAs, and compare them in one report.", COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
