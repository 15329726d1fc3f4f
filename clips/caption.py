"""What a trained captioner says of a picture.

clips caption photo.jpg --encoder runs/clips --web "my dog"
clips caption photo.jpg --encoder runs/coca --beams 4 --page caption.html
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from clips.artifact import say, write_file
from clips.data.images import BadImageError, decode_image
from clips.encoder import load_captioner, load_encoder
from clips.errors import UserError, reason_of
from clips.model import towers
from clips.model.captioner import Captioner
from clips.model.tokenizer import BOS, EOS, PAD, ClipsTokenizer
from clips.visible import shown, visible

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ caption }}</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem">
<img alt="" style="max-width: 100%" src="data:;base64,{{ picture }}">
<p>{{ caption }}</p>
{% if web %}<p style="color: #57606a">web caption: {{ web }}</p>{% endif %}
<p style="color: #57606a">{{ encoder }}</p>
</body></html>
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Print what the captioner of an encoder directory says of a picture.

    Args:
        image: the picture's file.
        encoder: the encoder directory; its recipe must have trained a captioner.
        web: the picture's web caption, which the captioner of CLIPS reads beside the picture.
        beams: 1 takes the likeliest word each time; more search for a likelier whole, where the captioner is fed its
            own words.
        page: an HTML page with picture and caption to write as well.
    """

    image: str
    encoder: str
    web: str = ""
    beams: int = 1
    page: str | None = None

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise UserError(f"beams: expected 1 or more, got {self.beams}")


def caption(config: CaptionConfig) -> None:
    """Carry out ``config``."""
    content = _read(config.image)
    captioner, encoder = load_captioner(config.encoder), load_encoder(config.encoder)
    try:
        picture = decode_image(content)
    except BadImageError as error:
        raise UserError(f"{config.image}: {error}") from None
    with torch.inference_mode():
        image_tokens = towers.encode_image(encoder.model, encoder.preprocess(picture)[None])[1]
        text_tokens = None
        if captioner.text_projection is not None:
            text_tokens = towers.encode_text(encoder.model, encoder.tokenizer([config.web]))[1]
        said = ClipsTokenizer().decode(generate(captioner, image_tokens, text_tokens, beams=config.beams))
    print(visible(said))
    if config.page:
        _write_page(config, content, said)


def generate(captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None, *, beams: int = 1) -> list[int]:
    """The tokens of one picture's caption, without begin and end token.

    A captioner of learnable tokens predicts all words at once, none knowing the others. A teacher-forced one is fed
    its own words: greedily, or by beam search over the mean log-probability of a word.

    Args:
        captioner: in evaluation mode.
        image_tokens: (1, I, image width).
        text_tokens: (1, W, text width), or None if it reads no text.
        beams: captions kept at a time.

    Raises:
        UserError: more than one beam where the words do not depend on each other.
    """
    if captioner.embedding is None:
        if beams > 1:
            raise UserError("beams: expected 1, since this captioner predicts all words at once")
        return _until_end(captioner.logits(image_tokens, text_tokens)[0].argmax(dim=-1).tolist())
    kept, done = [([BOS], 0.0)], []
    for _ in range(captioner.config.length - 1):
        rows = torch.tensor([tokens for tokens, _ in kept], device=image_tokens.device)
        images = image_tokens.expand(len(kept), -1, -1)
        texts = None if text_tokens is None else text_tokens.expand(len(kept), -1, -1)
        scores = captioner.logits(images, texts, rows)[:, -1].log_softmax(dim=-1)
        scores[:, [PAD, BOS]] = -torch.inf
        best, tokens = scores.topk(beams, dim=-1)
        grown = [
            ([*kept[row][0], int(tokens[row, rank])], kept[row][1] + float(best[row, rank]))
            for row in range(len(kept))
            for rank in range(beams)
        ]
        grown.sort(key=lambda item: -item[1])
        done += [item for item in grown[:beams] if item[0][-1] == EOS]
        kept = [item for item in grown if item[0][-1] != EOS][:beams]
        if len(done) >= beams:
            break
    best_of = max(done or kept, key=lambda item: item[1] / (len(item[0]) - 1))
    return _until_end(best_of[0][1:])


def generate_each(captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None) -> list[list[int]]:
    """What `generate` gives for each of B pictures, with one beam.

    Args:
        captioner: in evaluation mode.
        image_tokens: (B, I, image width).
        text_tokens: (B, W, text width), or None if it reads no text.
    """
    if captioner.embedding is None:
        hidden = captioner.decode(image_tokens, text_tokens)  # the head one by one: its logits are 32,000 a word
        return [_until_end(captioner.head(row).argmax(dim=-1).tolist()) for row in hidden]
    return [
        generate(captioner, image_tokens[n : n + 1], None if text_tokens is None else text_tokens[n : n + 1])
        for n in range(len(image_tokens))
    ]


def _until_end(tokens: list[int]) -> list[int]:
    kept = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return [token for token in kept if token not in {PAD, BOS}]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a picture ({reason_of(error)})") from None


def _write_page(config: CaptionConfig, content: bytes, said: str) -> None:
    import jinja2

    assert config.page is not None
    page = jinja2.Environment(autoescape=True, finalize=shown).from_string(_PAGE)
    picture = base64.b64encode(content).decode()
    write_file(Path(config.page), page.render(caption=said, picture=picture, web=config.web, encoder=config.encoder))
    say(f"page: {config.page}")
