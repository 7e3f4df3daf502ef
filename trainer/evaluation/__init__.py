"""Measuring how good a run's images are, during training and afterwards."""
