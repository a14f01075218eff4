"""What scripts/launch/ would do on a cluster, done on this machine.

Slurm and gcloud are stand-ins; what they start joins for real, with processes
that add numbers instead of training.
"""

import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized
from tests.experiments import commands
import yaml

_LAUNCH = commands.ROOT / 'scripts' / 'launch'
_BASH = shutil.which('bash')
_FLAGS = ('--config=a b.py', '--workdir=/shared/runs/a', "--config.x='y'")

# Without it there would be no cluster of TPUs to detect.
_ON_A_TPU = '''
from jax._src.clusters import cloud_tpu_cluster, cluster
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
cluster.running_in_cloud_tpu_vm = True
'''
_ADD = '''
import runpy, sys
sys.argv = ['peer', '--multihost', '--start_timeout=60']
runpy.run_module('tests.experiments.peer', run_name='__main__', alter_sys=True)
'''


def free_slurm_job() -> int:
  """Returns the number of a job whose coordinator finds its port free."""
  for job in range(os.getpid(), os.getpid() + 4096):
    with socket.socket() as one:
      try:
        one.bind(('127.0.0.1', job % 4096 + 61440))
      except OSError:
        continue
      return job
  raise AssertionError('No port is free.')


class LaunchTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = commands.temporary_directory(self)
    self.log = self.directory / 'log'
    self.environment = os.environ | dict(
        PATH=f'{self.directory}:{os.environ["PATH"]}', JAX_PLATFORMS='cpu',
        XLA_FLAGS='--xla_force_host_platform_device_count=2',
        LOG=str(self.log),
    )

  def program(self, name, script):
    """Writes a program that the scripts find first."""
    path = self.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!{_BASH}\n{script}\n')
    path.chmod(0o755)
    return path

  def adding(self, before=''):
    """A Python that notes its command line, and adds numbers."""
    return self.program('adding', f'''
      printf '%s\\n' "$@" > "$LOG"
      cd {shlex.quote(str(commands.ROOT))}
      exec {sys.executable} -c {shlex.quote(before + _ADD)}''')

  def start(self, *words, **environment):
    return subprocess.Popen(
        [str(word) for word in words], env=self.environment | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=commands.ROOT,
    )

  def check_added(self, processes):
    outputs = [process.communicate(timeout=200) for process in processes]
    self.assertEqual([p.returncode for p in processes], [0] * len(processes),
                     outputs)
    # Rows 1, 1, 2, 2.
    self.assertEqual(
        ''.join(out for out, _ in outputs), '2 6 [0, 0, 15] True\n', outputs
    )


class SlurmTest(LaunchTest):

  def setUp(self):
    super().setUp()
    self.program('scontrol', 'echo "$@" >> "$LOG"')
    # Two tasks on one node; the exit code is the greatest.
    self.program('srun', '''
      while [[ $1 == --* ]]; do shift; done
      export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
      tasks=() code=0
      for i in 0 1; do
        SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks+=($!)
      done
      trap 'kill -TERM "${tasks[@]}"' TERM
      for task in "${tasks[@]}"; do
        while :; do
          found=0; wait $task || found=$?
          kill -0 $task 2> /dev/null || break
        done
        ((found > code)) && code=$found
      done
      exit $code''')

  def submit(self, python, job=7, **environment):
    return self.start(
        _BASH, _LAUNCH / 'slurm.sbatch', *_FLAGS,
        RNNZOO_PYTHON=str(python), SLURM_JOB_ID=str(job), **environment,
    )

  def test_processes_find_each_other(self):
    self.check_added([self.submit(self.adding(), free_slurm_job())])
    self.assertEqual(
        self.log.read_text().splitlines(),
        ['-m', 'experiments.train', '--multihost', *_FLAGS],
    )

  @parameterized.parameters(
      (0, False), (1, False), (75, True), (137, True), (143, False)
  )
  def test_is_queued_again_after_a_loss(self, code, again):
    python = self.program('python', f'exit {code}')
    for restarts, expected in (('0', again), ('50', False)):
      self.log.write_text('')
      job = self.submit(python, SLURM_RESTART_COUNT=restarts)
      output = job.communicate(timeout=60)
      self.assertEqual(job.returncode, code, output)
      self.assertEqual(
          self.log.read_text(), 'requeue 7\n' if expected else '', output
      )

  def test_is_queued_again_when_its_time_is_up(self):
    python = self.program('python', '''
      trap 'exit 143' TERM
      echo ready > "$LOG$SLURM_PROCID"
      while :; do sleep 0.05; done''')
    job = self.submit(python)
    ready = [pathlib.Path(f'{self.log}{i}') for i in (0, 1)]
    while not all(path.exists() for path in ready) and job.poll() is None:
      time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output = job.communicate(timeout=60)
    self.assertEqual(job.returncode, 143, output)
    self.assertEqual(self.log.read_text(), 'requeue 7\n', output)


class KubernetesTest(LaunchTest):

  def setUp(self):
    super().setUp()
    text = (_LAUNCH / 'gke.yaml').read_text()
    self.service, self.job = yaml.safe_load_all(text)
    (self.container,) = self.pod['containers']

  @property
  def pod(self):
    return self.job['spec']['template']['spec']

  def test_pods_find_each_other(self):
    # By names that only a service without an address of its own gives them.
    self.assertEqual(self.service['spec']['clusterIP'], 'None')
    self.assertEqual(self.pod['subdomain'], self.service['metadata']['name'])
    self.assertEqual(
        self.service['spec']['selector'],
        {'job-name': self.job['metadata']['name']},
    )
    python, *words = self.container['command']
    self.assertEqual(python, 'python')
    self.program('python', f'exec {self.adding(_ON_A_TPU)} "$@"')
    with socket.socket() as one:
      one.bind(('127.0.0.1', 0))
      port = one.getsockname()[1]
    self.check_added([
        self.start(
            'python', *words,
            # As GKE sets them.
            TPU_WORKER_HOSTNAMES='localhost,localhost', TPU_WORKER_ID=str(i),
            MEGASCALE_NUM_SLICES='1', MEGASCALE_SLICE_ID='0',
            MEGASCALE_COORDINATOR_ADDRESS='', JAX_COORDINATOR_PORT=str(port),
        )
        for i in (0, 1)
    ])
    self.assertEqual(
        self.log.read_text().splitlines()[:3],
        ['-m', 'experiments.train', '--multihost'],
    )

  def test_one_pod_for_each_host_of_the_slice(self):
    spec, selector = self.job['spec'], self.pod['nodeSelector']
    rows, columns = selector['cloud.google.com/gke-tpu-topology'].split('x')
    chips = self.container['resources']['limits']['google.com/tpu']
    self.assertEqual(spec['completionMode'], 'Indexed')
    self.assertEqual(spec['parallelism'], spec['completions'])
    self.assertEqual(
        spec['completions'] * chips, int(rows) * int(columns)
    )

  def test_what_is_mounted_is_there(self):
    self.assertEqual(
        {mount['name'] for mount in self.container['volumeMounts']},
        {volume['name'] for volume in self.pod['volumes']},
    )
    mount = self.container['volumeMounts'][0]['mountPath']
    workdir = self.container['command'][-1].removeprefix('--workdir=')
    self.assertStartsWith(workdir, f'{mount}/')
    config = self.container['command'][-2].removeprefix('--config=')
    self.assertTrue((commands.ROOT / config).exists())


class TpuPodTest(LaunchTest):

  def test_runs_on_every_host(self):
    host = self.directory / 'host'
    # An environment that is there already, so that none is made.
    self.program(
        'host/rnnzoo/.venv/bin/python', 'printf "%s\\n" "$@" >> "$LOG"'
    )
    self.program('gcloud', f'''
      echo "gcloud $1 $2 $3 $4" >> "$LOG"
      case $4 in
        scp) cp "$5" {host}/rnnzoo.tar.gz; echo "$6 $7 $8" >> "$LOG" ;;
        ssh)
          echo "$5 $6 $7" >> "$LOG"
          cd {host}
          {_BASH} -c "${{8#--command=}}" ;;
      esac''')
    job = self.start(
        _BASH, _LAUNCH / 'tpu_pod.sh', 'my-tpu', 'here', *_FLAGS
    )
    output = job.communicate(timeout=120)
    self.assertEqual(job.returncode, 0, output)
    self.assertEqual(self.log.read_text().splitlines(), [
        'gcloud compute tpus tpu-vm scp',
        'my-tpu:rnnzoo.tar.gz --zone=here --worker=all',
        'gcloud compute tpus tpu-vm ssh',
        'my-tpu --zone=here --worker=all',
        '-m', 'pip', 'install', '-q', '-e', '.[tpu]',
        '-m', 'experiments.train', '--multihost', *_FLAGS,
    ])
    self.assertTrue((host / 'rnnzoo/experiments/train.py').exists())
    self.assertFalse((host / 'rnnzoo/.git').exists())

  def test_says_how_it_is_used(self):
    job = self.start(_BASH, _LAUNCH / 'tpu_pod.sh', 'my-tpu')
    _, error = job.communicate(timeout=60)
    self.assertEqual(job.returncode, 2)
    self.assertStartsWith(error, 'usage: ')


if __name__ == '__main__':
  absltest.main()
