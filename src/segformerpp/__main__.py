"""``python -m segformerpp``."""

import sys

from segformerpp.cli import main

sys.exit(main())
