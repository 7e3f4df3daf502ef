"""Turns pictures into prepared sets: shards of images, labels and a manifest."""
