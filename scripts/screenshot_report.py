"""Take the README's screenshots of a report: the first screen of its page, in a light and a dark scheme (-dark.png).

    python scripts/screenshot_report.py runs/demo docs/report.png

Needs playwright (the extra `dev`) and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image

WIDTH, HEIGHT = 1280, 1120
COLORS = 128


def main() -> int:
    from playwright.sync_api import sync_playwright

    directory, output = map(Path, sys.argv[1:])
    page_file = directory / "report" / "index.html"
    if not page_file.is_file():
        print(f"{page_file}: expected the report of a study", file=sys.stderr)
        return 2
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        schemes: list[tuple[Literal["light", "dark"], Path]]
        schemes = [("light", output), ("dark", output.with_stem(f"{output.stem}-dark"))]
        for scheme, file in schemes:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page.goto(page_file.resolve().as_uri())
            image = Image.open(io.BytesIO(page.screenshot(scale="css"))).convert("RGB")
            image.quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
