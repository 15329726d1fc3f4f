"""Studies that come with the package and are called by their name: ``clips-bench study run mini``."""

from __future__ import annotations

from pathlib import Path

from clips.errors import unknown_name_error

BUILTIN_STUDIES_DIR = Path(__file__).parents[1] / "studies"


def resolve_study_file(named: str) -> str:
    """The study file that ``named`` means: a path, or the name of a study that is shipped.

    Raises:
        UserError: a plain name that is neither a file nor a shipped study.
    """
    shipped = {path.stem: str(path) for path in BUILTIN_STUDIES_DIR.glob("*.yaml")}
    if Path(named).is_file() or Path(named).name != named or Path(named).suffix:
        return named
    if named not in shipped:
        raise unknown_name_error(named, shipped, "study (a file, or the name of one that is shipped)")
    return shipped[named]
