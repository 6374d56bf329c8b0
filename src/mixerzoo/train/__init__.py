"""Training: recipes, the loop, its checkpoints."""
