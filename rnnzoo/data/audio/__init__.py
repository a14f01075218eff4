"""Recordings of sound as sequences of samples, one data set a file."""
