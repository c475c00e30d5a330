"""The steps of the tomography stage, each a pure function."""
