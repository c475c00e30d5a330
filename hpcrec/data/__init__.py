"""Data sets, batches, preparation and simulation."""
