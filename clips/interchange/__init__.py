"""Encoders from and for other formats: ``clips import`` and ``clips export --format``.

Each format is one file with ``read`` (from it), ``write`` (to it), or both, and one entry in ``IMPORTS`` of
`clips.interchange.importing` or in ``EXPORTS`` of `clips.interchange.exporting`.
"""
