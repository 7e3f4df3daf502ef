"""The machine: devices, replicas, workers, signals, memory, and the diagnosis of missing GPUs."""
