"""The embedded world: objects, renderer, captions, and the recipe of the models trained on it."""
