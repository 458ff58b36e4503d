"""A gateway in one file, and back."""
