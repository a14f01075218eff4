"""Images as sequences of pixels or rows, one data set a file."""
