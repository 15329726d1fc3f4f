"""Train CLIP encoders on web captions and long synthetic captions (CLIPS, arXiv 2411.16828)."""
