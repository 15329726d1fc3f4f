"""Insert the tables of reports into documents, so that no number is typed.

    python scripts/insert_tables.py README.md docs/evidence.md

A line ``<!-- table: FILE -->`` names a Markdown file, relative to the working directory; the table that follows it is
replaced by the first table of that file. Tables of files that do not exist here stay, and the files are listed.
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
                yield from read_table(Path(found[1]))
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
