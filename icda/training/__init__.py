"""The training step and what surrounds it: losses, mixing, mean teacher, optimiser, loop, checkpoints."""
