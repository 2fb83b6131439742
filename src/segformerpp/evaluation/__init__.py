"""How good predictions are: against masks, and beside those of another form of the network."""
