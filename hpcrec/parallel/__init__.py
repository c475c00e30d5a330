"""Ranks: communicators and the exchanges that turn partial sums into totals."""
