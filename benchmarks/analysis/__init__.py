"""Analysis of results: differences of two results, comparisons with tests, provenance and checks of the harness."""
