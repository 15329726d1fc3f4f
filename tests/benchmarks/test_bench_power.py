"""`clips-bench study power`: the variance components of a difference, and what they recommend."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from report_material import items_table, put_result
from report_study import record_study
from scipy import stats
from script_modules import load_script

from benchmarks.cli import main
from benchmarks.report import notes
from benchmarks.report.notes import column_components
from benchmarks.report.report import build_report
from benchmarks.results.noise import Scores, TrainingNoise, difference_estimate, training_noise
from benchmarks.results.power import Components, variance_components
from benchmarks.results.statistics import image_scores

STUDY = """
name: small
baseline: failed
seeds: [0, 1, 2]
encoders: {failed: {}, clip: {}, clips: {}, weak: {}}
benchmarks: {retrieval: {data: d}}
"""
SHARES = {"clip": (0.2, 0.25, 0.3), "clips": (0.5, 0.56, 0.6)}


@pytest.fixture(scope="module")
def models() -> tuple[Scores, Scores]:
    """Two models of four seeds: each answers 60 % of the images right in all seeds, and 10 % by chance."""
    generator = np.random.default_rng(3)
    found = []
    for shift in (0.0, 0.08):
        lasting = generator.random(500) < 0.6
        seeds = [
            np.where(
                generator.random(500) < 0.1, generator.random(500) < 0.5 + shift + generator.normal() / 10, lasting
            )
            for _ in range(4)
        ]
        tables = [{"x": seed.astype(float)} for seed in seeds]
        found.append(image_scores("mean", tables, ("x",), np.arange(500), trained=True))
    return found[0], found[1]


def test_the_components_add_up_to_the_standard_error_of_the_report(models):
    noise = training_noise(models)
    parts = variance_components([models], noise)
    report = difference_estimate(*models, noise)
    assert parts.interaction > 0 < parts.images
    assert parts.images + (parts.interaction + parts.training) / 4 == pytest.approx(report.standard_error**2)
    assert parts.min_detectable(4) == pytest.approx(report.min_detectable, rel=0.02)  # without its skewness
    assert (parts.num_images, parts.num_seeds, parts.num_trained, parts.degrees) == (500, 4, 2, 6)


def test_what_is_recommended_suffices_and_one_less_does_not(models):
    parts = variance_components([models], training_noise(models))
    for difference in (0.09, 0.095, 0.1, 0.105, 0.11):
        seeds = parts.seeds_for(difference)
        assert 2 < seeds < 1000
        assert parts.min_detectable(seeds) <= difference < parts.min_detectable(seeds - 1)
    assert parts.seeds_for(0.1, num_tests=4) > parts.seeds_for(0.1)
    assert parts.seeds_for(0.0001) is None


def test_images_alone_give_students_t_and_training_alone_needs_seeds():
    counts = {"num_images": 400, "num_seeds": 3, "image_degrees": 399}
    parts = Components(images=0.0004, interaction=0.0, training=math.nan, num_trained=0, degrees=0, **counts)
    reach = stats.t.ppf(0.975, 399) + stats.t.ppf(0.8, 399)
    assert parts.min_detectable(2) == parts.min_detectable(9) == pytest.approx(reach * 0.02, rel=1e-3)
    trained = Components(images=0.0, interaction=0.0, training=0.0004, num_trained=2, degrees=4, **counts)
    reach = stats.t.ppf(0.975, 8) + stats.t.ppf(0.8, 8)
    assert trained.min_detectable(5) == pytest.approx(reach * 0.02 / math.sqrt(5), rel=5e-3)
    assert trained.min_detectable(math.inf) == 0.0
    low, high = trained.bounds()
    assert low.training == pytest.approx(4 * 0.0004 / stats.chi2.ppf(0.9, 4))
    assert high.training == pytest.approx(4 * 0.0004 / stats.chi2.ppf(0.1, 4))
    assert low.seeds_for(0.02) < trained.seeds_for(0.02) < high.seeds_for(0.02)


def test_a_pretrained_model_has_no_noise_of_training(models):
    first, second = models
    once = Scores(
        values=second.values[:1], influence=second.influence[:1], enters=second.enters, items=second.items, largest=1.0
    )
    noise = training_noise(models)
    one = variance_components([(first, once)], noise)
    assert one.training == pytest.approx(4 * noise.of(first) - first.interaction)
    assert one.num_trained == 1
    assert math.isnan(variance_components([(once, once)], TrainingNoise()).training)


@pytest.mark.slow
def test_the_recommended_number_of_seeds_has_the_stated_power():
    simulation = load_script("check_statistics.py")
    world = simulation.World(images=300, models=3, seeds=3, training=1.0)
    generator = np.random.default_rng(4)
    pilots = [simulation.pilot(world, generator) for _ in range(40)]
    seeds = round(float(np.median([parts.seeds_for(0.09) for parts in pilots])))
    planned = simulation.World(images=300, models=3, seeds=seeds, training=1.0)
    assert 0.68 <= simulation.power_of_study(planned, 0.09, 120, generator) <= 0.92


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study's output: two encoders of three seeds. The baseline, which is the first row, and another have none."""
    output = tmp_path_factory.mktemp("power") / "out"
    record_study(STUDY, output)
    for encoder, shares in SHARES.items():
        put_encoder(output, encoder, shares)
    return output


def put_encoder(output: Path, encoder: str, shares: tuple[float, ...]) -> None:
    """Write its results on 100 images."""
    for seed, share in enumerate(shares):
        items = items_table(0.0, benchmark="retrieval", count=200, seed=seed)
        order = np.random.default_rng(seed).permutation(200)
        items["hit"] = items["score"] = [float(order[number] < round(200 * share)) for number in range(200)]
        digest = f"{encoder} {seed}"
        put_result(output / "results", f"{encoder}-s{seed}", "retrieval", items, primary=("t2i_r1",), digest=digest)


def power_cells(study: Path, monkeypatch, capsys, *words: str) -> dict[str, str]:
    """Column → cell of the printed table of one metric."""
    monkeypatch.setattr(sys, "argv", ["clips-bench", "study", "power", str(study), "--difference", "5", *words])
    assert main() == 0
    header, _, line = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    )
    return dict(zip(header, line, strict=True))


def test_the_command_prints_the_components(study, monkeypatch, capsys):
    cells = power_cells(study, monkeypatch, capsys)
    names = ["metric", "images", "SD", "from images", "from image × seed", "from training", "seeds for 5"]
    assert list(cells) == names
    shares = [int(cells[name].split()[0]) for name in names[3:6]]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert int(cells["images"]) == 100
    needed, low, high = map(int, re.findall(r"\d+", cells["seeds for 5"]))
    assert low <= needed <= high
    over_seeds = 100 * math.sqrt(sum(np.var(shares, ddof=1) for shares in SHARES.values()))
    assert over_seeds < float(cells["SD"]) < 1.5 * over_seeds
    corrected = power_cells(study, monkeypatch, capsys, "--num_tests", "9")
    assert needed < int(corrected["seeds for 5"].split()[0])
    put_encoder(study, "weak", (0.01, 0.01, 0.02))  # near an end of the scale
    assert power_cells(study, monkeypatch, capsys) == cells


def test_one_seed_states_no_ratios_and_no_number_of_seeds(tmp_path, monkeypatch, capsys):
    for encoder in ("clip", "clips"):
        put_encoder(tmp_path, encoder, (0.4 + 0.1 * len(encoder) / 5,))
    cells = power_cells(tmp_path / "results", monkeypatch, capsys)
    assert [*cells.values()][3:] == ["—"] * 4
    assert float(cells["SD"]) > 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_report_says_what_another_seed_adds(study, monkeypatch, share):
    """Without a variance over images no number of seeds is the last: a reduction by 100 % was printed."""
    (column, parts), *_ = column_components(build_report(study).table).items()
    parts = dataclasses.replace(parts, images=share * parts.training)
    monkeypatch.setattr(notes, "column_components", lambda table: {table.columns[0]: parts})
    (note,) = [note for note in build_report(study).texts if note.startswith("Another seed or stop?")]
    assert parts.num_seeds == 3
    found = [100 * (1 - parts.min_detectable(seeds) / parts.min_detectable(3)) for seeds in (4, math.inf)]
    assert 5 < found[0] < found[1] <= 100
    limit = f" (any number of seeds by {found[1]:.0f} %)" if share else ""
    assert note.endswith(f" difference by {found[0]:.0f} %{limit} on {column.title}.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--difference", "0"], "difference: expected a finite number above 0, got 0"),
        (["--num_tests", "0"], "num_tests: expected an integer of at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_one_line(study, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["clips-bench", "study", "power", str(study), *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
