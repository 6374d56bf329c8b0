"""Finding, verifying and loading weights."""
