"""Evaluations of a trained classifier: functions of a model and tensors that leave the model
unchanged."""
