"""Published rows: read as printed, shown apart, never ranked, and their arithmetic holds."""

from __future__ import annotations

import csv
import io
import re
from statistics import fmean

import pytest
from report_material import items_table, put_result, put_results, rendered
from rich.console import Console

from benchmarks.report.published import REFERENCE_NOTE, is_reference_row, published_comparison
from benchmarks.report.report import Report, build_report
from benchmarks.report.report_command import ReportConfig
from benchmarks.report.text_table import print_report
from benchmarks.results.reference_results import load_reference_results, select_reference_results
from benchmarks.study.schema import Study
from benchmarks.study.study_record import Display
from clips.errors import UserError

PAIR = ("clips:*+ Llama-3",)
BASE = "OpenAI CLIP ViT-L/14 + Llama-3"


@pytest.fixture
def results(tmp_path):
    return put_results(tmp_path / "results")


def shown(built: Report) -> dict[str, list[str]]:
    frame = built.reference_results.text()
    return {row.name: texts for row, texts in zip(built.reference_results.rows, frame.to_numpy().tolist(), strict=True)}


def test_every_row_has_a_source_and_a_unique_name():
    rows = load_reference_results()
    assert len({(row.set, row.name) for row in rows}) == len(rows)
    sets = {"clips", "openvision", "openvision2", "siglip2", "pe", "llava", "llava_more", "openclip"}
    sets |= {"mlcd", "rice", "onevision_1.5", "onevision_2_reruns", "onevision_encoder", "pe_lang", "genlip"}
    assert {row.set for row in rows} == sets
    assert {*re.findall(r"[\w.]+", (ReportConfig.__doc__ or "").partition("(sets: ")[2].partition(")")[0])} == sets
    assert all(row.source and row.values for row in rows)
    assert sum(row.set == "openclip" for row in rows) == 121


def test_values_are_those_of_the_sources(shared):
    """Read once more from where they were copied."""
    with (shared / "reference/mllm.csv").open() as stream:
        printed = [line for line in csv.DictReader(stream) if line["source"].startswith("CLIPS") and line["gqa"]]
    found = {row.name: row.values for row in select_reference_results(PAIR)}
    assert [float(line["gqa"]) for line in printed] == [values["gqa/exact_match"] for values in found.values()]
    assert [float(line["mme_perception"]) for line in printed] == [
        values["mme/mme_perception_score"] for values in found.values()
    ]
    with (shared / "reference/openclip_retrieval_results.csv").open() as stream:
        for line in csv.DictReader(stream):
            (row,) = select_reference_results([f"openclip:{line['name']}/{line['pretrained']}"])
            assert row.values["coco/t2i_r1"] == pytest.approx(100 * float(line["MSCOCO image retr. R@1"]))
            assert row.values["flickr30k/i2t_r10"] == pytest.approx(100 * float(line["Flickr text retr. R@10"]))


def test_published_recalls_fit_their_definition():
    """open_clip's average is the mean of its columns; a recall grows with K, and counts COCO's 5,000 images."""
    for row in load_reference_results():
        for name in ("coco/i2t", "coco/t2i", "flickr30k/i2t", "flickr30k/t2i"):
            recalls = [row.values[f"{name}_r{k}"] for k in (1, 5, 10) if f"{name}_r{k}" in row.values]
            assert recalls == sorted(recalls), row.name
        if row.set == "openclip":
            columns = [value for name, value in row.values.items() if name != "average"]
            assert fmean(columns) == pytest.approx(row.values["average"], abs=0.011), row.name
            num_correct = row.values["coco/i2t_r1"] / 100 * 5000
            assert num_correct == pytest.approx(round(num_correct), abs=1e-3), row.name


def test_published_rows_are_separate_in_every_format(results):
    plain, built = build_report(results), build_report(results, reference_results=PAIR)
    assert rendered(built, "csv") == rendered(plain, "csv")  # no mark, test or cell depends on them
    assert plain.reference_results is None
    assert built.reference_results.columns == ("gqa/exact_match", "pope/pope_f1_score")  # of the report's benchmarks
    assert shown(built) == {BASE: ["57.5", "83.8"], "CLIPS ViT-L/14 + Llama-3": ["60.3", "86.7"]}
    for name in ("html", "markdown", "latex"):
        text = rendered(built, name)
        assert "CLIPS ViT-L/14 + Llama-3 (published, clips)" in text
        assert REFERENCE_NOTE in text
        assert "arXiv 2411.16828" in text
        assert "published" not in rendered(plain, name)


def test_differences_are_those_of_the_paper(results):
    built = build_report(results, reference_results=[*PAIR, "llava"], baseline=BASE)
    assert shown(built)["CLIPS ViT-L/14 + Llama-3"] == ["60.3 (+2.8)", "86.7 (+2.9)"]
    assert shown(built)[BASE] == ["57.5", "83.8"]
    assert shown(built)["OpenAI CLIP ViT-L/14 336 + Vicuna-1.5-7B"] == ["62.0", "85.9"]  # of another source
    assert not any(cell.delta for cell in built.table.scores)


def test_a_measured_baseline_comes_before_a_published_one_of_its_name(tmp_path):
    """A model that was evaluated under its published name could be no baseline."""
    name = "LLaVA-OneVision-1.5-8B"
    assert is_reference_row(name)
    put_results(tmp_path, {name: 0.3, "mine": 0.7})
    built = build_report(tmp_path, reference_results=["onevision_1.5"], baseline=name)
    assert {cell.delta.baseline for cell in built.table.scores if cell.delta} == {name}
    assert built.reference_results.baseline is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["clip"], "unknown set of published rows 'clip'; did you mean 'clips'"),
        (["openclip:ViT-B-32/opena"], "unknown published row of openclip 'ViT-B-32/opena'; did you mean"),
    ],
)
def test_unknown_rows_are_rejected(results, wanted, message):
    with pytest.raises(UserError, match=message):
        build_report(results, reference_results=wanted)
    with pytest.raises(UserError, match=message):
        Study(name="x", encoders={"a": "b"}, reference_results=tuple(wanted))


def test_a_baseline_that_is_not_shown_is_rejected(results):
    with pytest.raises(UserError, match="unknown baseline among the published models"):
        build_report(results, reference_results=["llava"], baseline=BASE)
    with pytest.raises(UserError, match=r"reference_results: expected the set of 'OpenAI CLIP .*' as well"):
        build_report(results, baseline=BASE)


def test_a_measured_model_of_a_published_name_is_inside_or_outside_its_interval(tmp_path):
    """0.30 of 120 items has an interval of about 16 points; openclip prints 30.4 for ViT-B-32/openai on COCO."""
    (published,) = select_reference_results(["openclip:ViT-B-32/openai"])
    printed = published.values["coco/t2i_r1"]
    protocols: dict[str, dict[str, str | int]] = {"near": {}, "far": {}, "part": {"images": 30, "full_size": 5000}}
    for case, protocol in protocols.items():
        for row, skill in (("vit", 0.8 if case == "far" else printed / 100), ("other", 0.5)):
            items = items_table(skill, benchmark="retrieval")
            path = put_result(tmp_path / case, row, "retrieval", items, protocol=protocol)
            path.write_text(path.read_text().replace('"benchmark": "retrieval"', '"benchmark": "coco_karpathy"', 1))
            path.rename(path.with_name("coco_karpathy.json"))
    verdicts = {}
    for case in protocols:
        display = Display(models={"vit": "ViT-B-32/openai"})
        comparison = published_comparison(build_report(tmp_path / case, display=display).table)
        assert comparison is not None
        (line,) = [row for row in comparison.rows if "R@1" in row[1]]
        assert (line[0], line[3], line[-1]) == ("ViT-B-32/openai", f"{printed:.1f}", published.source)
        verdicts[case] = line[4:6]
    assert verdicts == {
        "near": ("inside", ""),
        "far": ("outside", ""),
        "part": ("other protocol", "30 of 5,000 images"),
    }
    assert published_comparison(build_report(tmp_path / "near").table) is None


def test_another_split_of_a_task_is_not_compared_with_what_was_printed(tmp_path):
    """ScienceQA's printed number is of all questions, not of those with an image."""
    published = next(row for row in load_reference_results() if "gqa/exact_match" in row.values)
    for benchmark in ("gqa", "gqa_img", "gqa-lite"):
        put_result(tmp_path, "mine", benchmark, items_table(0.6, benchmark="gqa"))
    table = build_report(tmp_path, display=Display(models={"mine": published.name})).table
    comparison = published_comparison(table)
    assert comparison is not None
    assert {row[1] for row in comparison.rows} == {"gqa exact match"}


@pytest.mark.parametrize("chosen", ["clips", "openclip"])
def test_published_models_are_legible_in_a_terminal_of_80_characters(results, chosen):
    written = io.StringIO()
    report = build_report(results, reference_results=[chosen])
    print_report(report, Console(file=written, width=80, highlight=False))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    columns = zip(
        *(line.split("│") for line in text.partition("Published.")[2].splitlines() if "│" in line), strict=True
    )
    names = "".join(re.sub(r"\s", "", part) for part in [*columns][1])
    assert all(re.sub(r"\s", "", row.name) in names for row in report.reference_results.rows)  # they wrap, none is cut
    assert "60.3" in text if chosen == "clips" else "No room for " in text
