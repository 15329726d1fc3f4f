"""The page's galleries of examples, from outputs that the evaluation saved."""
