"""Metrics of generated images, computed from features and logits."""
