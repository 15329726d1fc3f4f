"""Looking on while a study or a training runs. Everything here reads only, and takes no lock."""
