"""Reads the sentences of reports on random studies back, and compares them with numbers from their items."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from random_study import NOT_RUN, Truth, World, holm
from rich.console import Console

from benchmarks.analysis.compare_command import compare_sources
from benchmarks.report import report as report_module
from benchmarks.report.latex import latex_text, render_latex
from benchmarks.report.load_results import MissingValue
from benchmarks.report.notes import KINDS, MAX_WORDS, brief_notes
from benchmarks.report.report import Pairs, Report, build_report
from benchmarks.report.text_table import print_report, render_markdown
from benchmarks.results import item_scores
from benchmarks.results.results import Result
from clips.errors import UserError


def listed(text: str) -> list[str]:
    """The words of ``a, b and c``."""
    return re.split(r", | and ", text)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("\N{NARROW NO-BREAK SPACE}", ""))


def close(text: str, value: float) -> bool:
    """Whether a printed number is a value rounded as shown."""
    places = len(text.partition(".")[2])
    return abs(number(text) - value) <= 0.5 * 10**-places + 1e-9


_BETWEEN_SENTENCES = r"(?<=\.) (?!Reason: )(?=[A-Z‡†]|[a-z, ]+ (?:has|have|and|was|beats|loses) )"


class Reader:
    """Reads the sentences of a report back and checks each; a sentence that it does not know is an error."""

    def __init__(self, world: World, report: Report) -> None:
        self.world, self.truth, self.report, self.table = world, Truth(world), report, report.table
        self.corrected = {
            (each.cell.column.benchmark, frozenset({each.cell.row, each.other.row})): each.p_adjusted
            for each in report.table.differences
        }
        self.tested = {*self.corrected}
        raw = {(name, pair): self.truth.difference(name, *sorted(pair))[1] for name, pair in self.tested}
        self.p = holm({key: min(1.0, self.truth.factor(*key) * p_value) for key, p_value in raw.items()})
        self.titles = {self.truth.title(name): name for name in world.benchmarks}

    def differs(self, benchmark: str, first: str, second: str) -> bool | None:
        p_value = self.p.get((benchmark, frozenset({first, second})))
        return None if p_value is None else p_value < 0.05

    def check(self, *, formats: bool = True) -> int:
        """Check cells and sentences, and what formats make of them; returns the number of sentences."""
        self._check_numbers()
        self._check_marks()
        self._check_uncertainty()
        sentences = [self.report.answer, *self.report.other_sentences]
        self._check_verdict()
        found = [each for line in sentences for each in re.split(_BETWEEN_SENTENCES, line) if each]
        for sentence in found:
            self.read(sentence)
        for model in self.world.models:  # each model that has a baseline has its sentence
            if model != self.world.baseline and self.world.baseline and self._with_baseline(model):
                assert any(re.match(rf"{model} (beats|loses|and {self.world.baseline}|was not)", each) for each in
                           [self.report.answer, *self.report.sentences])  # fmt: skip
        if formats:
            self._check_formats(sentences)
        return len(found)

    def _check_numbers(self) -> None:
        assert self.truth.needed() <= self.tested
        for benchmark, pair in self.tested:
            assert self.truth.testable(benchmark, *pair)
        assert self.corrected == {key: pytest.approx(p, rel=1e-6, abs=1e-12) for key, p in self.p.items()}
        for cell in self.table.scores:
            model, benchmark = cell.row, cell.column.benchmark
            measured = self.truth.measured.get((model, benchmark))
            assert (cell.value is None) == (measured is None)
            if measured is not None:
                assert (cell.value, cell.group) == (pytest.approx(measured.value), measured.group)
            delta = self.differs(benchmark, model, self.world.baseline or "")
            assert (cell.delta is None) == (delta is None)
            if cell.delta is not None and measured is not None:
                assert cell.delta.value == pytest.approx(
                    measured.value - self._value(benchmark, self.world.baseline), abs=1e-7
                )
                assert cell.delta.significant == delta

    def _value(self, benchmark: str, model: str | None) -> float:
        return self.truth.measured[str(model), benchmark].value

    def _check_marks(self) -> None:
        for benchmark in self.world.benchmarks:
            expected = dict.fromkeys(self.world.models, "")
            for models in self.truth.sets(benchmark) if self.truth.ranked(benchmark) else ():
                flags = [self.differs(benchmark, models[0], other) for other in models[1:]]
                if self.table.cell(models[0], benchmark, "m").above_chance is False:
                    continue
                if all(flags) and flags:
                    expected[models[0]] = "best"
                elif any(flags) and False in flags:
                    tied = [models[0], *(other for other, flag in zip(models[1:], flags, strict=True) if flag is False)]
                    expected |= dict.fromkeys(tied, "tied")
            for model, mark in expected.items():
                cell = next(
                    each for each in self.table.scores if (each.row, each.column.benchmark) == (model, benchmark)
                )
                hidden = (model, benchmark) in self.truth.measured and self.truth.credited(model, benchmark) is False
                assert (cell.mark, cell.withheld) == (("", mark) if hidden else (mark, ""))

    def _check_verdict(self) -> None:
        """The counts are those of the tests, and no other model has a better balance."""
        said = re.fullmatch(
            r"(\w+) against (\w+|the best of the other models): (\d+) won, (\d+) tied, (\d+) lost"
            r"(?:, (\d+) not credited to the images)?\.",
            self.report.verdict,
        )
        with_base = {model: self._kinds(model) for model in self.world.models if self._base(model)}
        kinds = ("better", "equal", "worse", "uncredited")
        if any(each[kind] for each in with_base.values() for kind in kinds):
            assert said is not None
            own = with_base[said[1]]
            assert said[2] == self._base(said[1])
            assert [len(own[kind]) for kind in kinds] == [int(count or 0) for count in said.groups()[2:]]
            if not own["better"]:
                assert not any(each["better"] for each in with_base.values())
        else:
            counts = {model: self._against_the_top(model) for model in self.world.models}
            assert bool(said) == any(map(sum, counts.values()))
            if said:
                assert said[2] == "the best of the other models"
                assert counts[said[1]] == tuple(int(count or 0) for count in said.groups()[2:])
                balance = {model: (each[0] - each[2], each[0]) for model, each in counts.items() if any(each)}
                assert balance[said[1]] == max(balance.values())

    def _against_the_top(self, model: str) -> tuple[int, int, int, int]:
        """Metrics won, tied, lost and not credited."""
        won = tied = lost = uncredited = 0
        for benchmark in self.world.benchmarks:
            if (model, benchmark) not in self.truth.measured or not self.truth.ranked(benchmark):
                continue
            flags = {other: self.differs(benchmark, model, other) for other in self.world.models}
            own, sign = self._value(benchmark, model), self.truth.sign(benchmark)
            better = [
                other
                for other, differs in flags.items()
                if differs and sign * (self._value(benchmark, other) - own) > 0
            ]
            cell = self.table.cell(model, benchmark, "m")
            if any(self.truth.credited(other, benchmark) is not False for other in better):
                lost += 1
            elif better or (cell.rank_mark == "best" and self.truth.credited(model, benchmark) is False):
                uncredited += 1
            elif False in flags.values():
                tied += 1
            elif cell.rank_mark == "best":  # checked above
                won += 1
        return won, tied, lost, uncredited

    def _check_uncertainty(self) -> None:
        """What the notes are made of: why there is no interval or test, noise, chance, missing values."""
        known = self._with_noise()
        for cell in self.table.scores:
            benchmark, measured = cell.column.benchmark, self.truth.measured.get((cell.row, cell.column.benchmark))
            if measured is None:
                assert cell.missing == MissingValue(kind="missing", reason=NOT_RUN)
                continue
            if cell.by_seed and measured.scores is not None:
                unknown = "included" if (cell.row, benchmark) in known else "unknown"
                assert cell.seed_variance == (unknown if measured.scores.trained else "none")
            assert (cell.ci_low is None) == bool(cell.no_interval) != self.truth.has_interval(cell.row, benchmark)
            assert not cell.no_interval or self._reasons(cell.row, benchmark)[cell.no_interval]
            if cell.delta is not None:
                tested = self.truth.difference(benchmark, cell.row, str(self.world.baseline))[0]
                numbers = [cell.delta.ci_low, cell.delta.ci_high, cell.delta.min_detectable]
                ends = (tested.low, tested.high, tested.min_detectable)
                expected = [self.truth.scale(benchmark) * each for each in ends]
                assert numbers == pytest.approx(expected, nan_ok=True)
            if cell.column.chance_levels and not cell.group and cell.ci_low is not None:
                assert cell.above_chance == (cell.ci_low > 50)
        for first, second in self.table.untestable:
            assert not all(self.truth.has_interval(each.row, each.column.benchmark) for each in (first, second))
            assert self.differs(first.column.benchmark, first.row, second.row) is None
        apart = {}
        for benchmark in filter(self.truth.ranked, self.world.benchmarks):
            for group in (0, 1):
                sets = [{*each} for each in self.truth.sets(benchmark)
                        if self.truth.measured[each[0], benchmark].group == group]  # fmt: skip
                apart |= {(benchmark, group): sets} if len(sets) > 1 else {}
        found = {(sets[0][0].column.benchmark, sets[0][0].group): [{cell.row for cell in each} for each in sets]
                 for sets in self.table.other_items}  # fmt: skip
        assert found.keys() == apart.keys()
        assert all(sorted(map(sorted, found[key])) == sorted(map(sorted, apart[key])) for key in apart)
        assert self.table.seeds == (max((each.seeds for each in self.truth.measured.values()), default=1)
                                    if self.world.num_seeds > 1 else 0)  # fmt: skip

    def _reasons(self, model: str, benchmark: str) -> dict[str, bool]:
        """Why a cell may have no interval → whether that is so."""
        scores = self.truth.measured[model, benchmark].scores
        if scores is None:
            return {"the seeds have scores for different items": True}
        constant, num_images = np.ptp(scores.mean_influence[scores.enters]) < 1e-9, scores.enters.sum()
        unknown = self.truth.unknown_noise(benchmark, (model, model))
        return {
            "a single image has no variance": num_images == 1,
            "the score does not vary over the images": constant and num_images > 1,
            "the seeds of every model with several seeds have equal scores: their variance is unknown": unknown,
        }

    def read(self, sentence: str) -> None:
        for pattern, method in READERS:
            if found := re.fullmatch(pattern, sentence):
                try:
                    method(self, **found.groupdict())
                except (AssertionError, KeyError, ValueError) as error:
                    raise AssertionError(f"{sentence} {error!r}") from error
                return
        raise AssertionError(f"unknown sentence: {sentence}")

    def _base(self, model: str) -> str | None:
        """The baseline, or the other one of two models."""
        others = [each for each in self.world.models if each != model]
        return self.world.baseline or (others[0] if len(others) == 1 else None)

    def _kinds(self, model: str) -> dict[str, set[str]]:
        """What the tests say of a model and its baseline: kind → benchmarks."""
        found: dict[str, set[str]] = {kind: set() for kind in ("better", "worse", "equal", "uncredited", "untested")}
        base = str(self._base(model))
        for benchmark in self._with_baseline(model):
            differs = self.differs(benchmark, model, base)
            gain = self.truth.sign(benchmark) * (self._value(benchmark, model) - self._value(benchmark, base))
            winner = model if gain > 0 else base
            kind = "untested" if differs is None else "equal" if not differs else "better" if gain > 0 else "worse"
            if kind in {"better", "worse"} and self.truth.credited(winner, benchmark) is False:
                kind = "uncredited"
            found[kind].add(benchmark)
        return found

    def _with_baseline(self, model: str) -> list[str]:
        """The ranked benchmarks with a number of a model and its baseline."""
        measured, base = self.truth.measured, str(self._base(model))
        both = [name for name in self.world.benchmarks if (model, name) in measured and (base, name) in measured]
        return [name for name in both if self.truth.ranked(name)] if model != base else []

    def _names(self, text: str | None) -> set[str]:
        return {self.titles[each] for each in listed(text)} if text else set()

    def summary(self, model: str, parts: str, base: str) -> None:
        """``a beats b by 3.0 points [1.0, 5.0] on …; it loses …; no significant difference on …``."""
        assert base == self._base(model)
        said: dict[str, set[str]] = {}
        for part in parts.split("; "):
            starts = {
                rf"(?:{model} )?beats {base} ": "better", rf"(?:{model} loses to {base}|it loses) ": "worse",
                f"(?:{model} and {base}: )?no significant difference on ": "equal",
                f"(?:{model} and {base}: )?not credited to the images: the difference on ": "uncredited",
                f"{model} and {base} do not differ significantly on (?:any of )?": "equal",
                "not tested on ": "untested",
            }  # fmt: skip
            start, kind = next((start, kind) for start, kind in starts.items() if re.match(start, part))
            rest = part[re.match(start, part).end() :]  # type: ignore[union-attr]
            rest, _, size = rest.partition(" (")
            assert bool(size) == (kind == "equal" and "do not differ" in part)
            if kind in {"better", "worse"}:
                said[kind] = self._sizes(model, base, rest)
            elif count := re.fullmatch(r"(\d+) metrics", rest):
                assert int(count[1]) == len(self._kinds(model)["equal"])
                said[kind] = self._kinds(model)["equal"]
            else:
                said[kind] = self._names(rest)
        assert said == {kind: names for kind, names in self._kinds(model).items() if names}

    def _sizes(self, model: str, base: str, text: str) -> set[str]:
        sizes, _, others = text.partition(", and also on ")
        found = set()
        for value, low, high, title in re.findall(r"by ([\d.]+) points(?: \[(\S+), (\S+)\])? on (\S+ \w+)", sizes):
            benchmark = self.titles[title]
            tested = self.truth.difference(benchmark, model, base)[0]
            assert close(value, abs(self._value(benchmark, model) - self._value(benchmark, base)))
            scale = math.copysign(self.truth.scale(benchmark), tested.value)
            ends = sorted(scale * end for end in (tested.low, tested.high))
            assert not low or (close(low, ends[0]) and close(high, ends[1]))
            found.add(benchmark)
        return found | self._names(others)

    def not_tested(self, model: str, base: str, names: str, why: str) -> None:
        assert base == self.world.baseline
        assert self._names(names) == self._kinds(model)["untested"] == set(self._with_baseline(model))
        assert {*listed(why)} == {self._why_untested(model, base, name) for name in self._names(names)}

    def _why_untested(self, model: str, base: str, benchmark: str) -> str:
        one, other = (self.truth.measured[name, benchmark] for name in (model, base))
        if one.group != other.group:
            return "the settings differ"
        if not all(self.truth.has_interval(name, benchmark) for name in (model, base)):
            return "a number has no interval"
        assert one.items != other.items
        return "the items differ"

    def none_better(self, verb: str, base: str, count: str, worse: str | None, **others: str | None) -> None:
        assert base == self.world.baseline
        kinds = {model: self._kinds(model) for model in self.world.models}
        assert not any(each["better"] for each in kinds.values())
        assert (verb == "differs significantly from") == (
            not any(each["worse"] | each["uncredited"] for each in kinds.values())
        )
        of_tests = [
            name for each in kinds.values() for kind, names in each.items() for name in names if kind != "untested"
        ]
        assert int(count) == len(of_tests)
        assert set(listed(worse or "")) - {""} == {model for model, each in kinds.items() if each["worse"]}
        for kind, text in others.items():
            cells = {f"{model} on {self.truth.title(name)}" for model, each in kinds.items() for name in each[kind]}
            if not text or re.fullmatch(r"\d+ numbers", text):
                assert len(cells) == int((text or "0").split(" ")[0])
            else:
                assert set(listed(text)) == cells

    def no_baseline(self, text: str, apart: str | None = None, where: str = "") -> None:
        """The sentences of a table without differences from a baseline."""
        best = {(cell.row, cell.column.benchmark) for cell in self.table.scores if cell.mark == "best"}
        measured = self.truth.measured
        assert not any(self._kinds(model)[kind] for model in self.world.models for kind in ("better", "worse", "equal")
                       if self.world.baseline)  # fmt: skip
        if text.startswith("There is"):
            assert not measured
        elif text.startswith("One model"):
            assert len(self.world.models) == 1
        elif text.startswith("No two"):
            assert not any(self.truth.ranked(name) for name, _ in self.tested)
        elif text.startswith("No model"):
            assert not best
            assert any(self.truth.ranked(name) for name, _ in self.tested)
        else:
            said = {(row, self.titles[title]) for part in re.split(r"(?:^|, | and )(?=\w+ on )", where) if part
                    for row, _, titles in [part.partition(" on ")] for title in listed(titles)}  # fmt: skip
            assert said == best
            for model, benchmark in best:
                others = [other for other in self.world.models if (other, benchmark) in measured and other != model]
                assert apart or all(self.differs(benchmark, model, other) for other in others)
            self._apart(apart)

    def _apart(self, said: str | None) -> None:
        """``items and settings``: what not all models of a column with marks share."""
        marked = {cell.column.benchmark for cell in self.table.scores if cell.mark or cell.withheld}
        found = set()
        for benchmark in marked:
            own = [each for (_, name), each in self.truth.measured.items() if name == benchmark]
            found |= {"settings"} if len({each.group for each in own}) > 1 else set()
            found |= (
                {"items"}
                if any(len({each.items for each in own if each.group == group}) > 1 for group in (0, 1))
                else set()
            )
        assert set(listed(said) if said else []) == found

    def _with_noise(self) -> set[tuple[str, str]]:
        return {
            key for key, each in self.truth.measured.items()
            if each.scores is not None and each.scores.trained and self.truth.noise[key[1], each.group].degrees
        }  # fmt: skip

    def average(
        self,
        models: str,
        count: str,
        of: str,
        value: str,
        low: str | None,
        high: str | None,
        fewer: str | None,
        **said: str | None,
    ) -> None:
        names = self._averaged(of)
        averages = {model: self._average(names, model, fewer) for model in self.world.models}
        largest = max(averages.values())
        assert int(count) == len(names) > 1
        assert close(value, largest)
        leaders = {model for model, average in averages.items() if math.isclose(average, largest, abs_tol=1e-9)}
        assert set(listed(models)) == leaders
        if low is None or high is None:
            return
        assert number(low) - 0.06 <= largest <= number(high) + 0.06
        (p_values,) = [each.p_values for each in self.report.overall if each.of == of]
        found: dict[str, set[str]] = {kind: set() for kind in ("above", "close", "untested")}
        for other in set(self.world.models) - leaders:
            same = all(
                self.truth.measured[other, name].items == self.truth.measured[models, name].items for name in names
            )
            p_value = p_values.get(frozenset({models, other}))
            assert (p_value is not None) <= same
            found["untested" if p_value is None else "above" if p_value < 0.05 else "close"].add(other)
        for kind, others in found.items():
            text = said.get(kind)
            expected = (
                set(self.world.models) - leaders if text == "all others" else set(listed(text)) if text else set()
            )
            assert expected == others

    def close_averages(
        self, models: str, close: str, who: str | None, of: str, above: str | None, **said: str | None
    ) -> None:
        others = set(listed(close)) - {models}
        assert others
        self.average(models=models, close=", ".join(others), of=of, above=above, **said)
        (p_values,) = [each.p_values for each in self.report.overall if each.of == of]
        pairs = [frozenset({one, two}) for one in others for two in (listed(above) if above else [])]
        if who:
            assert (who in ("both", "all of them")) == all(p_values.get(pair, 1.0) < 0.05 for pair in pairs)

    def _average(self, names: list[str], model: str, fewer: str | None) -> float:
        """The mean over benchmarks; of models that the sentence names, of the seeds that all benchmarks have."""
        measured = [self.truth.measured[model, name] for name in names]
        common = [row for row in measured[0].by_row if all(row in each.by_row for each in measured)]
        complete = all(len(each.by_row) == len(common) for each in measured)
        if fewer is not None:
            assert (model in listed(fewer)) == (not complete)
        elif not complete:  # then the averages are those of the printed numbers
            return float(np.mean([each.value for each in measured]))
        return float(np.mean([[each.by_row[row] for row in common] for each in measured]))

    def _averaged(self, of: str) -> list[str]:
        """The benchmarks in per cent of which every model has a number under the main protocol, of one kind."""
        complete = [
            name for name in self.world.benchmarks
            if self.truth.ranked(name)
            and all((each := self.truth.measured.get((model, name))) and not each.group for model in self.world.models)
        ]  # fmt: skip
        of_llava = {name: any(each.benchmark_type == "mllm" for each in self.report.source.results(name).values())
                    for name in complete}  # fmt: skip
        assert bool(of) == (len({*of_llava.values()}) == 2)
        return [
            name for name in complete
            if self.world.benchmarks[name] == "accuracy" and (not of or of_llava[name] == of.endswith("LLaVA"))
        ]  # fmt: skip

    def highest_average(self, **said: str) -> None:
        assert said.pop("low", None) is None
        assert said.pop("high", None) is None
        self.average(**said, low=None, high=None)

    def blind_average(self, models: str, names: str, of: str, **said: str) -> None:
        self.highest_average(models=models, of=of, **said)
        assert set(listed(names)) == {name for name in self._averaged(of) if self.truth.credited(models, name) is False}

    def uncredited(self, names: str) -> None:
        expected = {
            f"{cell.row} on {self.truth.title(cell.column.benchmark)}" for cell in self.table.scores if cell.withheld
        }
        assert (
            len(expected) == int(names.split(" ")[0])
            if re.fullmatch(r"\d+ scores", names)
            else set(listed(names)) == expected
        )

    def below_chance(self, names: str) -> None:
        for title in self._with_chance() if names.startswith("any metric") else listed(names):
            cells = [cell for cell in self.table.scores if self.truth.title(cell.column.benchmark) == title]
            numbers = [cell for cell in cells if cell.value is not None]
            assert numbers
            assert all(cell.ci_low is not None and cell.ci_low <= 50 and not cell.group for cell in numbers)

    def none_credited(self, names: str) -> None:
        for title in listed(names):
            models = [model for model, name in self.truth.measured if self.truth.title(name) == title]
            assert models
            assert not any(self.truth.credited(model, self.titles[title]) is not False for model in models)

    def _with_chance(self) -> list[str]:
        return [self.truth.title(column.benchmark) for column in self.table.columns if column.chance_levels]

    def _check_formats(self, sentences: list[str]) -> None:
        """The formats print the same sentences, and their marks."""
        stream = io.StringIO()
        print_report(self.report, Console(file=stream, width=400, no_color=True))
        markdown, latex = render_markdown(self.report).replace("\\", ""), render_latex(self.report)
        for line in sentences[: 1 + len(self.report.other_sentences)]:
            assert line in re.sub(r"\s+", " ", stream.getvalue())
        assert self.report.answer in markdown
        for note in self.report.notes:
            is_caveat = KINDS[note.kind].is_caveat
            assert (f"% {note.text}" in latex) == (note.kind != "missing" and not is_caveat)
            assert not is_caveat or latex_text(note.text) in latex
        first = brief_notes(self.report.notes)
        self._check_briefs()
        assert len(first) <= 3
        assert all(len(line.split()) <= MAX_WORDS for line in first)
        apart = [note.text for note in self.report.notes if note.kind == "other items"]
        reasons = [note.text for note in self.report.notes if note.kind in {"protocol", "other items", "untested"}]
        others = brief_notes([note for note in self.report.notes if note.kind != "other items"])
        shown = [*apart[:3], *others] if self.tested or not reasons else reasons[:3]  # why nothing was tested, in full
        assert all(line in re.sub(r"\s+", " ", stream.getvalue()) for line in shown)
        marks = [cell.mark for cell in self.table.scores]
        assert latex.count(r"\textbf{") == marks.count("best")
        assert latex.count(r"\underline{") == marks.count("tied")
        caption = re.search(r"\\caption\{(.*)\}", latex)
        assert caption is not None
        assert ("Best (bold)" in caption[1]) == ("best" in marks)

    def _check_briefs(self) -> None:
        """The short sentences count what the items say."""
        said = {kind: sum(note.count for note in self.report.notes if note.kind == kind) for kind in KINDS}
        cells = self.table.scores
        measured = [(row, name) for row, name in self.truth.measured]
        assert said["uncredited"] == sum(self.truth.credited(row, name) is False for row, name in measured)
        assert said["chance"] == sum(cell.above_chance is False for cell in cells)
        lost = [place for place, each in self.world.outcomes.items() if isinstance(each, MissingValue)]
        assert said["missing"] == len(lost)
        unsure = [place for place in measured if not self.truth.has_interval(*place)]
        assert said["untested"] >= len(unsure)
        assert bool(said["untested"]) == bool(unsure or self.table.untestable)
        known = [[len(cells) for cells in sets if cells[0].evidence is not None] for sets in self.table.other_items]
        left = [sum(sizes) - (max(sizes) if max(sizes) > 1 else 0) for sizes in known if len(sizes) > 1]
        assert said["other items"] == sum(left)


_BENCHMARKS = (
    r"(?P<count>\d+) benchmarks(?P<of>| of the \w+)"
    r"(?: \(of (?P<fewer>[\w, ]+): only seeds that were evaluated on all of them\))?"
)
_VALUE = r"(?P<value>[\d.]+)(?: \[(?P<low>\S+), (?P<high>\S+)\])?"
READERS: list[tuple[str, Callable[..., None]]] = [
    (r"There is no number yet; the table states the reasons\.()", lambda self: self.no_baseline("There is")),
    (r"One model: there is no other to compare it with\.", lambda self: self.no_baseline("One model")),
    (r"No two models could be tested against each other\.", lambda self: self.no_baseline("No two")),
    (
        r"No model is significantly better than all others(?: and above chance)? on any metric\.",
        lambda self: self.no_baseline("No model"),
    ),
    (
        r"Significantly better than all others(?: with the same (?P<apart>[a-z ]+))? by paired tests: (?P<where>.+)\.",
        lambda self, **found: self.no_baseline("Significantly", **found),
    ),
    (r"No model (?P<verb>beats|differs significantly from) (?P<base>\w+) in any of (?P<count>\d+) tests"
     r"(?:; (?P<worse>[^;]+) loses? to it in some)?"
     r"(?:; not credited to the images: the difference of (?P<uncredited>[^;]+))?"
     r"(?:; not tested: (?P<untested>[^;]+))?\.", Reader.none_better),
    (r"(?P<parts>(?P<model>\w+) (?:beats|loses to|and) (?P<base>\w+?)(?:: | do not | by ).+)\.", Reader.summary),
    (r"(?P<model>\w+) was not tested against (?P<base>\w+) on (?P<names>.+), because (?P<why>[^,]+(?:, [^,]+)*)\.",
     Reader.not_tested),
    (rf"(?P<models>\w+) has the best average over {_BENCHMARKS}, {_VALUE}"
     r", significantly above (?P<above>all others)\.", Reader.average),
    (rf"(?P<models>\w+) has the highest average over {_BENCHMARKS}, {_VALUE}"
     r"(?:; it is significantly above (?P<above>[^;]+))?"
     r"; \w+ was not tested against (?P<untested>.+)\.", Reader.average),
    (rf"The averages of (?P<close>.+) over {_BENCHMARKS} do not differ significantly"
     rf" (?:from the highest \(|\(higher: )(?P<models>\w+), {_VALUE}\)"
     r"(?:; (?P<who>both|all of them|that of \w+) (?:is|are) significantly above (?P<above>[^;]+))?"
     r"(?:; \w+ was not tested against (?P<untested>.+))?\.", Reader.close_averages),
    (rf"(?P<models>.+) have the same average over {_BENCHMARKS}, {_VALUE}"
     r"(?: and no model a higher one)?\.", Reader.highest_average),
    (rf"(?P<models>\w+) has the highest average over {_BENCHMARKS}, {_VALUE}, "
     r"but its scores? on (?P<names>.+) (?:is|are) not credited to the images\.", Reader.blind_average),
    (rf"(?P<models>\w+) has the highest average over {_BENCHMARKS}, {_VALUE}, "
     r"without an interval, .*\.", Reader.highest_average),
    (r"Not credited, because they are not significantly better than those .*: (?P<names>.+)\.", Reader.uncredited),
    (r"No model is significantly above chance on (?P<names>.+)\.", Reader.below_chance),
    (r"No score is credited to the images on (?P<names>.+)\.", Reader.none_credited),
]  # fmt: skip


def read_tables(numbers: Iterable[int]) -> int:
    """Check all sentences of the tables with these numbers; returns the number of sentences."""
    count = 0
    for place in numbers:
        world = World(place)
        try:
            count += Reader(world, build_report_of(world)).check()
            check_comparison(world)
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"table {place}: {error}") from error
    return count


@contextmanager
def stored(world: World) -> Iterator[None]:
    """Results of a world as if they were in files."""
    source = world.source()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, "read_source", lambda *_args, **_more: source)
        patch.setattr(item_scores, "has_items", lambda result: result.items is not None)
        patch.setattr(item_scores, "read_items", lambda result, frames=world.frames, **_: frames[result.path])
        patch.setattr("benchmarks.report.notes.about_training", lambda source: [])
        yield


def build_report_of(world: World, pairs: Pairs = "baseline") -> Report:
    """The report on a world."""
    with stored(world):
        return build_report(Path("/none"), pairs=pairs)


def check_comparison(world: World) -> None:
    """`compare` of two models of a world without seeds: which numbers are tested, and the verdicts."""
    if world.num_seeds > 1 or len(world.models) < 2:
        return
    truth, source, (first, second) = Truth(world), world.source(), world.models[:2]
    sides = [
        dataclasses.replace(source, rows=tuple(row for row in source.rows if row.encoder == model))
        for model in (first, second)
    ]
    try:
        with stored(world):
            table = compare_sources(*sides).table
    except UserError:
        assert not any(isinstance(result, Result) for result in source.outcomes.values())
        return
    pair = frozenset({first, second})
    p = {(name, pair): truth.difference(name, first, second)[1]
         for name in world.benchmarks if truth.testable(name, first, second)}  # fmt: skip
    corrected, verdicts = holm(p), dict[str, str]()
    for name in (name for name, _ in p):
        gain = truth.measured[first, name].value - truth.measured[second, name].value
        better = gain * truth.sign(name) > 0
        if corrected[name, pair] >= 0.05:
            verdicts[name] = "not significant"
        elif not truth.ranked(name):
            verdicts[name] = "different"
        elif truth.credited(first if better else second, name) is False:
            verdicts[name] = "not credited"
        else:
            verdicts[name] = "better" if better else "worse"
    tested = [table.cells(column)[0] for column in table.columns if table.cells(column)[0].delta]
    assert {cell.column.benchmark: cell.delta.verdict for cell in tested if cell.delta} == verdicts
    assert not any(cell.delta for column in table.columns for cell in table.cells(column)[1:])
