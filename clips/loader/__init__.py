"""The training loader: the order of samples, reading ahead, augmentation, batches, and what was invalid."""
