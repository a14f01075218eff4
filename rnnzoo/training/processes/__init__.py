"""The processes of a run: settings, signals, locks, several hosts."""
