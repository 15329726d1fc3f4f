"""``clips caption``: the caption that a trained captioner generates for an image.

clips caption photo.jpg --encoder runs/clips --web_caption "my dog"
clips caption photo.jpg --encoder runs/coca --num_beams 4 --html_output caption.html
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

from clips.core.artifact import atomic_write, log_info
from clips.data.images import BadImageError, decode_image
from clips.errors import UserError, error_reason
from clips.model.tokenizer import ClipsTokenizer
from clips.model_refs import check_captioner
from clips.sanitize import jinja_finalize, strip_control_chars

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ caption }}</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem">
<img alt="" style="max-width: 100%" src="data:;base64,{{ image }}">
<p>{{ caption }}</p>
{% if web %}<p style="color: #57606a">web caption: {{ web }}</p>{% endif %}
<p style="color: #57606a">{{ encoder }}</p>
</body></html>
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Print what the captioner of an encoder directory says of an image.

    Args:
        image: the image's file.
        encoder: the encoder directory; its recipe must have trained a captioner.
        web_caption: the image's web caption, which the captioner of CLIPS reads next to the image.
        num_beams: 1 takes the most probable word each time; more search for a likelier whole, where the captioner is
        fed
            its own words.
        html_output: an HTML page with image and caption to write as well.
    """

    image: str
    encoder: str
    web_caption: str = ""
    num_beams: int = 1
    html_output: str | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise UserError(f"num_beams: expected 1 or more, got {self.num_beams}")


def run_caption(config: CaptionConfig) -> None:
    """Carry out ``config``."""
    content = _read(config.image)
    check_captioner(Path(config.encoder))
    import torch

    from clips.encoder import load_captioner, load_encoder
    from clips.model import towers
    from clips.model.generation import generate

    captioner, encoder = load_captioner(config.encoder), load_encoder(config.encoder)
    try:
        image = decode_image(content)
    except BadImageError as error:
        raise UserError(f"{config.image}: {error}") from None
    with torch.inference_mode():
        image_tokens = towers.encode_image(encoder.model, encoder.preprocess(image)[None])[1]
        text_tokens = None
        if captioner.text_projection is not None:
            text_tokens = towers.encode_text(encoder.model, encoder.tokenizer([config.web_caption]))[1]
        said = ClipsTokenizer().decode(generate(captioner, image_tokens, text_tokens, num_beams=config.num_beams))
    print(strip_control_chars(said))
    if config.html_output:
        _write_page(config, content, said)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected an image ({error_reason(error)})") from None


def _write_page(config: CaptionConfig, content: bytes, said: str) -> None:
    import jinja2

    assert config.html_output is not None
    page = jinja2.Environment(autoescape=True, finalize=jinja_finalize).from_string(_PAGE)
    image = base64.b64encode(content).decode()
    atomic_write(
        Path(config.html_output),
        page.render(caption=said, picture=image, web=config.web_caption, encoder=config.encoder),
    )
    log_info(f"html_output: {config.html_output}")
