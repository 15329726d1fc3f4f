"""The page of ``llava-bridge serve``: complete in itself, readable in light and dark, and right in a browser."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colors import contrast
from report_study import Page
from serving import serve_app

from llava_bridge.inference.streaming import GenerationParams, Prompt, StreamedAnswer

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from llava_bridge.serving import app as serving
from llava_bridge.serving import worker

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HELPERS = """
const sleep = ms => new Promise(done => setTimeout(done, ms));
async function until(what) {
  for (let i = 0; i < 500 && !what(); i++) await sleep(20);
  if (!what()) throw new Error(`never: ${what}`);
}
async function picture(color) {
  const canvas = new OffscreenCanvas(40, 24), pen = canvas.getContext("2d");
  pen.fillStyle = color;
  pen.fillRect(0, 0, 40, 24);
  return new File([await canvas.convertToBlob()], `${color}.png`, {type: "image/png"});
}
function drop(file) {
  const data = new DataTransfer();
  data.items.add(file);
  document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}
function type(text, key = "Enter") {
  document.getElementById("question").value = text;
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
}
const turns = () => [...document.querySelectorAll(".turn")].map(turn => turn.textContent);
const counts = () => document.querySelectorAll(".counts").length;
const complaints = [];
addEventListener("error", event => complaints.push(event.message));
addEventListener("securitypolicyviolation", event => complaints.push(event.violatedDirective));
"""


class Site:
    """A server whose model is played by ``self.replies``, and whose page runs a script that reports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.asked: list[tuple[list[Any], list[Any], GenerationParams]] = []
        self.reports: queue.Queue[Any] = queue.Queue()
        self.page, self.folder = folder / "page.html", folder
        self.cancelled = threading.Event()
        monkeypatch.setattr(worker, "prepare_prompt", self.prompt)
        monkeypatch.setattr(worker, "generate_answers", self.replies)
        monkeypatch.setattr(serving, "PAGE_FILE", self.page)

    def prompt(
        self, model: Any, processor: Any, pictures: Any, messages: Any, decoding: GenerationParams, **told: Any
    ) -> Prompt:
        """Keep what is asked for, as the model has neither tokenizer nor context."""
        self.asked.append((pictures, messages, decoding))
        return Prompt(ids=[0], images=pictures, params=decoding, max_new_tokens=1, **told)

    def replies(self, model: Any, processor: Any, prompts: list[Prompt]) -> list[StreamedAnswer]:
        """Say the color of the last image, and on and on of what is endless."""
        (prompt,), question = prompts, self.asked[-1][1][-1]["content"]
        if "fail" in question:
            raise RuntimeError("as asked")
        text = f"<b>{prompt.images[-1].getpixel((0, 0))}</b>" if prompt.images else "no picture"
        for piece in text:
            prompt.on_text(piece)
        if "endless" in question:
            while not prompt.cancelled():
                time.sleep(0.01)
            self.cancelled.set()
        return [StreamedAnswer(text=text, prompt_tokens=5, new_tokens=len(text), finish="stop")]

    def browse(self, script: str, *flags: str) -> Any:
        """What ``script`` returns in a browser that has opened the page."""
        html = serving.__file__.replace("app.py", "page.html")
        run = f"""{{ {HELPERS} (async () => {{
          await until(() => document.title === "a-llava" && document.activeElement.id === "question");
          {script} }})().catch(error => ({{error: String(error)}})).then(
          found => fetch("/report", {{method: "POST", body: JSON.stringify({{complaints, ...found}})}})); }}"""
        source = Path(html).read_text(encoding="utf-8")
        self.page.write_text(source.replace("</body>", f"<script>{run}</script></body>"), encoding="utf-8")
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", *flags]
        profile = f"--user-data-dir={self.folder}/profile"
        browser = subprocess.Popen(
            [str(CHROMIUM), *quiet, profile, "--remote-debugging-port=0", self.address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return self.reports.get(timeout=90)
        finally:
            browser.terminate()
            browser.wait(30)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    site = Site(monkeypatch, tmp_path)

    async def report(request: Request) -> Response:
        site.reports.put(json.loads(await request.body()))
        return Response()

    app = serving.Server(worker.GenerationWorker(None, None), "a-llava", max_new_tokens=7).app(["127.0.0.1"])
    app.routes.append(Route("/report", report, methods=["POST"]))
    for address in serve_app(app):
        site.address = f"{address}/"  # type: ignore[attr-defined]
        yield site


def test_the_page_loads_nothing() -> None:
    page = Path(serving.__file__).with_name("page.html").read_text(encoding="utf-8")
    assert Page(page).fetched == []
    assert not re.search(r"@import|url\(|innerHTML", page)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_have_the_contrast_of_wcag_aa(scheme: int) -> None:
    page = Path(serving.__file__).with_name("page.html").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for ground in ("paper", "sheet"):
        for text in ("ink", "ink-soft", "error"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert contrast(colors["on-accent"], colors["accent"]) >= 4.5
    assert contrast(colors["accent"], colors["paper"]) >= 3


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium in the path")


@needs_browser
def test_a_dropped_image_is_part_of_the_question(site: Site) -> None:
    seen = site.browse("""
      drop(await picture("red"));
      await until(() => !document.getElementById("chosen").hidden);
      type("What is it?");
      await until(() => counts() === 1);
      type("Sure?");
      await until(() => counts() === 2);
      const first = turns(), shown = document.querySelectorAll(".user img").length;
      document.getElementById("reset").click();
      type("And now?");
      await until(() => counts() === 1);
      return {focus: document.activeElement.id, first, shown, second: turns(),
              bold: document.querySelectorAll("b").length,
              wide: document.documentElement.scrollWidth, width: innerWidth};
    """, "--window-size=390,800")  # fmt: skip
    red = "<b>(255, 0, 0)</b>"
    assert seen["first"] == ["What is it?", red, "Sure?", red]
    assert seen["second"] == ["And now?", "no picture"]
    assert (seen["shown"], seen["focus"], seen["complaints"]) == (1, "question", [])
    assert seen["bold"] == 0  # what a model says is text, never part of the page
    assert seen["wide"] <= seen["width"]
    assert [message["content"] for message in site.asked[1][1]] == ["<image>\nWhat is it?", red, "Sure?"]
    assert [len(pictures) for pictures, _, _ in site.asked] == [1, 1, 0]
    assert (site.asked[0][2].temperature, site.asked[0][2].max_new_tokens) == (0, 256)


@needs_browser
def test_escape_ends_an_answer_and_a_fault_keeps_the_question(site: Site) -> None:
    seen = site.browse("""
      type("endless");
      await until(() => turns()[1] === "no picture");
      const stop = !document.getElementById("stop").hidden;
      document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
      await until(() => document.getElementById("stop").hidden);
      const stopped = turns();
      drop(new File(["no picture"], "a.png", {type: "image/png"}));
      await until(() => !document.getElementById("chosen").hidden);
      type("What is it?");
      await until(() => document.querySelector(".error"));
      const refused = turns(), kept = document.getElementById("question").value;
      document.getElementById("remove").click();
      type("please fail");
      await until(() => document.querySelectorAll(".error").length === 2);
      drop(new File(["text"], "a.txt", {type: "text/plain"}));
      await until(() => document.querySelectorAll(".error").length === 3);
      return {stop, stopped, refused, kept, faults: turns().slice(-2)};
    """)
    assert "error" not in seen, seen
    assert seen["stop"]
    assert seen["stopped"] == ["endless", "no picture …"]
    assert seen["refused"][2:] == ["messages[2].content[0].image_url.url: undecodable image"]
    assert seen["kept"] == "What is it?"
    assert seen["faults"] == ["the server failed; its terminal shows the error", "a.txt: not an image"]
    assert site.cancelled.wait(10)
    assert seen["complaints"] == []
