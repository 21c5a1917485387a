"""Processor time of what the inspectors do at a click: python benchmarks/inspectors.py [--work DIR]
[--repeats N]

Without a finished run, one is made first: the sample tile with each of its bands under two names, 12 bands (a
minute). Every
kind of change is made several times, to another value each time; times are from the change of the control to
the last message to
the browser, packed as a kernel packs it. Nothing is asserted here.
"""

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import comm
import ipywidgets
import one_thread  # noqa: F401  before NumPy
import pandas as pd
from astropy.io import fits
from comm.base_comm import BaseComm
from measure import machine

from tract7dt.config.load import load_config
from tract7dt.pipeline.commands import run
from tract7dt.widgets.epsf import EPSFInspector
from tract7dt.widgets.patch import PatchInspector
from tract7dt.widgets.source import SourceInspector
from tract7dt.widgets.zero_points import ZeroPointInspector

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data"
SECOND = {"m400": "m425", "m500": "m525", "m575": "m600", "m650": "m675", "m750": "m775", "m850": "m875"}
QUIET = {
    "logging.level": "ERROR",
    "overlay.enabled": False,
    "patch_run.no_cutouts": True,
    "patch_run.no_patch_overview": True,
    "plotting.dpi": 40,
    "epsf.save_growth_curve": False,
    "epsf.save_residual_diagnostics": False,
    "epsf.save_patch_background_diagnostics": False,
    "epsf.save_star_local_background_diagnostics": False,
    "epsf.max_workers": 1,
    "patch_run.max_workers": 1,
}


class PackingComm(BaseComm):
    "Packs messages as a kernel does, and drops them."

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys) -> None:
        json.dumps([msg_type, data, metadata, keys])


def second_band(folder: Path, name: str, other: str) -> Path:
    "A copy of a band's image that says it is another band."
    path = folder / f"{other}.fits.fz"
    shutil.copy(SAMPLE / "images" / f"{name}.fits.fz", path)
    with fits.open(path, mode="update") as hdus:
        for hdu in hdus:
            if "FILTER" in hdu.header:
                hdu.header["FILTER"] = other
    return path


def run_of_twelve(folder: Path) -> Path:
    "Run the sample tile with twelve bands; returns the work directory."
    paths = [
        path
        for name, other in SECOND.items()
        for path in (SAMPLE / "images" / f"{name}.fits.fz", second_band(folder, name, other))
    ]
    (folder / "images.txt").write_text("".join(f"{path}\n" for path in paths))
    gaia = pd.read_csv(SAMPLE / "gaia_xp.csv", dtype=str, keep_default_na=False)
    gaia.assign(**{f"mag_{other}": gaia[f"mag_{name}"] for name, other in SECOND.items()}).to_csv(
        folder / "gaia.csv", index=False
    )
    cfg = load_config(
        SAMPLE / "config.yaml",
        QUIET
        | {
            "inputs.image_list_file": folder / "images.txt",
            "inputs.gaiaxp_synphot_csv": folder / "gaia.csv",
            "outputs.work_dir": folder / "work",
        },
    )
    return run(cfg).layout.work_dir


def timed(work) -> float:
    "Milliseconds of processor time."
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def values_of(control) -> list:
    "What a selector can be set to, but for what it shows."
    return [value for _, value in control._options_full if value != control.value]


def changes(control, values) -> list[float]:
    "Milliseconds of each change of a control."
    return [timed(lambda: setattr(control, "value", value)) for value in values]


def spread(values, count: int) -> list:
    "As many of the values, spread over the list."
    return values[:: max(1, len(values) // count)][:count]


def openings(work: Path, repeats: int) -> dict[str, list[float]]:
    """Milliseconds to open each inspector, again and again; the first time in this process pays for what is
    then remembered.
    """
    kinds = EPSFInspector, PatchInspector, SourceInspector, ZeroPointInspector
    first = {f"{kind.__name__}: the first time": [timed(lambda: kind(work))] for kind in kinds}
    return first | {
        f"{kind.__name__}: again": [timed(lambda: kind(work)) for _ in range(repeats)] for kind in kinds
    }


def epsf_redraws(work: Path, count: int) -> dict[str, list[float]]:
    seen = EPSFInspector(work)
    return {
        "ePSF: another band": changes(seen.band, spread(values_of(seen.band), count)),
        "ePSF: another cell": changes(seen.cell, values_of(seen.cell)[:count]),
        "ePSF: a cell seen before": changes(seen.cell, values_of(seen.cell)[:count]),
        "ePSF: another stretch": changes(seen.stretch, ["linear", "log"]),
    }


def patch_redraws(work: Path, count: int) -> dict[str, list[float]]:
    seen = PatchInspector(work)
    patches = changes(seen.patch, spread(values_of(seen.patch), count))
    cells = changes(seen.cell, spread(values_of(seen.cell), count))
    return {
        "patch: another patch": patches,
        "patch: another cell": cells,
        "patch: another band": changes(seen.band, spread(values_of(seen.band), count)),
        "patch: another source": changes(seen.source, spread(values_of(seen.source), count)),
    }


def source_redraws(work: Path, count: int) -> dict[str, list[float]]:
    seen, again = SourceInspector(work), {}
    tags = dict(zip(seen.index["ID"], seen.index["patch_tag"]))
    apart = {tags[name]: name for name in seen.source.options if tags[name] != tags[seen.source.value]}
    again["source: in another patch"] = changes(seen.source, spread(list(apart.values()), count))
    near = [
        name
        for name in seen.source.options
        if tags[name] == tags[seen.source.value] and name != seen.source.value
    ]
    again["source: in the same patch"] = changes(seen.source, near[:count])
    return again | {"source: another size": changes(seen.size, (10, 15, 25, 30)[:count])}


def zero_point_redraws(work: Path, count: int) -> dict[str, list[float]]:
    seen = ZeroPointInspector(work)
    return {
        "zero point: another band": changes(seen.band, spread(values_of(seen.band), count)),
        "zero point: a knob": changes(seen.sigma, (1.0, 1.5, 2.0, 2.5, 4.0, 5.0)[:count]),
    }


def report(timings: dict[str, list[float]]) -> None:
    "Print a table: median and largest."
    print(f"| {'what':<36} | median ms | largest ms | times |\n|{'-' * 38}|----------:|-----------:|------:|")
    for name, values in timings.items():
        print(f"| {name:<36} | {statistics.median(values):9.0f} | {max(values):10.0f} | {len(values):5d} |")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument(
        "--work", type=Path, help="work directory of a finished run; without one, a run of 12 bands is made"
    )
    words.add_argument("--repeats", type=int, default=6)
    asked = words.parse_args()
    comm.create_comm = PackingComm
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or run_of_twelve(Path(folder))
        timings = openings(work, asked.repeats)
        for redraws in (epsf_redraws, patch_redraws, source_redraws, zero_point_redraws):
            ipywidgets.Widget.close_all()
            gc.collect()
            timings |= redraws(work, asked.repeats)
    print(machine())
    report(timings)


if __name__ == "__main__":
    main()
