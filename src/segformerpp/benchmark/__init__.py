"""Measuring networks: how fast, how much memory, how much arithmetic."""
