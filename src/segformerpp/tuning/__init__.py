"""A merge plan for the user's own model, images and machine: searched for, within a budget."""
