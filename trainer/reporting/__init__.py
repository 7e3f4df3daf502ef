"""What a run reports: its record, TensorBoard, Prometheus, the console, its status."""
