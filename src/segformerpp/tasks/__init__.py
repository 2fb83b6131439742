"""What a task means: pre-processing, post-processing, and results that plot and save themselves."""
