"""Time and memory of every stage of `tract7dt run` on the sample tile: python benchmarks/pipeline.py
[--config FILE]

Memory is that of this process, and, where the system tells (Linux), that of this process and all its workers
together,
looked at ten times a second; what they share counts once.
"""

import argparse
import logging
import os
import resource
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import one_thread  # noqa: F401  before NumPy
import yaml
from measure import machine

from tract7dt.config.load import load_config
from tract7dt.pipeline import stages
from tract7dt.pipeline.commands import run

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data" / "config.yaml"
WORKER_KEYS = (
    "epsf.max_workers",
    "patch_inputs.max_workers",
    "patch_run.max_workers",
    "performance.white_stack_workers",
)


def reset_peak() -> None:
    """Let the kernel forget the largest memory so far; where it cannot, later stages inherit the peak of
    earlier ones.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_megabytes() -> float:
    "Largest resident memory, 1e6 bytes, since the last reset."
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = next(
        (line.split()[1] for line in lines if line.startswith("VmHWM")),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    return float(kilobytes) * 1024 / 1e6


def process_tree(root: int) -> list[int]:
    "Numbers of a process and all that it started."
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    tree = [root]
    for number in tree:
        tree += [child for child, parent in parents.items() if parent == number]
    return tree


def shared_megabytes(number: int) -> float:
    "Resident memory of a process, 1e6 bytes; pages that several processes use are divided among them."
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


class TreeWatch(threading.Thread):
    "Remembers the largest memory of this process and its workers together since the last `take`."

    def __init__(self, every: float = 0.1):
        super().__init__(daemon=True)
        self.every, self.largest = every, 0.0

    def run(self) -> None:
        while True:
            self.largest = max(self.largest, sum(map(shared_megabytes, process_tree(os.getpid()))))
            time.sleep(self.every)

    def take(self) -> float:
        "The largest so far, which is then forgotten."
        largest, self.largest = self.largest, 0.0
        return largest


def processor_seconds() -> float:
    "Seconds that this process and its finished children computed."
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass(frozen=True)
class StageUse:
    "What a stage took: seconds, peak resident megabytes of this process and of all together."

    name: str
    wall: float
    cpu: float
    megabytes: float
    tree: float

    def text(self) -> str:
        return f"{self.name:36s} {self.wall:8.2f} {self.cpu:8.2f} {self.megabytes:9.0f} {self.tree:9.0f}"


class StageClock(logging.Handler):
    """Listens to the log and notes what each stage took, and under `between` what was done between stages
    (pictures).
    """

    def __init__(self):
        super().__init__(logging.INFO)
        self.uses: list[StageUse] = []
        self.watch = TreeWatch()
        self.watch.start()
        self.begin()

    def begin(self) -> None:
        "Start counting."
        reset_peak()
        self.wall, self.cpu = time.perf_counter(), processor_seconds()

    def end(self, name: str) -> None:
        "Note what was used since the start of counting."
        use = StageUse(
            name,
            time.perf_counter() - self.wall,
            processor_seconds() - self.cpu,
            peak_megabytes(),
            self.watch.take(),
        )
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
    return [total(g, g[0].name) for g in groups]


def total(uses, name: str) -> StageUse:
    "Sums of times, largest memory."
    return StageUse(
        name,
        sum(u.wall for u in uses),
        sum(u.cpu for u in uses),
        max(u.megabytes for u in uses),
        max(u.tree for u in uses),
    )


def timed_run(config: Path, work_dir: Path, changes: dict) -> list[StageUse]:
    "Run everything, products in `work_dir`; what the stages took. `changes`: dotted keys and values."
    cfg = load_config(config, changes | {"outputs.work_dir": work_dir})
    logger, clock = logging.getLogger("tract7dt"), StageClock()
    logger.addHandler(clock)
    try:
        result = run(cfg)
    finally:
        logger.removeHandler(clock)
    clock.end("between")
    print("\n".join(result.facts()))
    return merged(clock.uses)


def main(config: Path, changes: dict, folder: Path | None) -> None:
    "Run in a temporary folder, or in one that is kept, and print the table."
    print(machine())
    with tempfile.TemporaryDirectory(dir=folder) as work_dir:
        uses = timed_run(config, Path(work_dir), changes)
    print(f"\n{'stage':36s} {'wall s':>8s} {'cpu s':>8s} {'peak MB':>9s} {'with workers':>9s}")
    print("\n".join(use.text() for use in [*uses, total(uses, "total")]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", type=Path, default=SAMPLE, help="configuration file (default: the sample tile)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes and threads of every stage (default: 1)"
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="keys of the configuration to change, as epsf.ngrid=4",
    )
    parser.add_argument(
        "--in", dest="folder", type=Path, help="where the temporary folder with the products is made"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    asked = parser.parse_args()
    if asked.no_pictures:
        stages.draw = lambda *values: None
        asked.set += ["patch_run.no_cutouts=true", "patch_run.no_patch_overview=true"]
    pairs = (text.split("=", 1) for text in asked.set)
    main(
        asked.config,
        dict.fromkeys(WORKER_KEYS, asked.workers) | {key: yaml.safe_load(value) for key, value in pairs},
        asked.folder,
    )
