"""Data: sources to images, the order they come in, and the pipeline to the devices."""
