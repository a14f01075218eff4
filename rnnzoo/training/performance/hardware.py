"""What accelerators can do at best, according to their manufacturers.

Sources: the pages of TPU v4, v5e, v5p and v6e in Google Cloud's documentation
(peak compute, HBM and bandwidth per chip, and inter-chip bandwidth both ways),
NVIDIA's data sheets of the A100, H100, H200 and B200 (SXM; operations without
sparsity, NVLink both ways). A program may use less memory than the advertised
size: on TPUs the limit is the one that the compiler names when it refuses a
program, on GPUs the one that the driver shows.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Hardware:
  """One device as JAX counts them.

  Attributes:
    name: The common name.
    kinds: The beginnings of `jax.Device.device_kind`.
    memory: Bytes that a program may use.
    bfloat16: Operations a second in products of bfloat16 matrices.
    float32: Operations a second in products of float32 matrices at JAX's
      default precision: bfloat16 passes on TPUs, TF32 on GPUs.
    bandwidth: Bytes a second from and to its memory.
    link: Bytes a second that it can send to its neighbours while it receives as
      many. On TPUs over the two links along one axis of the torus, which a
      collective over one mesh axis can use; on GPUs over NVLink.
    network: Bytes a second that it can send to devices of another host, if that
      is another network: GPUs have one 400 Gb/s card each.
    per_host: How many devices `link` reaches; 0 if all.
    pool: The fraction of the memory that JAX reserves at start by default.
  """

  name: str
  kinds: tuple[str, ...]
  memory: int
  bfloat16: float
  float32: float
  bandwidth: float
  link: float
  network: float = 0.0
  per_host: int = 0
  pool: float = 1.0

  def peak(self, dtype: str) -> float:
    """Returns operations a second in products of matrices of `dtype`."""
    half = ('bfloat16', 'float16')
    return self.bfloat16 if str(dtype) in half else self.float32

  def speed(self, hosts_apart: bool) -> float:
    """Returns bytes a second to devices of the same host or of another one."""
    return self.network if hosts_apart and self.network else self.link


def _tpu(name, kinds, memory, bfloat16, bandwidth, link):
  return Hardware(
      name, kinds, int(memory * GIB), bfloat16, bfloat16, bandwidth, link
  )


def _gpu(name, kinds, memory, bfloat16, bandwidth, link):
  return Hardware(
      name, kinds, int(memory * GIB), bfloat16, bfloat16 / 2, bandwidth, link,
      network=50e9, per_host=8, pool=0.75,
  )


# The link of a TPU: published is the sum over all four or six links, both ways.
# Two links lie along one axis, and half of their sum is one way.
HARDWARE = {
    h.name: h for h in (
        _tpu('v4', ('TPU v4',), 31.25, 275e12, 1228e9, 100e9),
        _tpu('v5e', ('TPU v5 lite', 'TPU v5e'), 15.75, 197e12, 819e9, 100e9),
        _tpu('v5p', ('TPU v5p', 'TPU v5'), 95.74, 459e12, 2765e9, 200e9),
        _tpu('v6e', ('TPU v6 lite', 'TPU v6e'), 31.25, 918e12, 1638e9, 200e9),
        _gpu('a100', ('NVIDIA A100',), 79, 312e12, 2039e9, 300e9),
        _gpu('h100', ('NVIDIA H100',), 79, 989e12, 3350e9, 450e9),
        _gpu('h200', ('NVIDIA H200',), 139.7, 989e12, 4800e9, 450e9),
        _gpu('b200', ('NVIDIA B200',), 178, 2250e12, 8000e9, 900e9),
    )
}


def find(device_kind: str) -> Hardware | None:
  """Returns the hardware of a `jax.Device.device_kind`, or `None`.

  >>> find('TPU v5 lite').name, find('NVIDIA H200').name, find('cpu')
  ('v5e', 'h200', None)
  """
  matches = [
      (len(kind), hardware)
      for hardware in HARDWARE.values() for kind in hardware.kinds
      if device_kind == kind or device_kind.startswith(kind + ' ')
      or device_kind.startswith(kind + '-')
  ]
  # 'TPU v5' is a beginning of 'TPU v5 lite' too: the longest match counts.
  return max(matches, key=lambda match: match[0], default=(0, None))[1]
