"""Run the notebooks, one after the other in an empty directory, and store what they show in them.

    python scripts/docs/run_notebooks.py

Log lines and warnings, which name files of the machine, are left out. A notebook states the hash of the cells that its
outputs are from, so that a test finds one that was edited and not run.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
ORDER = ("train_a_clips", "plug_into_llava", "test_other_scores")  # the second uses the encoder of the first


def execute(notebook: nbformat.NotebookNode, directory: Path) -> None:
    """Run a notebook in place, in a directory."""
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(directory)}}).execute()


def hash_of_cells(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the sources of all cells."""
    return hashlib.sha256(json.dumps([cell.source for cell in notebook.cells]).encode()).hexdigest()


def main() -> None:
    """Run and store all notebooks."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ORDER:
            notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
            execute(notebook, Path(directory))
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # times
                if cell.cell_type == "code":
                    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            notebook.metadata["hash_of_cells"] = hash_of_cells(notebook)
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
            print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
