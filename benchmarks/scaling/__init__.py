"""How the work of a tilt scales with ranks: what is measured here, and a model of more; ``python -m benchmarks.scaling``."""
