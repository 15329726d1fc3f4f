"""``clips-bench similarity-map``: similarity map of an image and a phrase.

clips-bench similarity-map runs/clips --image photo.jpg --phrase "a dog" --output dog.png
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from clips.core.artifact import atomic_write, log_info
from clips.errors import UserError

_MAX_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class SimilarityMapConfig:
    """Write an image–phrase similarity map: the image, bright where the encoder finds it similar to the phrase.

    Args:
        encoder: an encoder directory with a text tower (open_clip format), or ``hf-hub:ORG/NAME``.
        image: the image file.
        phrase: the phrase.
        output: the PNG file to write; its longest side is at most 1,024 pixels.
    """

    encoder: str
    image: str
    phrase: str
    output: str

    def __post_init__(self) -> None:
        if not self.phrase.strip():
            raise UserError("phrase: expected text, got none")
        if Path(self.output).suffix.lower() != ".png":
            raise UserError(f"output: expected a name that ends in .png, got '{self.output}'")


def run_similarity_map(config: SimilarityMapConfig) -> None:
    """Run ``clips-bench similarity-map``.

    Raises:
        UserError: no such encoder or image, or a tower without patches.
    """
    from clips.data.images import InvalidImageError, decode_image

    try:
        image = decode_image(Path(config.image).read_bytes())
    except OSError as error:
        raise UserError(f"image: {config.image}: expected an image ({error.strerror})") from None
    except InvalidImageError as error:
        raise UserError(f"image: {config.image}: {error}") from None
    import torch

    from benchmarks.tasks.encoders.embedding import embed_texts, load_dual_encoder
    from benchmarks.tasks.encoders.patch_embeddings import patch_embeddings, similarity_maps
    from benchmarks.tasks.encoders.pointing import VisibleRegion, overlay_map, upsample_map
    from llava_bridge.encoders.spec import resolve_open_clip_dir

    encoder = load_dual_encoder(str(resolve_open_clip_dir(config.encoder)), "cpu", "auto")
    with torch.inference_mode():
        patches = patch_embeddings(encoder.model, encoder.preprocess(image)[None])[0]
        found = similarity_maps(patches, embed_texts(encoder, [config.phrase], 1))[0]
    visible = VisibleRegion.of(encoder.preprocessing, *image.size)
    row, column = divmod(int(found.argmax()), found.shape[1])
    x, y = (centers[index] for centers, index in zip(visible.centers(*found.shape), (column, row), strict=True))
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    stream = io.BytesIO()
    overlay_map(image, upsample_map(found), visible).save(stream, "PNG")
    atomic_write(Path(config.output), stream.getvalue())
    rows, columns = found.shape
    log_info(
        f"{config.output}: brightest {100 * x:.0f} % from the left, {100 * y:.0f} % from the top; "
        f"similarity {float(found.min()):.3f} to {float(found.max()):.3f} over {rows} x {columns} patches"
    )
