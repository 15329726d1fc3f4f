"""Model cards: README.md of an artifact, rendered from its manifest with the templates in cards/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clips.core.durable import atomic_write
from clips.method.recipes import RECIPES
from clips.model_refs import CAPTIONER_WEIGHTS, OPEN_CLIP_CONFIG
from clips.safe_text import escape_markdown
from clips.text_files import safe_json_loads

MODEL_CARD = "README.md"
CARD_TEMPLATES_DIR = Path(__file__).parent / "cards"


def write_card(directory: Path, template: str, **facts: Any) -> None:
    """Write README.md from ``cards/<template>.md``; a missing variable of the template is an error."""
    import jinja2
    import yaml

    def one_line_of_yaml(text: str) -> str:
        return yaml.safe_dump(" ".join(text.split()), allow_unicode=True, width=10**6).splitlines()[0]

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(CARD_TEMPLATES_DIR),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def code(text: str) -> str:
        return f"`{repr(text)[1:-1]}`"

    # A license is untrusted text.
    environment.filters |= {"text": escape_markdown, "yaml": one_line_of_yaml, "code": code}
    atomic_write(directory / MODEL_CARD, environment.get_template(f"{template}.md").render(facts))


def write_model_card(directory: Path, manifest: dict[str, Any]) -> None:
    """The card of a trained encoder.

    Args:
        directory: the encoder directory, with its config.
        manifest: the training's manifest: ``last`` may have validation results, ``data`` the entries of the sources.
    """
    config = manifest["config"]
    recipe = config["recipe"]
    recalls: dict[str, dict[str, float]] = {}  # R@1 by caption type and direction (i2t, t2i)
    for name, value in (manifest.get("last") or {}).items():
        if name.startswith("val_"):
            caption_type, direction, _ = name.removeprefix("val_").rsplit("_", 2)
            recalls.setdefault(caption_type, {})[direction] = value
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
        results=recalls,
    )
