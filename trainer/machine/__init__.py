"""The machine: devices, replicas, workers, signals, memory; and what keeps TensorFlow from GPUs."""
