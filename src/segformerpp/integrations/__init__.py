"""Token merging in other people's models."""
