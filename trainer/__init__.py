"""Distributed training of generative adversarial networks on TensorFlow."""

__version__ = "0.2.0"
