"""Text data sets, one a file; `corpus` has what they share."""
