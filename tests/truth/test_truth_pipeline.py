"""Is the pipeline right? The sample tile and three others like it, from images to catalog, against what was
drawn.

Slow: each tile is rendered (but for the one that ships) and run. Figures in the reasons of expected failures
are those
measured when this was written; a tile that meets its target again makes its test fail, so that the mark is
taken away.
"""

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from tract7dt.config.load import load_config
from tract7dt.core.geometry import make_cells
from tract7dt.core.stamps import enclosed_flux
from tract7dt.epsf.model import BandPSF
from tract7dt.results.merge import read_catalog
from tract7dt.sample.make import make_sample
from tract7dt.sample.psf import pixel_integral, psf_shape, sample_band
from tract7dt.sample.scene import CROP_MARGIN
from tract7dt.workdir.layout import Layout

BANDS = ("m400", "m500", "m575", "m650", "m750", "m850")
SEEDS = (7, 8, 9, 10)
BIAS = {"STAR": 0.005, "EXP": 0.01, "DEV": 0.03, "SERSIC": 0.03}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Run:
    "A tile that was run: its truth and its products."

    def __init__(self, folder):
        self.layout = Layout.of(load_config(folder / "config.yaml").outputs)
        self.truth = Table.read(folder / "truth.ecsv").to_pandas()
        self.bands = Table.read(folder / "truth_bands.ecsv").to_pandas().set_index("band")
        self.fluxes = self.compare(read_catalog(self.layout.final_catalog))

    def compare(self, catalog) -> pd.DataFrame:
        """One row per reliable source and band: true and fitted flux (trusting the header's zero point), S/N,
        pull.
        """
        fitted = catalog[catalog.stype_fit.ne("") & catalog.fit_is_reliable.astype(bool)]
        both = fitted.merge(self.truth.add_prefix("true_"), left_on="ID", right_on="true_ID")
        parts = []
        for band in BANDS:
            true = both[f"true_FLUX_{band}"] * self.bands.flux_scale[band]
            flux, error = both[f"FLUX_{band}_fit"].astype(float), both[f"FLUXERR_{band}_fit"].astype(float)
            parts.append(
                pd.DataFrame(
                    {
                        "kind": both.true_kind,
                        "band": band,
                        "snr": both[f"true_SNR_{band}"],
                        "offset": flux / true - 1,
                        "pull": (flux - true) / error,
                        "fracflux": both[f"fracflux_{band}_fit"].astype(float),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True).dropna(subset="pull")

    def bright(self, kind: str) -> pd.DataFrame:
        return self.fluxes[(self.fluxes.kind == kind) & (self.fluxes.snr > 20)]


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed{seed}")
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def run(seed, fresh_sample, program, tmp_path_factory):
    folder = fresh_sample("truth") if seed == 7 else tmp_path_factory.mktemp("truth") / "sample"
    if seed != 7:
        make_sample(folder, seed=seed)
    done = program("run", "--config", folder / "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(folder)


def robust_width(values) -> float:
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def expect_miss(request, seed, kind, known):
    "Mark the running test as one that is known to fail, with the measured number."
    if (seed, kind) in known:
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"measured: {known[seed, kind]}"))


def test_every_patch_is_fitted(run):
    assert (pd.read_csv(run.layout.run_summary).status == "ok").all()


def test_zero_points(run):
    found = pd.read_csv(run.layout.zp_summary).set_index("band").zp
    assert (found - run.bands.zp_expected).abs().max() < 0.01


@pytest.mark.parametrize("kind", BIAS)
def test_median_bias(run, kind):
    rows = run.bright(kind)
    assert len(rows) > 60
    assert abs(rows.offset.median()) < BIAS[kind]


@pytest.mark.parametrize("kind", BIAS)
def test_mean_bias(run, kind):
    "The mean sees the galaxies in whose patch the sky is wrong, which the median hides."
    assert abs(run.bright(kind).offset.mean()) < BIAS[kind]


@pytest.mark.parametrize("kind", BIAS)
def test_width_of_pulls(run, kind):
    rows = run.fluxes[(run.fluxes.kind == kind) & (run.fluxes.snr > 5)]
    assert robust_width(rows.pull) < 1.15


def stamp_of_truth(band: str, x: float, y: float, like) -> np.ndarray:
    """The true PSF at a place of the working frame, unit sum, moved by a fraction of a pixel onto the stamp
    `like`.
    """
    shape, axis = (
        psf_shape(sample_band(band), x + CROP_MARGIN, y + CROP_MARGIN),
        np.arange(len(like)) - len(like) // 2,
    )
    slope_y, slope_x = np.gradient(like)
    dx = dy = 0.0
    for _ in range(4):
        true = pixel_integral(shape, axis[None, :] - dx, axis[:, None] - dy)
        difference = like - true / true.sum()
        dx -= (difference * slope_x).sum() / (slope_x**2).sum()
        dy -= (difference * slope_y).sum() / (slope_y**2).sum()
    true = pixel_integral(shape, axis[None, :] - dx, axis[:, None] - dy)
    return true / true.sum()


def cell_stamps(run):
    "Band, fitted and true stamp at the middle of every cell."
    for band in BANDS:
        model = BandPSF.load(run.layout.psf_model(band))
        for cell in make_cells(model.shape, model.ngrid):
            stamp = model.stamp(*cell.box.centre, 55)
            yield f"{band} {cell.tag}", stamp, stamp_of_truth(band, *cell.box.centre, stamp)


# Noise of the stars: that cell has nine, all faint; the same scene without noise is within 0.1 %.
PEAK_MISSES = {(9, "peak"): "+1.52 % in one cell of m400"}


def test_peaks_of_the_epsf(run, seed, request):
    expect_miss(request, seed, "peak", PEAK_MISSES)
    wrong = {name: stamp.max() / true.max() - 1 for name, stamp, true in cell_stamps(run)}
    assert max(map(abs, wrong.values())) < 0.01, wrong


def test_enclosed_light_of_the_epsf(run):
    wrong = {
        name: enclosed_flux(stamp, [8])[0] / enclosed_flux(true, [8])[0] - 1
        for name, stamp, true in cell_stamps(run)
    }
    assert max(map(abs, wrong.values())) < 0.005, wrong
