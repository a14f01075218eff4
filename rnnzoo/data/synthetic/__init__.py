"""Data sets that are generated and never end, one a file."""
