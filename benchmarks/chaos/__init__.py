"""Faults struck at random into real MPI runs of a small tilt series, each of which must end with the same volume.

``python -m benchmarks.chaos --seed 1 --faults 50`` simulates a series, runs its job undisturbed, then once more
for each fault: waits for the chosen moment, strikes, watches the job end, starts it again until it is done, and judges.
The modules: ``faults`` (what, where and when, drawn by a seed), ``series`` (data and job), ``attempt`` (processes),
``strikes`` (how each kind strikes), ``verdict`` (what must hold), ``drive`` (one fault from start to end). Linux only.
"""
