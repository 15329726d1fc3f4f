"""Commands whose options are the fields of a frozen dataclass, and their progress output."""
