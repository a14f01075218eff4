"""Events in continuous time: sequences of times, each with a type."""
