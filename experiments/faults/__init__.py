"""Faults done to real training runs, and what they cost; see __main__.py."""
