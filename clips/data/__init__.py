"""Pictures and captions for training: sources, order, augmentation, batches."""

from clips.data.images import BadImageError, decode_image, has_reference, open_image, read_reference

__all__ = ["BadImageError", "decode_image", "has_reference", "open_image", "read_reference"]
