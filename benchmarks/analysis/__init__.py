"""What makes numbers trustworthy: what differs between two, what can be told from them, what they are checked by."""
