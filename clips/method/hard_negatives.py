"""Hard negatives: a caption with two of its content words swapped, so that the same words describe another image.

Source: NegCLIP (arXiv 2210.01936, section 4). Its authors swap two words or phrases of the same part of speech, which
spaCy tags; here any two content words are swapped, without a parser: words that are not in ``FUNCTION_WORDS``. A noun
swapped with an adjective ("a car red") can be recognized without the image.
"""

from __future__ import annotations

import re

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

FUNCTION_WORDS = frozenset(
    """
    a about above across after against all along also although am among an and any are around as at be because been
    before behind being below beneath beside besides between both but by can could did do does down during each
    either every few for from had has have he her here hers him his how i if in inside into is it it's its itself
    just many may me might more most must my near neither no nor not of off on one onto or other our ours out
    outside over own per she should so some such than that the their theirs them themselves then there these they
    this those through to too toward towards under until up upon us very was we were what when where which while who
    whom whose why will with within without would you your yours
    """.split()  # noqa: SIM905
)
"""English determiners, prepositions, pronouns, conjunctions and auxiliary verbs."""


def swap_words(text: str, rng: np.random.Generator) -> str:
    """Return ``text`` with two different content words swapped, each pair of positions equally likely.

    A text without two such words is returned unchanged.
    """
    words = [match for match in _WORD.finditer(text) if match.group().lower() not in FUNCTION_WORDS]
    pairs = [
        (one, other)
        for place, one in enumerate(words)
        for other in words[place + 1 :]
        if one.group().lower() != other.group().lower()
    ]
    if not pairs:
        return text
    one, other = pairs[rng.integers(len(pairs))]
    return "".join(
        (text[: one.start()], other.group(), text[one.end() : other.start()], one.group(), text[other.end() :])
    )
