"""Compiled loops (numba), each with its NumPy twin."""
