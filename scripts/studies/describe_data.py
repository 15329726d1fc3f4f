"""What docs/scores/README.md says of its captions and photos, counted in the data that the studies prepared:

    python scripts/studies/describe_data.py runs/lengths/data/captions runs/positives/data/photos \\
        runs/captioner/data/objects > docs/scores/data.csv
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from clips.errors import UserError
from clips.method.caption_strategies import sentences
from clips.model.tokenizer import clean_text, wordpiece
from clips.text_files import read_json, read_json_lines

_CONTEXT = 32 - 3  # tokens of a web caption: the context of positives.yaml without begin, end and class token
_QUERIES = 5  # of a photo, of those that it has, are tested


def describe(folder: Path) -> Iterator[tuple[str, float]]:
    """Fact and number of a dataset that ``prepare_data.py`` made: caption_lengths, noisy_web or cocoqa_classes.

    Raises:
        UserError: another directory.
    """
    if (folder / "test_long.jsonl").is_file():
        rows = _rows(folder / "train.jsonl")
        yield "training photos", len(rows)
        counts = [len(sentences(row["whole"])) for row in rows]
        yield "fewest sentences of a caption", min(counts)
        yield "most sentences of a caption", max(counts)
        tokens = [_num_tokens(row["whole"]) for row in rows]
        yield "fewest tokens", min(tokens)
        yield "median tokens", median(tokens)
        yield "most tokens", max(tokens)
        shares = [_num_tokens(row["sentence"]) / count for row, count in zip(rows, tokens, strict=True)]
        yield "mean share of the fixed sentence in a caption's tokens, per cent", 100 * fmean(shares)
        for split, length in itertools.product(("test", "tune"), ("short", "long")):
            queries = [row["captions"][:_QUERIES] for row in _rows(folder / f"{split}_{length}.jsonl")]
            found = [_num_tokens(text) for texts in queries for text in texts]
            yield f"{split} photos with {length} queries", len(queries)
            yield f"{length} {split} queries", len(found)
            yield f"median tokens of {length} {split} queries", median(found)
    elif (folder / "dataset_held_out.json").is_file():
        rows = _rows(folder / "train.jsonl")
        yield "training photos", len(rows)
        images = read_json(folder / "dataset_held_out.json")["images"]
        yield "test photos", sum(image["split"] == "held_out" for image in images)
        yield "photos that tune", sum(image["split"] == "val" for image in images)
        web = [text for row in rows for text in row["web_0"]]
        yield "web captions of a photo", len(web) / len(rows)
        yield "web captions that the context cuts, per cent", 100 * fmean(_num_tokens(text) > _CONTEXT for text in web)
        for noise in (25, 50):
            noisy = [text for row in rows for text in row[f"web_{noise}"]]
            foreign = [text != own for text, own in zip(noisy, web, strict=True)]
            yield f"web captions of another photo at {noise} % noise, per cent", 100 * fmean(foreign)
    elif (folder / "test").is_dir():
        yield "test photos", sum(1 for _ in (folder / "test").glob("*/*"))
        yield "classes", sum(1 for _ in (folder / "test").iterdir())
    else:
        kinds = "caption_lengths, noisy_web or cocoqa_classes"
        raise UserError(f"{folder}: expected the output of prepare_data.py for {kinds}")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_json_lines(path)]


def _num_tokens(text: str) -> int:
    # as the text tower reads them; those of caption_strategies are words
    return len(wordpiece().encode(clean_text(text), add_special_tokens=False).ids)


def main() -> int:
    """Run the command line."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    try:
        lines = [(folder, *found) for folder in sys.argv[1:] for found in describe(Path(folder))]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    writer.writerow(("data", "fact", "value"))
    writer.writerows((folder, fact, f"{value:.4g}") for folder, fact, value in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
