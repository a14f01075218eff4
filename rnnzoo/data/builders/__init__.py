"""TFDS builders that prepare data without TensorFlow, one a file."""
