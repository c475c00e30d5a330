"""Resolution, atoms and quality."""
