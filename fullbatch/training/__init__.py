"""Training: the state, one step, and the loop around it with its records and checkpoints."""
