"""``python -m benchmarks``: the command, also for launchers that start modules."""

import sys

from benchmarks.cli import main

sys.exit(main())
