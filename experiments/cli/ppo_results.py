"""The records of runs of `experiments.ppo`, one for each agent.

A run of one agent leaves `result.json` in its workdir, as runs of
`experiments.train` do. A run of several leaves `seed_N/result.json` and
`seed_N/metrics.jsonl` for the agent of seed N. See `results.py` for the fields.
The metric is the return of an episode. That on the split `validation` has
chosen the checkpoint, by its mean over all agents of the run; `test` is the
mean over as many new episodes.
"""

from collections.abc import Iterable, Mapping
import json
import pathlib
import re
from typing import Any

from experiments.cli import config_flag
from experiments.cli import results
from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib

METRIC = 'return'


def write(
    summary: Mapping[str, Any],
    workdir: pathlib.Path,
    flag: config_flag.ConfigFlag,
    commit: tuple[str, bool | None],
) -> None:
  """Writes the records of a finished run.

  Args:
    summary: What `rl.train` returned.
    workdir: The directory of the run.
    flag: The config file and the overrides.
    commit: What `results.commit` returned when the run started.
  """
  made = make(summary, flag, commit)
  if len(made) == 1:
    results.write(made[0], workdir)
    return
  rows = metrics_lib.read_metrics(workdir)
  for agent, result in enumerate(made):
    folder = workdir / f'seed_{result["seed"]}'
    with files.usable(workdir):
      folder.mkdir(exist_ok=True)
      lines = of_agent(rows, agent)
      files.write_text(folder / 'metrics.jsonl', ''.join(
          json.dumps(line) + '\n' for line in lines
      ))
    results.write(result, folder)


def make(summary, flag, commit) -> list[dict[str, Any]]:
  """Returns the result of each agent of a finished run; see `write`."""
  return [
      results.record(
          dict(summary, seed=summary['seed'] + i),
          {
              'validation': {METRIC: before},
              'test': {METRIC: after, f'{METRIC}_deviation': deviation},
          },
          flag, commit, metric=METRIC, unit=lambda metric: '',
          larger_is_better=(METRIC,), data=summary['data.name'],
          smoke=flag.value.smoke, program='experiments.ppo',
      )
      for i, (before, after, deviation) in enumerate(zip(
          summary['eval_returns'], summary['returns'], summary['deviations'],
          strict=True,
      ))
  ]


def of_agent(
    rows: Iterable[Mapping[str, Any]], agent: int
) -> list[dict[str, Any]]:
  """Returns the metrics of one of several agents.

  >>> row = dict(step=2, loss=0.1, eval_return=1.5)
  >>> of_agent([row | dict(eval_return_seed_0=1, eval_return_seed_1=2)], 1)
  [{'step': 2, 'eval_return': 2}]

  Args:
    rows: The lines of `metrics.jsonl`.
    agent: Its number in the run.
  """
  kept = ('step', 'environment_steps', 'wall_time')
  found = []
  for row in rows:
    own = {
        name.removesuffix(f'_seed_{agent}'): value
        for name, value in row.items()
        if re.fullmatch(rf'\w+_seed_{agent}', name)
    }
    if own:
      found.append({n: row[n] for n in kept if n in row} | own)
  return found
