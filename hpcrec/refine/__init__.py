"""What is refined beside object and probe."""
