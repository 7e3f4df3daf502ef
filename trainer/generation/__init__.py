"""Drawing images from a generator, and exporting it."""
