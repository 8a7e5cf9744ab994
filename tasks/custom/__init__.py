"""Tasks made from a user's functions or from learned_optimization."""
