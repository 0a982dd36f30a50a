"""Radiance fields: a 3-D point to density and colour."""
