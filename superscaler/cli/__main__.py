"""``python -m superscaler.cli`` is ``superscaler``."""

import sys

from superscaler.cli import main

sys.exit(main())
