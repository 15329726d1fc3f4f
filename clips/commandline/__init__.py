"""Commands whose options are the fields of a frozen dataclass, and what they tell while they run."""
