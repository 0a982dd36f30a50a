"""Score models: an image and a text to a noise prediction."""
