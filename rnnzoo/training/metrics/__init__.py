"""What a run shows: `metrics.jsonl`, `curve.png` and a progress bar."""

from rnnzoo.training.metrics.curves import plot_curves as plot_curves
from rnnzoo.training.metrics.progress import Progress as Progress
from rnnzoo.training.metrics.writer import MetricsWriter as MetricsWriter
from rnnzoo.training.metrics.writer import read_metrics as read_metrics
