"""Take the README's screenshot of a report: the first screen of its page, in the light scheme.

    python scripts/screenshot_report.py runs/demo docs/report.png

Needs playwright (the extra `dev`) and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

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
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        image = Image.open(io.BytesIO(page.screenshot(scale="css"))).convert("RGB")
        browser.close()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
