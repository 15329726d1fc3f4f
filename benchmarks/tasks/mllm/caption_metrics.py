"""Faster caption scorers for lmms-eval: the same numbers, also per image, and mostly without Java."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from clips.core.identity import digest, file_hash

ONE_IMAGE = "CIDEr weighs words by the images that have them: of one image it is 0 for any caption"
JAVA_METRICS = ("nocaps_METEOR",)


@dataclass
class ImageCaptionScores:
    """Scores of each image, by its id, which is a text in TextCaps."""

    cider: dict[int | str, float] = field(default_factory=dict)  # CIDEr of the image; the corpus has their mean
    rouge: dict[int | str, float] = field(default_factory=dict)  # ROUGE-L of the image; the corpus has their mean
    # n-gram counts of the image: matched 1–4, possible 1–4, length, reference length
    bleu: dict[int | str, list[float]] = field(default_factory=dict)


@functools.cache
def is_java_available() -> bool:
    """Whether a working Java exists."""
    java = shutil.which("java")
    if java is None:
        return False
    return subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0


def tokenizer_name() -> str:
    """Name of the caption tokenizer, for the protocol."""
    return "PTBTokenizer (Stanford, Java)" if is_java_available() else "PTBTokenizer imitated in Python (no Java)"


@functools.cache
def caption_scorer_hash() -> str:
    """SHA-256 of pycocoevalcap, its Java programs included, and of which tokenizer is used, for the protocol."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    folder = Path(ptbtokenizer.__file__).parents[1]
    files = sorted(
        file for file in folder.rglob("*") if file.is_file() and not {"spice", "__pycache__"} & {*file.parts}
    )
    return digest([tokenizer_name(), [(str(file.relative_to(folder)), file_hash(file)) for file in files]])


@contextlib.contextmanager
def patched_caption_scorers() -> Iterator[ImageCaptionScores]:
    """Patch pycocoevalcap, and yield the scores of each image.

    lmms-eval's NoCaps scorer starts two Java programs for each of its seven metrics. Inside, the same program tokenizes
    every caption once, and METEOR's starts only for METEOR. Without Java, tokenization is in Python (the protocol
    states it), and METEOR is unavailable.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, PTBTokenizer

    scores = ImageCaptionScores()
    known: dict[str, str] = {}  # line → its tokens
    exposed: list[list[float]] = []  # counts of the last corpus that BLEU scored, in its order
    original = {owner: owner.compute_score for owner in (Meteor, Cider, Rouge, Bleu, BleuScorer)}
    start_meteor = Meteor.__init__

    def tokenize(self: Any, captions_for_image: dict[Any, list[dict[str, str]]]) -> dict[Any, list[str]]:
        lines = {key: [caption["caption"] for caption in captions] for key, captions in captions_for_image.items()}
        new = list(dict.fromkeys(line for group in lines.values() for line in group if line not in known))
        for line, tokens in zip(new, ptb_tokenize(new), strict=True):
            known[line] = " ".join(token for token in tokens.rstrip().split(" ") if token not in PUNCTUATIONS)
        return {key: [known[line] for line in group] for key, group in lines.items()}

    def init_meteor(self: Any) -> None:  # its own starts the Java program
        self.lock = threading.Lock()
        stream = SimpleNamespace(close=lambda: None)
        self.meteor_p = SimpleNamespace(stdin=stream, kill=lambda: None, wait=lambda: None)

    def meteor(self: Any, gts: Any, res: Any) -> tuple[float, list[float]]:
        start_meteor(self)
        return original[Meteor](self, gts, res)

    def collecting(scorer: Any, collected: dict[int | str, float]) -> Any:
        def compute_score(self: Any, gts: Any, res: Any) -> Any:
            score, each = original[scorer](self, gts, res)
            collected.update(zip(gts, map(float, each), strict=True))
            return score, each

        return compute_score

    def bleu(self: Any, gts: Any, res: Any, verbose: int = 0) -> Any:
        exposed.clear()
        result = original[Bleu](self, gts, res, verbose)
        scores.bleu.update(zip(gts, exposed, strict=True))
        return result

    def bleu_counts(self: Any, option: Any = None, verbose: int = 0) -> Any:
        for counts in self.ctest:
            length = self._single_reflen(counts["reflen"], option, counts["testlen"])
            exposed.append([*counts["correct"], *counts["guess"], counts["testlen"], length])
        return original[BleuScorer](self, option, verbose)

    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (PTBTokenizer, "tokenize", tokenize),
            (Meteor, "__init__", init_meteor),
            (Meteor, "compute_score", meteor),
            (Cider, "compute_score", collecting(Cider, scores.cider)),
            (Rouge, "compute_score", collecting(Rouge, scores.rouge)),
            (Bleu, "compute_score", bleu),
            (BleuScorer, "compute_score", bleu_counts),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield scores


def score_captions(references: Sequence[Sequence[str]], captions: Sequence[str]) -> ImageCaptionScores:
    """CIDEr, ROUGE-L and BLEU of one caption per image against the references of each image, by index."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with patched_caption_scorers() as scores:
        tokenizer = PTBTokenizer()
        expected = tokenizer.tokenize({n: [{"caption": text} for text in group] for n, group in enumerate(references)})
        written = tokenizer.tokenize({n: [{"caption": text}] for n, text in enumerate(captions)})
        for scorer in (Cider(), Rouge(), Bleu(4)):
            scorer.compute_score(expected, written)
    return scores


def ptb_tokenize(lines: Sequence[str]) -> list[str]:
    """Each line lower-cased and split into Penn Treebank tokens joined by spaces, punctuation included."""
    if not lines:
        return []
    clean = [re.sub("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", " ", line) for line in lines]
    if not is_java_available():
        return [python_tokens(line) for line in clean]
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("\n".join(clean) + "\n", encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run(
            [*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, check=True, encoding="utf-8"
        )
    tokenized = done.stdout.split("\n")
    if len(tokenized) < len(clean):
        raise RuntimeError(f"the caption tokenizer returned {len(tokenized)} lines for {len(clean)} captions")
    return tokenized[: len(clean)]


def python_tokens(line: str) -> str:
    """NLTK's Treebank rules with Stanford's for brackets and full stops inside a line."""
    from nltk.tokenize import NLTKWordTokenizer

    brackets = {"(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- "}
    text = re.sub(r"(?<![.A-Z\d])\.(?=\s|$)", " .", re.sub(r"\.{2,}", " ... ", line))
    tokens = " ".join(NLTKWordTokenizer().tokenize(text)).lower()
    return re.sub(r"[()\[\]{}]", lambda bracket: brackets[bracket[0]], tokens).replace("  ", " ").strip()
