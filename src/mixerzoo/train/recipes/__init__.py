"""One file a recipe; each header states what it reaches."""
