"""Results in the formats of other tools: import of what they measured, export of this suite's results."""
