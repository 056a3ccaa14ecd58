"""Building blocks shared by several networks, one kind per file."""
