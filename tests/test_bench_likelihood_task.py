"""One of lmms-eval's own tasks of multiple choice by likelihood, through ``clips-bench run``."""

from __future__ import annotations

from pathlib import Path

import bench_world as world
import pytest

from benchmarks.results.results import read_items, read_result, result_path
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig
from clips.errors import UserError
from llava_bridge import load_llava, loglikelihoods

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::SyntaxWarning"
)  # lmms-eval and pycocoevalcap warn when imported
PICTURES = 4
CHOICES = ("red", "a green square number 1.", "blue on grey", "yes")


def _write_seed(root: Path) -> Path:
    import datasets

    rows = range(PICTURES)
    columns = {
        "image": [[{"bytes": world.png(world.picture(number)), "path": None}] for number in rows],
        "question": ["What is it?"] * PICTURES,
        **{f"choice_{letter}": [text] * PICTURES for letter, text in zip("abcd", CHOICES, strict=True)},
        "answer": ["A", "B", "C", "D"],
        "data_type": ["image"] * PICTURES,
        "question_id": [str(number) for number in rows],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.List(datasets.Image()))
    folder = root / world.HUB / "SEED-Bench/data"
    folder.mkdir(parents=True)
    table.to_parquet(folder / "test-00000-of-00001.parquet")
    return root


def test_the_likeliest_choice_is_the_answer(places, tmp_path):
    llava = places / "llava"
    task = BenchmarkConfig(name="seedbench_ppl", data=str(_write_seed(tmp_path / "hub")))
    run_benchmarks(
        RunConfig(model_name="row", output=str(tmp_path / "results"), llava=str(llava), benchmarks=[task], batch_size=3)
    )
    result = read_result(result_path(tmp_path / "results", "row", "seedbench_ppl"))
    model, processor = load_llava(llava, "cpu")
    right = []
    for number in range(PICTURES):
        asked = ["What is it? Answer :"] * len(CHOICES)
        found = loglikelihoods(model, processor, [world.picture(number)] * len(CHOICES), asked, CHOICES)
        means = [each.total / each.tokens for each in found]
        right.append(float(means.index(max(means)) == number))
    assert 0 < sum(right) < PICTURES  # it prefers one and the same, by which the sign would show
    assert read_items(result)["score"].tolist() == right
    assert result.metrics["acc"].value == pytest.approx(sum(right) / PICTURES)


def test_what_is_not_offered(places):
    from benchmarks.tasks.mllm.offline_tasks import go_offline

    go_offline()
    from lmms_eval.api.instance import Instance

    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel

    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    alone = Instance(request_type="loglikelihood", arguments=("", "red"), idx=0, task_name="t", metadata=metadata)
    with pytest.raises(UserError, match=r"^t: asks for likelihoods without a question"):
        LlavaBridgeModel(loaded=load_llava(places / "llava", "cpu")).loglikelihood([alone])
