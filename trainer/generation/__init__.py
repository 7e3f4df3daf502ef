"""Draws images from a generator, and exports the generator."""
