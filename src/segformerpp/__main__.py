"""``python -m segformerpp``."""

from segformerpp.cli import run

run()
