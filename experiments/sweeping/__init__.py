"""Many runs of `experiments.train`: which, in which order, what came out."""
