"""Published figures of accelerator chips: peak dense bfloat16 rate, memory, interconnect. Facts only, with sources.

Sources, by `source`:
  cloud-tpu       docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, system architecture tables
  tpu-v4-paper    arXiv:2304.01433, table 4 (six links of 50 GB/s)
  nvidia-a100     NVIDIA A100 datasheet: 312 TFLOP/s dense, NVLink 600 GB/s; 1,555 and 2,039 GB/s
  nvidia-h100     NVIDIA H100 datasheet, SXM: 1,979 TFLOP/s with sparsity, NVLink 900 GB/s
  nvidia-h200     NVIDIA H200 datasheet, SXM: 1,979 TFLOP/s with sparsity, NVLink 900 GB/s
  nvidia-l4       NVIDIA L4 datasheet: 242 TFLOP/s with sparsity, PCIe Gen4 x16 64 GB/s
  nvidia-ada      NVIDIA Ada GPU architecture whitepaper, appendix A: RTX 4090, 165.2 TFLOP/s dense with float32 accumulation
Datasheets that state the rate with 2:4 sparsity are halved here.
"""

import dataclasses
import re

from scaling.errors import unknown


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip. Rates are peaks that no program reaches; `None` where nobody publishes one."""

  name: str
  flops: float | None  # dense bfloat16 FLOP/s
  hbm_bytes: float | None
  hbm_bandwidth: float | None  # bytes/s
  interconnect: float | None  # bytes/s out of one chip, all links together, one direction
  links: int  # of a torus; 0 where a switch or a bus joins the chips
  device_kind: str  # regular expression for jax.Device.device_kind
  source: str


_TABLE = (
  Chip('v4', 275e12, 32 * 2**30, 1200e9, 300e9, 6, r'TPU v4$', 'cloud-tpu, tpu-v4-paper'),
  Chip('v5e', 197e12, 16e9, 819e9, 200e9, 4, r'TPU v5 ?(lite|e)', 'cloud-tpu'),
  Chip('v5p', 459e12, 95e9, 2765e9, 600e9, 6, r'TPU v5p?$', 'cloud-tpu'),
  Chip('v6e', 918e12, 32e9, 1638e9, 400e9, 4, r'TPU v6 ?(lite|e)', 'cloud-tpu'),
  Chip('a100-40gb', 312e12, 40e9, 1555e9, 300e9, 0, r'A100.*40GB', 'nvidia-a100'),
  Chip('a100-80gb', 312e12, 80e9, 2039e9, 300e9, 0, r'A100.*80GB', 'nvidia-a100'),
  Chip('h100', 989.5e12, 80e9, 3350e9, 450e9, 0, r'H100 80GB HBM3', 'nvidia-h100'),
  Chip('h200', 989.5e12, 141e9, 4800e9, 450e9, 0, r'H200', 'nvidia-h200'),
  Chip('l4', 121e12, 24e9, 300e9, 32e9, 0, r'NVIDIA L4$', 'nvidia-l4'),
  Chip('rtx-4090', 165.2e12, 24e9, 1008e9, 32e9, 0, r'RTX 4090$', 'nvidia-ada'),
  Chip('cpu', None, None, None, None, 0, r'cpu$', 'no peak is assumed'),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _TABLE}


def get(name: str) -> Chip:
  """The chip of this name (`v5e`, `h100`). Raises UserError for an unknown one."""
  if name.lower() not in CHIPS:
    raise unknown('chip', name, CHIPS)
  return CHIPS[name.lower()]


def of_device_kind(device_kind: str) -> Chip | None:
  """The chip behind `jax.devices()[0].device_kind`, or None where the table lacks it."""
  return next((chip for chip in _TABLE if re.search(chip.device_kind, device_kind)), None)
