"""Comparisons, benchmarks and the project's own measurements."""
