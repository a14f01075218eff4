"""Target devices of a plan, which need not exist here.

The compilers of XLA for TPUs and GPUs run on any CPU. They come in the wheels
`libtpu` and `jax-cuda13-plugin` and read their settings from the environment.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
from typing import Any

from jax.experimental import topologies
from rnnzoo import errors
from rnnzoo.training.performance import hardware as hardware_lib

# What the GPU compiler needs to know about a Hopper; the memory is filled in.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to plan for.

  Attributes:
    name: The name that the user gave.
    hardware: What each device can do.
    platform: `tpu` or `cuda`.
    topology: The name for `jax.experimental.topologies`.
  """

  name: str
  hardware: hardware_lib.Hardware
  platform: str
  topology: str


def parse(text: str) -> Target:
  """Parses `v5e:16x16` (a TPU and its topology) or `h200x8` (GPUs).

  >>> parse('h200x16').topology  # One program on 2 hosts with 8 GPUs each.
  '1x2x8'

  Raises:
    UserValueError: If the text has another form.
  """
  known = hardware_lib.HARDWARE
  found = re.fullmatch(r'(v5e|v5p|v6e):(\d+(?:x\d+){1,2})', text)
  if found:
    return Target(text, known[found[1]], 'tpu', text)
  found = re.fullmatch(r'(h100|h200)x(\d+)', text)
  if not found:
    raise errors.UserValueError(
        '--plan must be a TPU and its topology, such as v5e:16x16, v5p:4x4x4 '
        'or v6e:8x8, or GPUs and their number, h100x8 or h200x16, got '
        f'{text!r}.'
    )
  hardware, count = known[found[1]], int(found[2])
  if count < 1 or count > hardware.per_host and count % hardware.per_host:
    raise errors.UserValueError(
        f'--plan={text}: one host has up to {hardware.per_host} GPUs, and '
        'each of several hosts has exactly that many.'
    )
  hosts = -(-count // hardware.per_host)
  return Target(text, hardware, 'cuda', f'1x{hosts}x{count // hosts}')


def environment(target: Target) -> dict[str, str]:
  """Returns the environment that a process must start in to use `devices`.

  Raises:
    UserError: If the compiler for these devices is not installed.
  """
  common = dict(
      JAX_PLATFORMS='cpu',
      MALLOC_ARENA_MAX='1',  # Many threads then use less memory.
      TF_CPP_MIN_LOG_LEVEL='3', TPU_MIN_LOG_LEVEL='3',
      TPU_STDERR_LOG_LEVEL='3', TPU_LOG_DIR='disabled',
  )
  if target.platform == 'tpu':
    _require('libtpu', 'jax[tpu]')
    # There is no TPU here to ask for its topology.
    return common | dict(
        TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost',
        ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    )
  _require('jax_cuda13_plugin', 'jax[cuda13]')
  variables = common | dict(
      CUDA_VISIBLE_DEVICES='-1',
      JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1',  # There is no driver here.
  )
  nvidia = importlib.util.find_spec('nvidia')
  places = nvidia and nvidia.submodule_search_locations
  for place in places or ():
    for ptxas in pathlib.Path(place).glob('*/bin/ptxas'):
      variables |= dict(
          CUDA_ROOT=str(ptxas.parents[1]),
          PATH=f'{ptxas.parent}{os.pathsep}{os.environ.get("PATH", "")}',
      )
  return variables


def _require(module, package):
  if importlib.util.find_spec(module) is None:
    raise errors.UserError(
        f'Planning for these devices needs their compiler: pip install '
        f'"{package}". It runs on any CPU.'
    )


def gpu_config(hardware: hardware_lib.Hardware) -> str:
  """Returns what the compiler needs to know about a GPU, as a text proto."""
  return _GPU.format(
      bandwidth=hardware.bandwidth, memory=hardware.memory,
      kind=hardware.kinds[0],
  )


@functools.cache
def devices(target: Target) -> tuple[Any, ...]:
  """Returns devices for which programs can be compiled, but not run.

  Raises:
    UserValueError: If there is no such topology.
  """
  options = dict(topology_name=target.topology)
  if target.platform == 'cuda':
    config = gpu_config(target.hardware)
    options = dict(topology=target.topology, target_config=config)
  try:
    found = topologies.get_topology_desc(platform=target.platform, **options)
  except (RuntimeError, ValueError) as error:
    raise errors.UserValueError(
        f'--plan={target.name}: {str(error).splitlines()[0]}'
    ) from error
  return tuple(found.devices)
