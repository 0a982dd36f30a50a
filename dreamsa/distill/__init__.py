"""Distillation methods, as pure functions: noise predictions to a gradient in the latents."""
