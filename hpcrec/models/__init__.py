"""Reconstruction state, partial sums, forward models and their gradients."""
