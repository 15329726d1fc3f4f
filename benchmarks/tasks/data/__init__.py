"""The data sets of benchmarks, in the layouts in which they come."""
