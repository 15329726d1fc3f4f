"""Import and export of encoders: ``clips import`` and ``clips export --format``.

Each format is one file with ``load``, ``export``, or both, and an entry in ``IMPORT_FORMATS`` of
`clips.interchange.importing` or ``EXPORT_FORMATS`` of `clips.interchange.exporting`.
"""
