"""Linear maps with exact adjoints."""
