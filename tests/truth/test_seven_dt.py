"""A tile as the telescope's own pipeline writes it runs by its preset alone, and comes out right.

Coadds of resampled exposures in microjansky, inverse-variance weights, planes of counts; the truth is what
GalSim drew.
"""

import numpy as np
import pytest
import seven_dt_tile

from tract7dt.config.load import load_config
from tract7dt.results.merge import read_catalog
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("seven_dt")
SCALED = 10 ** (-0.4 * (23.9 - 25.0))  # scaled counts of a microjansky


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    "What the commands said, and the catalog beside the truth, row by row."
    folder = tmp_path_factory.mktemp("seven_dt")
    truth = seven_dt_tile.write_tile(folder)
    said = program("check", folder / "config.yaml")
    assert said.returncode == 0, said.stderr
    done = program("run", folder / "config.yaml")
    assert done.returncode == 0, done.stderr
    catalog = read_catalog(Layout.of(load_config(folder / "config.yaml").outputs).final_catalog)
    return said.stdout, truth.merge(catalog, on="ID", suffixes=("_true", ""))


def stars(table, band: str):
    "Flux, true flux and error of the reliable stars of a band, microjansky, and what their PSF may add."
    use = (table["TYPE_true"] == "STAR") & table[f"reliable_{band}"].astype(bool)
    flux, error = (
        table.loc[use, f"{name}_{band}_fit"].to_numpy(float) / SCALED for name in ("FLUX", "FLUXERR")
    )
    return (
        flux,
        table.loc[use, "flux"].to_numpy(float),
        error,
        table.loc[use, f"psf_eps_pred_{band}"].to_numpy(float),
    )


@pytest.mark.parametrize("band", [band.name for band in seven_dt_tile.FILTERS])
def test_bright_stars_are_right(run, band):
    "Within 0.3 %, in every band."
    flux, true, error, _ = stars(run[1], band)
    bright = true > 100 * error
    assert bright.sum() > 100
    assert np.median(flux[bright] / true[bright]) == pytest.approx(1, abs=0.003)


def test_errors_are_those_of_resampled_noise(run):
    "Pulls of all stars, with what the ePSF may add to all of a band in common."
    pulls = []
    for band in seven_dt_tile.FILTERS:
        flux, true, error, common = stars(run[1], band.name)
        pulls.append((flux - true) / np.hypot(error, common * true))
    pulls = np.concatenate(pulls)
    assert len(pulls) > 1000
    assert np.std(pulls) == pytest.approx(1, abs=0.07)  # 0.02 from the number of stars alone
    assert abs(np.mean(pulls)) < 0.3


def test_saturated_stars_are_known_from_the_counts(run):
    "Exposures that were saturated reach the coadd as values of any size; NSAT knows them."
    table = run[1]
    brightest = table[table["TYPE_true"] == "STAR"].nlargest(20, "flux")
    assert brightest["excluded_saturation"].astype(bool).all()
    assert not table.loc[table.flux < 100, "fit_quality_issues"].astype(str).str.contains("saturated").any()


def test_what_check_says(run):
    "Share without data, sky, noise, registration; no number that is none."
    for words in ("no data: m450", "sky between", "of the weight map", "catalog against images"):
        assert words in run[0]
    assert "nan" not in run[0].lower()


def test_rejected_coadds_are_refused(program, tmp_path):
    "SANITY = F is one line, before anything else happens."
    seven_dt_tile.write_headers_only(tmp_path)
    done = program("check", tmp_path / "config.yaml")
    assert done.returncode == 2
    assert "SANITY" in done.stderr and "use_rejected" in done.stderr
    assert "Traceback" not in done.stderr
