"""Real pixels: four bands of a nine-band survey field, where the data set is at hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tract7dt.config.load import load_config
from tract7dt.results.merge import read_catalog
from tract7dt.workdir.layout import Layout

FIELD = Path(__file__).resolve().parents[3] / "shared" / "data" / "vst-vista-9band"
BANDS = ("g", "r", "i", "Z")
pytestmark = [
    pytest.mark.skipif(not FIELD.exists(), reason=f"the real field is not at {FIELD}"),
    pytest.mark.xdist_group("real_sky"),
]


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """Layout and final catalog of a corner of the field."""
    folder = tmp_path_factory.mktemp("real")
    subprocess.run(
        [
            sys.executable,
            FIELD / "prepare.py",
            folder,
            "--box",
            "0",
            "700",
            "0",
            "700",
            "--bands",
            ",".join(BANDS),
        ],
        check=True,
        capture_output=True,
    )
    done = program("run", folder / "config.yaml")
    assert done.returncode == 0, done.stderr
    layout = Layout.of(load_config(folder / "config.yaml").outputs)
    return layout, read_catalog(layout.final_catalog)


def test_every_patch_is_fitted_and_nearly_every_source_reliable(run):
    layout, catalog = run
    assert (pd.read_csv(layout.run_summary).status == "ok").all()
    active = ~catalog.excluded_any.astype(bool)
    assert catalog.stype_fit[active].ne("").all()
    assert catalog.fit_is_reliable[active].astype(bool).mean() > 0.85


def test_scales_ten_magnitudes_apart_give_sane_colours(run):
    """ZP_AUTO is 0 for g, r, i and 30 for Z; stars have r - Z between -1 and 3 magnitudes whatever the file's
    units.
    """
    _, catalog = run
    stars = catalog[
        (catalog.stype_fit == "star")
        & (catalog.FLUX_r_fit > 20 * catalog.FLUXERR_r_fit)
        & (catalog.FLUX_Z_fit > 0)
    ]
    colour = 2.5 * np.log10(stars.FLUX_Z_fit / stars.FLUX_r_fit)
    assert len(stars) >= 3
    assert colour.between(-1, 3).all()


def test_epsfs_come_from_stars(run):
    """Every band has enough stars for a model of its own; the seeing is that of the images (2.3 to 3.7
    pixels).
    """
    layout, _ = run
    cells = pd.read_json(layout.epsf_summary)
    assert (cells.status == "ok").all() and (cells.psf_source != "analytic").all()
    assert cells.fwhm_pix.between(2.0, 4.0).all()
