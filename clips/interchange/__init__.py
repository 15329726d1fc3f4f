"""Import and export of encoders: ``clips import`` and ``clips export --format``.

Each format is one file with ``load``, ``export``, or both.
"""
