"""What the figures of speed and memory come from: `python -m benchmarks`."""
