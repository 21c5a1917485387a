"""Clocks, memory and the speed of this machine."""

import gc
import os
import platform
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import one_thread  # noqa: F401  before NumPy
from threadpoolctl import threadpool_info


@dataclass(frozen=True)
class Timing:
    "Least wall and processor seconds of several runs, and what the last run returned."

    wall: float
    cpu: float
    result: object


def best_of(repeats: int, work) -> Timing:
    """Call `work()` several times.

    On a machine that others use too, the least time is the one that says most about the program; processor
    seconds
    below wall seconds show that it had to wait.
    """
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Timing(min(walls), min(cpus), result)


def peak_allocated(work) -> tuple[float, object]:
    """Megabytes (1e6 bytes) that `work()` holds at most, on top of what was there before; and its result.

    Slow.
    """
    gc.collect()
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1] / 1e6, result
    finally:
        tracemalloc.stop()


def gemm_peak(repeats: int = 6, sizes=(256, 512, 1024)) -> float:
    "Best single-precision rate of a square matrix product on one core, GFlop/s."
    rates = []
    for n in sizes:
        a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
        calls = max(1, 2 * 1024**3 // n**3)
        timing = best_of(repeats, lambda: [a @ b for _ in range(calls)])
        rates.append(2e-9 * n**3 * calls / timing.cpu)
    return max(rates)


def fitted_exponent(sizes, seconds) -> float:
    "Slope of log seconds against log size: 1 is linear growth."
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine() -> str:
    "Processor, its linear algebra and how busy it is, on one line."
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    loaded = sorted(
        (i for i in threadpool_info() if i["user_api"] == "blas"), key=lambda i: "numpy" not in i["filepath"]
    )
    blas = " ".join(
        f"{i['internal_api']} {i['version']} ({i.get('architecture', '')} kernels)" for i in loaded[:1]
    )
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{model}, {os.cpu_count()} cores, {load}; Python {platform.python_version()}, NumPy "
        f"{np.__version__}, {blas}"
    )
