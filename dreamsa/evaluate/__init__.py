"""Measuring: the judge, geometry against the true objects, timings."""
