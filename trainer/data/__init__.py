"""Data sets, the order of the images and the input pipeline."""
