"""Every mesh of eight devices against one device; see `__main__`."""
