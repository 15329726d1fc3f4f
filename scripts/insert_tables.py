"""Insert the tables of reports into documents, so that no number is typed.

    python scripts/insert_tables.py README.md docs/evidence.md

A line ``<!-- table: FILE -->`` names a Markdown file, relative to the working directory; the table that follows it is
replaced by the first table of that file. Tables of files that do not exist here are kept, and listed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MARKER = re.compile(r"<!-- table: (\S+) -->$")


def read_table(path: Path) -> list[str]:
    """The lines of a file's first table, without the padding of its cells.

    Raises:
        ValueError: the file has no table.
    """
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            cells = [re.sub(r"^(:?)-+(:?)$", r"\1---\2", cell.strip()) for cell in line.strip("|").split("|")]
            lines.append("| " + " | ".join(cells) + " |")
        elif lines:
            break
    if not lines:
        raise ValueError(f"{path}: no table")
    return lines


def insert_tables(text: str, kept: list[str]) -> Iterator[str]:
    """The lines of a document with its tables replaced; the names of missing files are added to ``kept``."""
    replacing = False
    for line in text.splitlines():
        if replacing and line.startswith("|"):
            continue
        replacing = False
        yield line
        if found := MARKER.match(line):
            if Path(found[1]).is_file():
                replacing = True
                yield from read_table(Path(found[1]))
            else:
                kept.append(found[1])


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        kept: list[str] = []
        text = path.read_text(encoding="utf-8")
        try:
            changed = "\n".join(insert_tables(text, kept)) + "\n"
        except ValueError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        path.write_text(changed, encoding="utf-8")
        for missing in kept:
            print(f"{path}: kept the table of {missing}, which does not exist here")


if __name__ == "__main__":
    main()
