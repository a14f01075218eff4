"""Time series that were measured, one data set a file."""
