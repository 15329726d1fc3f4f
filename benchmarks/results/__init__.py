"""Result files, their metrics, statistics and published reference results."""
