"""Detection: what a policy's rules look for in the events of a run, and what follows."""
