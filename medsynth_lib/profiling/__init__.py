"""What a training step keeps in memory, what it computes and moves, and what fits on which card."""
