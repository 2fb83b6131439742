"""Training: settings, augmentation, loss, and the run itself, on Lightning."""
