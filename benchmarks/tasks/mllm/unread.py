"""Which answers cannot be read: empty, declined, without an option of the question, or without yes or no.

This is decided without lmms-eval's scorers. Two dozen of them guess a letter for an answer that names none (MMMU's; for
"A photo of a dog" they read A), others compare literally, so that "Yes." is wrong in POPE: a model's style of answering
can change its score as much as what it sees.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.baselines import baseline_name
from benchmarks.results.results import UNREAD, UNREAD_WRONG
from benchmarks.tasks.evaluation import MetricSpec
from benchmarks.tasks.mllm.items import Sample, circular_groups
from benchmarks.tasks.mllm.task_metrics import mme_columns

if TYPE_CHECKING:
    import pandas as pd

UNREAD_SPEC = MetricSpec(label="answers not read", columns=(UNREAD,), higher_is_better=None)
_REFUSAL = re.compile(
    r"\W*(?:i['’]?m (?:sorry|unable|not able)|sorry\b|as an ai\b|unable to\b|i (?:cannot|can['’]?t|do not|don['’]?t|"
    r"am unable to|am not able to)\b(?! (?:only|help)))",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(?:^|[\s(])\(?([A-J])[.):] ?\S", re.MULTILINE)
_OPTION_LINE = re.compile(r"^\s*\(?([A-J])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_YES_NO = ("yes", "no")


def unread_answers(samples: Sequence[Sample], scores: np.ndarray | None = None) -> np.ndarray:
    """(N,) whether each answer cannot be read.

    Args:
        scores: (N,) each answer's own score, if it has one. An answer that names the right option and scores 0 was not
            read by the scorer.
    """
    unread = np.zeros(len(samples))
    for place, sample in enumerate(samples):
        answer = sample["filtered_resps"][0]
        answer = answer[0] if isinstance(answer, list | tuple) and answer else answer
        text = answer.strip() if isinstance(answer, str) else ""
        names, options = _possible_names(sample)
        named = _named(text, names, options)
        if not text or (text.startswith("<think>") and "</think>" not in text):
            unread[place] = 1.0
        elif names:
            target = _target(sample["target"], names, options)
            missed = scores is not None and scores[place] == 0 and named == {target}
            unread[place] = float(not named or missed)
        else:
            right = scores is not None and scores[place] > 0  # "Sorry" can be a word in an image
            unread[place] = float(_REFUSAL.match(text) is not None and not right)
    return unread


def add_unread(
    items: pd.DataFrame, samples: Sequence[Sample], metrics: Mapping[str, MetricSpec], primary: Collection[str]
) -> dict[str, MetricSpec]:
    """Add the column of unread answers to the items; the metrics on it.

    They are the share of unread answers and, if there are any, the primary metrics with these as wrong answers.
    """
    scores = items["score"].to_numpy()
    unread = unread_answers(samples, None if np.isnan(scores).any() else scores)
    items[UNREAD] = unread
    specs = {UNREAD: UNREAD_SPEC}
    lost = unread > 0
    for name in primary if lost.any() else ():
        spec = metrics.get(name)
        if spec is None or not spec.columns or not {*spec.columns} <= {*items.columns}:
            continue
        first, *others = spec.columns
        credit = items[first].to_numpy()
        if spec.aggregation == "sum_of_group_means":  # MME's points of a pair
            wrong = mme_columns(samples, np.where(lost, 0.0, items["correct"]))[first]
        elif spec.aggregation in ("mean", "mean_of_scores", "mean_of_group_means", "ratio"):
            # their first column is what an item adds to the score; it is 0 for a wrong answer
            if np.isnan(credit).any():  # MMBench's points of a question are at its first order
                groups = circular_groups(samples)
                lost = np.isin(groups, groups[lost])
            wrong = np.where(np.isnan(credit), np.nan, np.where(lost, 0.0, credit))
        elif spec.aggregation == "f1":  # POPE's own scorer leaves answers other than yes and no out
            actual = items[others[0]].to_numpy()
            wrong = np.where((scores > 0) & ~lost, actual, 1.0 - actual)
        else:
            continue
        column = baseline_name(first, UNREAD_WRONG)
        items[column] = wrong
        specs[baseline_name(name, UNREAD_WRONG)] = dataclasses.replace(
            spec,
            label=f"{spec.label}, unread answers as wrong",
            columns=(column, *others),
            rounded=0.0,
            baseline_of=name,
            condition=UNREAD_WRONG,
        )
    return specs


def _possible_names(sample: Sample) -> tuple[str, list[str]]:
    """The letters of a question's options and their texts; ``"yn"`` for a question of yes or no, nothing for others."""
    doc, target = sample.get("doc") or {}, str(sample.get("target", "")).strip()
    if target.lower().rstrip(".") in _YES_NO:
        return "yn", []
    texts = _listed(doc)
    if texts is None and re.fullmatch(r"\(?[A-J]\)?\.?", target):
        asked = next(
            (str(each) for each in (doc.get("question"), sample["arguments"][0]) if _OPTION.search(str(each))), ""
        )
        lines = dict(reversed(_OPTION_LINE.findall(asked)))
        if len(lines) > 1 and sorted(lines) == [*ascii_uppercase[: len(lines)]]:
            return ascii_uppercase[: len(lines)], [lines[letter] for letter in sorted(lines)]
        letters = sorted(set(_OPTION.findall(asked)))
        count = next(n for n, letter in enumerate(ascii_uppercase) if letters[n : n + 1] != [letter])
        count = max(count, 1 + ascii_uppercase.index(target.strip("()."))) if count > 1 else 0
        return ascii_uppercase[:count], []
    return ("", []) if not texts else (ascii_uppercase[: len(texts)], texts)


def _listed(doc: Mapping[str, Any]) -> list[str] | None:
    for name in ("options", "choices"):
        value = doc.get(name)
        if isinstance(value, str) and value.strip().startswith("["):  # MMMU's
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                continue
        if isinstance(value, list | tuple):
            return [str(each) for each in value]
    # columns: A and so on of MMBench, choice_a and so on of SEED-Bench
    for names in ([*ascii_uppercase[:10]], [f"choice_{letter}" for letter in ascii_uppercase[:10].lower()]):
        values = [doc.get(name) for name in names]
        texts = [str(value) for value in values if value is not None and str(value) not in {"", "nan"}]
        if len(texts) > 1:
            return texts
    return None


def _named(text: str, names: str, options: Sequence[str]) -> set[str]:
    if names == "yn":
        words = re.findall(r"[a-z]+", text.lower())
        short = {"y": {"yes"}, "n": {"no"}}
        return {word for word in words if word in _YES_NO} or (short.get(words[0], set()) if len(words) == 1 else set())
    if not names:
        return set()
    alone = re.sub(r"[\W_]+", "", text)
    if len(alone) == 1 and alone.upper() in names:
        return {alone.upper()}
    last = names[-1]
    letters = set(re.findall(rf"(?<![A-Za-z0-9_])\(([A-{last}])\)", text.upper()))
    letters |= set(re.findall(rf"(?<![A-Za-z0-9_'’])([A-{last}])(?=[.):,\]}}*\"]|\s*$)", text, re.MULTILINE))
    letters |= set(
        re.findall(rf"(?i:answer|option|choice|letter)(?i:\s+is)?\W{{0,5}}([A-{last}])(?![A-Za-z0-9_'’])", text)
    )
    small = last.lower()  # small letters, where they are no words: "b. because", "the answer is b"
    letters |= {each.upper() for each in re.findall(rf"^\W*([a-{small}])[.):]", text)}
    letters |= {
        each.upper() for each in re.findall(rf"(?i:answer|option)(?i:\s+is)?\W{{1,5}}([a-{small}])(?=\W*$)", text)
    }
    # a letter between spaces names its option, but for the article and the pronoun
    letters |= {
        each for each in re.findall(rf"(?<![A-Za-z0-9_'’])([A-{last}])(?![A-Za-z0-9_'’])", text) if each not in "AI"
    }
    if letters:
        return letters
    lowered = text.lower()
    return {
        letter
        for letter, option in zip(names, options, strict=False)
        if option.strip() and re.search(rf"(?<!\w){re.escape(option.strip().lower())}(?!\w)", lowered)
    }


def _target(target: Any, names: str, options: Sequence[str]) -> str:
    """The right answer as `_named` returns it; empty if it is given in another form."""
    text = str(target).strip()
    if names == "yn":
        return text.lower().rstrip(".")
    letter = text.strip("().")
    if len(letter) == 1 and letter in names:
        return letter
    return next((name for name, option in zip(names, options, strict=False) if option == text), "")
