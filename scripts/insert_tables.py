"""Insert the tables of reports into documents, so that no number is typed.

    python scripts/insert_tables.py README.md docs/scores/README.md

A line ``<!-- table: FILE -->`` names a Markdown file, relative to the working directory; the table that follows it is
replaced by the first table of that file, or for ``FILE#a-heading`` by the first one below the heading "A heading".
Tables of files that do not exist here stay, and the files are listed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MARKER = re.compile(r"<!-- table: ([^\s#]+)(?:#(\S+))? -->$")


def read_table(path: Path, anchor: str | None) -> list[str]:
    """The lines of a file's first table, or of the first one below a heading, without the padding of its cells.

    Args:
        path: the Markdown file.
        anchor: the heading in lower case, with hyphens for all but letters and digits.

    Raises:
        ValueError: the file has no such table.
    """
    lines: list[str] = []
    below = anchor is None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not lines:
            below = anchor in (None, re.sub(r"[^a-z0-9]+", "-", line.lower()).strip("-"))
        elif line.startswith("|") and below:
            cells = [re.sub(r"^(:?)-+(:?)$", r"\1---\2", cell.strip()) for cell in line.strip("|").split("|")]
            lines.append("| " + " | ".join(cells) + " |")
        elif lines:
            break
    if not lines:
        raise ValueError(f"{path}: no table" + (f" below a heading #{anchor}" if anchor else ""))
    return lines


def insert_tables(text: str, missing: list[str]) -> Iterator[str]:
    """The lines of a document with its tables replaced; the names of missing files are added to ``missing``."""
    replacing = False
    for line in text.splitlines():
        if replacing and line.startswith("|"):
            continue
        replacing = False
        yield line
        if found := MARKER.match(line):
            if Path(found[1]).is_file():
                replacing = True
                yield from read_table(Path(found[1]), found[2])
            else:
                missing.append(found[1])


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        missing: list[str] = []
        text = path.read_text(encoding="utf-8")
        try:
            changed = "\n".join(insert_tables(text, missing)) + "\n"
        except ValueError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        path.write_text(changed, encoding="utf-8")
        for name in missing:
            print(f"{path}: {name} does not exist here, so its table is unchanged")


if __name__ == "__main__":
    main()
