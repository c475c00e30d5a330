"""Losses, regularizers and constraints."""
