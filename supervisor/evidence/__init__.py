"""What stays of a run: its record."""
