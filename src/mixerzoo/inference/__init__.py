"""What a model sees: predictions and accuracy."""
