"""Evaluates the image quality of a run, during training and afterwards."""
