"""The fields of ``clips train`` that say how a run is carried out, not what comes of it; it may go on with others."""

FREE = (
    *("output", "track", "log_every", "checkpoint_every", "keep_checkpoints", "keep_after_training", "may_change"),
    *("micro_batch", "scale", "validation", "data.workers", "data.cache_images", "data.max_bad_share", "licence"),
)
FREE_OF_SOURCES = ("cache", "cache_gb")
"""The same of each of ``data.sources``."""
