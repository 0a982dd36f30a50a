"""Conversion of a field into a textured triangle mesh."""
