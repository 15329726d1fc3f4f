"""Import and export of encoders: ``clips import`` and ``clips export --format``.

Each format is one file with ``read``, ``write``, or both, and one entry in ``IMPORTS`` of `clips.interchange.importing`
or in ``EXPORTS`` of `clips.interchange.exporting`.
"""
