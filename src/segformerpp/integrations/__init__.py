"""Other people's models: transformers', made to merge tokens, and its detectors of people."""
