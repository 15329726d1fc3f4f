"""Model cards: README.md of an artifact, rendered from its manifest with the templates in cards/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clips.core.artifact import MANIFEST, atomic_write, read_manifest
from clips.method.recipes import RECIPES
from clips.model_refs import CAPTIONER_WEIGHTS, OPEN_CLIP_CONFIG
from clips.safe_text import escape_markdown
from clips.text_files import safe_json_loads

MODEL_CARD = "README.md"
CARD_TEMPLATES_DIR = Path(__file__).parent / "cards"
_VALIDATION_PREFIX = "val_"  # of entries in metrics.jsonl


def write_card(directory: Path, template: str, **facts: Any) -> None:
    """Write README.md from ``cards/<template>.md``; a missing variable of the template is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(CARD_TEMPLATES_DIR),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": escape_markdown, "yaml": _yaml_text, "code": _code}  # a license is untrusted text
    atomic_write(directory / MODEL_CARD, environment.get_template(f"{template}.md").render(facts))


def _yaml_text(text: str) -> str:
    """Text as a value in the card's YAML header, on one line."""
    import yaml

    return yaml.safe_dump(" ".join(text.split()), allow_unicode=True, width=10**6).splitlines()[0]


def _code(text: str) -> str:
    """Text as code in Markdown, on one line."""
    return f"`{repr(text)[1:-1]}`"


def write_model_card(directory: Path, manifest: dict[str, Any]) -> None:
    """The card of a trained encoder.

    Args:
        directory: the encoder directory, with its config.
        manifest: the training's manifest: ``last`` may have validation results, ``data`` the entries of the sources.
    """
    config = manifest["config"]
    recipe = config["recipe"]
    encoder = safe_json_loads((directory / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    write_card(
        directory,
        "trained",
        manifest=manifest,
        config=config,
        model_cfg=encoder["model_cfg"],
        strategy=recipe["caption_strategy"] or RECIPES[recipe["name"]].caption_strategy,
        loss=recipe["loss"] or RECIPES[recipe["name"]].loss,
        captioner=(directory / CAPTIONER_WEIGHTS).is_file(),
        license=manifest.get("license") or "unknown",
        described=manifest["data"].get("sources", []),
        stages=manifest["stages"],
        results=validation_recalls(manifest.get("last") or {}),
    )


def license_from_manifest(directory: Path) -> str:
    """The license in an artifact's manifest, "unknown" if it has none."""
    return str(read_manifest(directory).get("license") or "unknown") if (directory / MANIFEST).is_file() else "unknown"


def validation_recalls(entry: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Validation R@1 in an entry of metrics.jsonl: caption type → direction (i2t, t2i) → recall."""
    recalls: dict[str, dict[str, float]] = {}
    for name, value in entry.items():
        if name.startswith(_VALIDATION_PREFIX):
            caption_type, direction, _ = name.removeprefix(_VALIDATION_PREFIX).rsplit("_", 2)
            recalls.setdefault(caption_type, {})[direction] = value
    return recalls
