"""Caption an image with a trained captioner.

clips caption photo.jpg --encoder runs/clips --web_caption "my dog"
clips caption photo.jpg --encoder runs/coca --num_beams 4 --html_output caption.html
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

from clips.core.artifact import atomic_write, log_info
from clips.data.images import InvalidImageError, decode_image
from clips.errors import UserError, error_reason
from clips.model.tokenizer import ClipsTokenizer
from clips.model_refs import check_captioner
from clips.safe_text import jinja_finalize, strip_control_chars

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
    """Print the caption that the captioner of an encoder directory generates for an image.

    Args:
        image: the image file.
        encoder: the encoder directory; its recipe must have trained a captioner.
        web_caption: the image's web caption, an additional input of the captioner of CLIPS.
        num_beams: 1 is greedy decoding; more beams search for a more probable caption if the captioner is
            autoregressive.
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
    """Run `clips caption`."""
    try:
        content = Path(config.image).read_bytes()
    except OSError as error:
        raise UserError(f"{config.image}: expected an image ({error_reason(error)})") from None
    check_captioner(Path(config.encoder))
    import torch

    from clips.encoder import load_captioner, load_encoder
    from clips.model import towers
    from clips.model.generation import generate

    captioner, encoder = load_captioner(config.encoder), load_encoder(config.encoder)
    try:
        image = decode_image(content)
    except InvalidImageError as error:
        raise UserError(f"{config.image}: {error}") from None
    with torch.inference_mode():
        _, image_tokens = towers.encode_image(encoder.model, encoder.preprocess(image)[None])
        text_tokens = None
        if captioner.text_projection is not None:
            text_tokens = towers.encode_text(encoder.model, encoder.tokenizer([config.web_caption]))[1]
        caption = ClipsTokenizer().decode(generate(captioner, image_tokens, text_tokens, num_beams=config.num_beams))
    print(strip_control_chars(caption))
    if config.html_output:
        import jinja2

        environment = jinja2.Environment(autoescape=True, finalize=jinja_finalize, undefined=jinja2.StrictUndefined)
        encoded = base64.b64encode(content).decode()
        page = environment.from_string(_PAGE).render(
            caption=caption, image=encoded, web=config.web_caption, encoder=config.encoder
        )
        atomic_write(Path(config.html_output), page)
        log_info(f"html_output: {config.html_output}")
