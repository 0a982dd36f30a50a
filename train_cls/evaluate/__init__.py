"""What a trained classifier is worth: plain functions of a model and tensors that leave the model as they found it."""
