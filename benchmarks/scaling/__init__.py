"""How a tilt's work scales with ranks: measured here, and a model of more; ``python -m benchmarks.scaling PART``."""
