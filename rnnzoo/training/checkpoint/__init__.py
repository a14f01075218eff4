"""Checkpoints: written in the background by Orbax, verified by our digests."""

from rnnzoo.training.checkpoint.checkpointer import Checkpointer as Checkpointer
from rnnzoo.training.checkpoint.checkpointer import restore_meta as restore_meta
