"""What one GPU does, correctness first: ``python -m benchmarks.gpu``, see ``__main__.py``."""
