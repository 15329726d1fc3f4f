"""Images, captions, conversations and classes: the readers of dataset formats, and sources by index."""

from clips.data.images import InvalidImageError, decode_image
from clips.data.lazy_images import image_exists, open_image, read_image_bytes

__all__ = ["InvalidImageError", "decode_image", "image_exists", "open_image", "read_image_bytes"]
