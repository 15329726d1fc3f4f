"""Studies that are part of the package and addressed by name: ``clips-bench study run mini``."""

from __future__ import annotations

from pathlib import Path

from clips.errors import unknown_name_error

BUILTIN_STUDIES_DIR = Path(__file__).parents[1] / "studies"


def resolve_study_file(named: str) -> str:
    """The study file of a path or of the name of a built-in study.

    Raises:
        UserError: a plain name that is neither a file nor a built-in study.
    """
    built_in = {path.stem: str(path) for path in BUILTIN_STUDIES_DIR.glob("*.yaml")}
    if Path(named).is_file() or Path(named).name != named or Path(named).suffix:
        return named
    if named not in built_in:
        raise unknown_name_error(named, built_in, "study (a file, or the name of a built-in study)")
    return built_in[named]
