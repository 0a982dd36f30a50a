"""Rendering: cameras, rays, samples, compositing. Knows a scene only as a function of points."""
