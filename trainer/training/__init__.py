"""Training: objective, updates, the compiled steps, the host loop."""
