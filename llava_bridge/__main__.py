"""``python -m llava_bridge``: the command, also for launchers that start modules."""

import sys

from llava_bridge.cli import main

sys.exit(main())
