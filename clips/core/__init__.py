"""What all commands share: artifacts, the identity of a run, and caches."""
