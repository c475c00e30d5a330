"""Beams, probes, propagation and scattering."""
