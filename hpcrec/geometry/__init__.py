"""Grids, scans, poses and boxes: pure arithmetic on coordinates."""
