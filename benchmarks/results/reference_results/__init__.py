"""Numbers that others have printed, with their sources: facts, copied as data (see NOTICE)."""
