"""Measures of objects: the judge, scores, geometry against the true objects."""
