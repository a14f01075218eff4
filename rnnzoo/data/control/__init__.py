"""Trajectories of control: what was seen, done and rewarded."""
