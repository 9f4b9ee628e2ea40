"""Descriptions of GPUs for XLA, so that it compiles for them on a machine without a GPU (data
sheets; CUDA programming guide, compute capabilities 9.0 and 10.0).
"""

from typing import NamedTuple


class Gpu(NamedTuple):
    title: str
    """JAX's name of the device."""
    cores: int
    """Streaming multiprocessors."""
    capability: int
    memory: int
    bandwidth: float
    clock: float
    """GHz, boost."""
    cache: int
    """Bytes of L2."""


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 132, 9, 84_978_434_048, 3.352e12, 1.98, 50 * 2**20),
    "h200": Gpu("NVIDIA H200", 132, 9, 150_754_820_096, 4.8e12, 1.98, 50 * 2**20),
    "b200": Gpu("NVIDIA B200", 148, 10, 191_502_483_456, 8e12, 1.965, 126 * 2**20),
}


def target_config(name: str) -> str:
    """XLA's GpuTargetConfigProto of a GPU in GPUS, as text."""
    gpu = GPUS[name]
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: 233472
          shared_memory_per_block_optin: 232448
          core_count: {gpu.cores} fpus_per_core: 128
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {gpu.bandwidth:.0f} l2_cache_size: {gpu.cache}
          clock_rate_ghz: {gpu.clock} device_memory_size: {gpu.memory}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          cuda_compute_capability {{ major: {gpu.capability} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
        runtime_version {{ major: 12 minor: 9 }}
        device_description_str: "{gpu.title}" """
