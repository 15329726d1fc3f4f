"""Build the sprite sheet of the scenes and its index, in clips/scenes/data/.

    npm pack emoji-datasource-twitter@16.0.0 cldr-annotations-full@48.2.0
    mkdir emoji cldr
    tar xzf emoji-datasource-twitter-16.0.0.tgz -C emoji --strip-components=1
    tar xzf cldr-annotations-full-48.2.0.tgz -C cldr --strip-components=1
    python scripts/build_sprites.py emoji cldr

scripts/sprites.csv lists the emoji and their names. Its first rows are in their final order; the others are interleaved
so that the first N object classes are a balanced mixture of the categories for any N. The letters of rendered words are
drawn here, so that images do not depend on the version of a font library. Graphics: Twemoji (CC-BY-4.0); keywords: CLDR
(Unicode-3.0); letters: Pillow's bundled Aileron Regular (CC0-1.0).
"""

from __future__ import annotations

import csv
import json
import string
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clips.scenes.colors import hue, nearest_color_name

HAND_ORDERED = 72
CELL = 64
COLUMNS = 20
LETTER_HEIGHT = 48
DOMINANT_SHARE = 0.6
HERE = Path(__file__).parent
OUTPUT = HERE.parent / "clips" / "scenes" / "data"


def read_rows() -> list[dict[str, str]]:
    with (HERE / "sprites.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for field in ("name", "emoji"):
        names = [row[field] for row in rows]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise SystemExit(f"sprites.csv: {field} given twice: {sorted(twice)}")
    return rows[:HAND_ORDERED] + spread(rows[HAND_ORDERED:])


def spread(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Interleave the categories, each evenly over the whole list."""
    totals, seen = Counter(row["category"] for row in rows), Counter[str]()
    keyed = []
    for row in rows:
        keyed.append(((seen[row["category"]] + 0.5) / totals[row["category"]], row))
        seen[row["category"]] += 1
    return [row for _, row in sorted(keyed, key=lambda item: item[0])]


def regular_plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh", "z")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def dominant_color(sprite: Image.Image) -> tuple[str | None, list[int]]:
    """The color name that covers most of the sprite, or None; and the mean RGB of its opaque pixels."""
    pixels = np.asarray(sprite).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 128][:, :3]
    names, counts = np.unique([nearest_color_name(*(int(v) for v in pixel)) for pixel in opaque], return_counts=True)
    best = int(counts.argmax())
    clear = counts[best] / counts.sum() >= DOMINANT_SHARE
    return (str(names[best]) if clear else None), [round(float(v)) for v in opaque.mean(axis=0)]


def main_hue(sprite: Image.Image) -> int:
    """The hue, in degrees, of most of the sprite's colorful pixels, which paint replaces."""
    weights = np.zeros(360, dtype=np.int64)
    for red, green, blue, alpha in np.asarray(sprite).reshape(-1, 4).tolist():
        chroma = max(red, green, blue) - min(red, green, blue)
        if alpha > 128 and chroma > 60:
            weights[hue(red, green, blue)] += 1
    windows = [int(np.roll(weights, 15 - degrees)[:31].sum()) for degrees in range(360)]
    return int(np.argmax(windows))


def draw_letters() -> tuple[Image.Image, dict[str, list[int]]]:
    """The capital letters in one grayscale row, and letter → [left, width]."""
    font = ImageFont.load_default(LETTER_HEIGHT * 5 // 4)
    row = Image.new("L", (LETTER_HEIGHT * 30, LETTER_HEIGHT))
    draw = ImageDraw.Draw(row)
    places, left = {}, 2
    for letter in string.ascii_uppercase:
        x0, y0, x1, _ = draw.textbbox((0, 0), letter, font=font)
        draw.text((left - x0, -y0 + 1), letter, fill=255, font=font, stroke_width=1)
        places[letter] = [left - 1, int(x1 - x0) + 3]
        left += int(x1 - x0) + 6
    if left > row.width:
        raise SystemExit("the letters do not fit their row")
    return row.crop((0, 0, left, LETTER_HEIGHT)), places


def main(emoji: Path, cldr: Path) -> None:
    annotations = json.loads((cldr / "annotations/en/annotations.json").read_text("utf-8"))["annotations"][
        "annotations"
    ]
    by_name: dict[str, tuple[str, list[str]]] = {}
    for entry in json.loads((emoji / "emoji.json").read_text("utf-8")):
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-")).replace("\ufe0f", "")
        known = annotations.get(character)
        if known:
            by_name[known["tts"][0]] = (entry["image"], known["default"])
    rows = read_rows()
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(rows) // COLUMNS) * CELL))
    kinds: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        image, keywords = by_name[row["emoji"]]
        sprite = Image.open(emoji / "img/twitter/64" / image).convert("RGBA")
        if sprite.size != (CELL, CELL):
            raise SystemExit(f"{image}: expected {CELL} × {CELL} pixels, got {sprite.size}")
        sheet.paste(sprite, ((number % COLUMNS) * CELL, number // COLUMNS * CELL))
        color, mean = dominant_color(sprite)
        kinds.append(
            {
                "name": row["name"],
                "plural": row["plural"] or regular_plural(row["name"]),
                "category": row["category"],
                "color": color,
                "paint_hue": main_hue(sprite) if row["paint"] else None,
                "mean_rgb": mean,
                "keywords": [word for word in keywords if word.lower() != row["name"].lower()],
                "emoji": image.removesuffix(".png"),
            }
        )
    letters, places = draw_letters()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    sheet.save(OUTPUT / "twemoji.webp", lossless=True, quality=100, method=6, exact=False)
    letters.save(OUTPUT / "letters.png", optimize=True)
    index = {"cell": CELL, "columns": COLUMNS, "kinds": kinds, "letters": places}
    lines = ",\n".join("  " + json.dumps(kind, ensure_ascii=False) for kind in kinds)
    text = json.dumps({**index, "kinds": "@"}, ensure_ascii=False).replace('"@"', f"[\n{lines}\n]")
    (OUTPUT / "twemoji.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(kinds)} sprites, {(OUTPUT / 'twemoji.webp').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
