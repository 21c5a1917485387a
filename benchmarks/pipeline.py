"""Time and memory of every stage of `tract7dt run` on the sample tile: python benchmarks/pipeline.py [--config FILE]"""

import one_thread  # noqa: F401  before NumPy

import argparse
import logging
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import machine
from tract7dt.configfile import load_config
from tract7dt.pipeline import run

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data" / "config.yaml"
ONE_WORKER = {"epsf.max_workers": 1, "patch_inputs.max_workers": 1, "patch_run.max_workers": 1}


def reset_peak() -> None:
    "Let the kernel forget the largest memory so far; where it cannot, later stages inherit the peak of earlier ones."
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_megabytes() -> float:
    "Largest resident memory, 1e6 bytes, since the last reset."
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return float(kilobytes) * 1024 / 1e6


def processor_seconds() -> float:
    "Seconds that this process and its finished children computed."
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass(frozen=True)
class StageUse:
    "What a stage took: seconds and peak resident megabytes."
    name: str
    wall: float
    cpu: float
    megabytes: float

    def text(self) -> str:
        return f"{self.name:24s} {self.wall:8.2f} {self.cpu:8.2f} {self.megabytes:9.0f}"


class StageClock(logging.Handler):
    "Listens to the log and notes what each stage took, and under `between` what was done between stages (pictures)."

    def __init__(self):
        super().__init__(logging.INFO)
        self.uses: list[StageUse] = []
        self.begin()

    def begin(self) -> None:
        "Start counting."
        reset_peak()
        self.wall, self.cpu = time.perf_counter(), processor_seconds()

    def end(self, name: str) -> None:
        "Note what was used since the start of counting."
        use = StageUse(name, time.perf_counter() - self.wall, processor_seconds() - self.cpu, peak_megabytes())
        self.uses.append(use)
        self.begin()

    def emit(self, record: logging.LogRecord) -> None:
        "A stage says '<name>: started' and '<name>: done in ...'."
        name, _, words = record.getMessage().partition(": ")
        if words == "started":
            self.end("between")
        elif words.startswith(("done in", "stopped after")):
            self.end(name)


def merged(uses) -> list[StageUse]:
    "One entry for each name: sums of times, largest memory; what lies between the stages goes last."
    names = sorted(dict.fromkeys(u.name for u in uses), key=lambda name: name == "between")
    groups = [[u for u in uses if u.name == name] for name in names]
    return [StageUse(g[0].name, sum(u.wall for u in g), sum(u.cpu for u in g), max(u.megabytes for u in g)) for g in groups]


def timed_run(config: Path, work_dir: Path) -> list[StageUse]:
    "Run everything in this process, one worker, products in `work_dir`; what the stages took."
    cfg = load_config(config, ONE_WORKER | {"outputs.work_dir": work_dir})
    logger, clock = logging.getLogger("tract7dt"), StageClock()
    logger.addHandler(clock)
    try:
        result = run(cfg)
    finally:
        logger.removeHandler(clock)
    clock.end("between")
    print("\n".join(result.facts()))
    return merged(clock.uses)


def main(config: Path) -> None:
    "Run in a temporary folder and print the table."
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        uses = timed_run(config, Path(folder))
    print(f"\n{'stage':24s} {'wall s':>8s} {'cpu s':>8s} {'peak MB':>9s}")
    total = StageUse("total", sum(u.wall for u in uses), sum(u.cpu for u in uses), max(u.megabytes for u in uses))
    print("\n".join(use.text() for use in [*uses, total]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=SAMPLE, help="configuration file (default: the sample tile)")
    main(parser.parse_args().config)
