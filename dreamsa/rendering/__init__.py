"""Rendering: cameras, rays, sampling and compositing. A scene is a function of points."""
