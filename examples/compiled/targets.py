"""The accelerators that programs are compiled for, and what their compilers need."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

# XLA's description of a GPU: what its compiler asks of the device.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


@dataclass(frozen=True)
class Target:
    """An accelerator: the topology by which jax calls it, and its memory bandwidth."""

    platform: str
    topology: str
    gigabytes_per_second: float
    config: str = ""

    @property
    def is_tpu(self) -> bool:
        return self.platform == "tpu"


def _gpu(name: str, bandwidth: float, cores: int, memory: float, cache: int, major: int) -> Target:
    config = _GPU.format(
        name=f"NVIDIA {name.upper()}",
        bandwidth=int(bandwidth * 1e9),
        cores=cores,
        memory=int(memory * 1e9),
        cache=cache,
        major=major,
    )
    return Target("cuda", name, bandwidth, config)


TARGETS = {
    "v5e": Target("tpu", "v5e:2x2", 819),
    "v6e": Target("tpu", "v6e:2x2", 1640),
    "h100": _gpu("h100", 3350, 132, 80, 52428800, 9),
    "h200": _gpu("h200", 4800, 132, 150, 52428800, 9),
    "b200": _gpu("b200", 8000, 148, 180, 132644864, 10),
}

WHEELS = {
    "tpu": ("libtpu", "pip install libtpu"),
    "cuda": ("jax_cuda13_plugin", 'pip install "jax[cuda13]"'),
}


def missing_wheel(target: Target) -> str | None:
    """What has to be installed for a target: a command, or None where nothing is missing."""
    module, command = WHEELS[target.platform]
    return None if importlib.util.find_spec(module) else command


def sharding_on(target: Target) -> Any:
    """A sharding on one device of a target that need not be there.

    Raises: RuntimeError that says which wheel is missing, or that the installed one does not know
      the target.
    """
    if command := missing_wheel(target):
        raise RuntimeError(
            f"the compiler for {target.topology} is not installed: {command} (on Python 3.12)"
        )
    # Without it libtpu looks for the metadata server of Google's cloud.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    options = {"target_config": target.config, "topology": "1x1x1"} if target.config else {}
    try:
        topology = topologies.get_topology_desc(
            platform=target.platform, topology_name=target.topology, **options
        )
    except Exception as error:
        raise RuntimeError(f"the installed compiler has no {target.topology}: {error}") from error
    return SingleDeviceSharding(topology.devices[0])
