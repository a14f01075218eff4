"""Compares every mesh of eight devices with one device; see __main__.py."""
