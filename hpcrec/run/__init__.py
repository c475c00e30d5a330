"""Job file, plan, pipeline, progress, provenance."""
