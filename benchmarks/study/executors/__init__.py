"""Where a study's steps run. An executor is one entry in ``catalogue.EXECUTORS``; the runner knows ``base`` only."""
