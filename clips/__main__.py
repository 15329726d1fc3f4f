"""``python -m clips``, for launchers that start modules."""

import sys

from clips.cli import main

sys.exit(main())
