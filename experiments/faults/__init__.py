"""Injects faults into real training runs; see __main__.py."""
