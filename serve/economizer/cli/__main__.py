"""``python -m economizer.cli``."""

import sys

from economizer.cli import main

sys.exit(main())
