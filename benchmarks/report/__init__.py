"""Reports: from a study's results to one page, and to tables that a paper can paste."""
