"""The ePSF against known truth: isolated stars, thin cells, damaged stamps, and the sample tile.

What is demanded, and where:

| demand | test |
|---|---|
| isolated stars, aberrated PSF: eps, peak, enclosed light | `test_aberrated_psf_from_sixty_stars`,
`test_a_cell_that_differs_from_the_band`, `test_eight_stars_alone` |
| a Moffat PSF needs no residual | `test_moffat_psf_needs_no_residual` |
| errors fall with the total S/N | `test_errors_fall_with_the_total_signal` |
| fluxes at the stars and in the cells of a tile | `test_sample_is_right_in_every_cell`,
`test_sample_is_right_at_the_stars` |
| selection, with and without Gaia | `test_selection_with_gaia`, `test_selection_without_gaia` |
| neighbours are modelled, and matter | `test_neighbours_are_modelled` |
| sky left in the stamps; damage | `test_sky_left_in_the_stamps_does_not_matter`,
`test_dead_pixels_do_not_matter` |
| thin cells | `test_few_stars_and_thin_cells`, `test_a_broken_band_is_recorded_and_leaves_nothing_behind` |
| the predicted error | `test_predicted_error_is_of_the_right_size` |
| undersampled PSFs | `test_undersampled_psf_with_factor_two`, `test_twelve_stars_of_an_undersampled_psf` |
| sum, side, centre, wings, same bytes | `test_stamp_invariants`, `test_moffat_psf_needs_no_residual`,
`test_workers_write_the_same_bytes` |
| photutils | `test_photutils_with_thirty_good_stars` |
| peaks and enclosed light on four tiles | `test_truth_pipeline.py` |
"""

import time
from dataclasses import fields, replace
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from epsf_scene import (
    FRAME,
    SKY,
    START,
    aberrated,
    aligned_truth,
    checkerboard,
    flux_error,
    image,
    isolated_stars,
    mixed_snr,
)
from scipy.ndimage import fourier_shift
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from tract7dt.config.load import load_config
from tract7dt.core.errors import UserError
from tract7dt.core.geometry import cell_index, make_cells
from tract7dt.core.stamps import enclosed_flux
from tract7dt.epsf.band_fit import fit_band
from tract7dt.epsf.band_task import read_pixels, survey_task
from tract7dt.epsf.build import build_epsf, effective_mode, idle_keys, star_verdict, write_epsf
from tract7dt.epsf.model import BandPSF, analytic_psf
from tract7dt.epsf.neighbours import Neighbours
from tract7dt.epsf.patch_psf import psf_for_patch
from tract7dt.epsf.photutils_builder import with_stacks
from tract7dt.epsf.profile import evaluate_grid
from tract7dt.epsf.selection import Verdict, final_reasons
from tract7dt.epsf.source_list import in_magnitude_range, list_sources
from tract7dt.epsf.star_fit import fit_stars, start_state
from tract7dt.epsf.tasks import band_pool
from tract7dt.fit.problem import PixelPSF
from tract7dt.inputs.gaia_table import gaia_stars
from tract7dt.sample.psf import true_psf
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import Layout

pytestmark = pytest.mark.xdist_group("epsf")

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"
MIDDLE = FRAME[1] / 2, FRAME[0] / 2
MOFFAT = galsim.Convolve(galsim.Moffat(beta=3.0, fwhm=3.0), galsim.Pixel(1.0))


def core_rms(stamp, truth):
    "Scatter of the difference within 8 px over the peak."
    y, x = np.mgrid[-27:28, -27:28]
    return np.std((stamp - truth)[np.hypot(x, y) < 8]) / truth.max()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "As in the stage itself: products of small matrices on two threads mostly wait for each other."
    with threadpool_limits(1):
        yield


# Isolated stars


@pytest.fixture(scope="module")
def aberrated_band():
    "Sixty stars of mixed S/N with an aberrated PSF, and their fit."
    psf = aberrated()
    stars = isolated_stars(psf, mixed_snr(60, np.random.default_rng(1)), seed=2)
    return psf, stars, fit_band("m500", FRAME, 2, stars, START)


def test_aberrated_psf_from_sixty_stars(aberrated_band):
    psf, _, fit = aberrated_band
    stamp = fit.psf.stamp(*MIDDLE)
    truth = aligned_truth(stamp, psf)
    assert abs(flux_error(stamp, truth)) <= 0.005
    assert abs(stamp.max() / truth.max() - 1) <= 0.015
    assert (np.abs(enclosed_flux(stamp, [4, 12]) - enclosed_flux(truth, [4, 12])) <= [0.006, 0.003]).all()
    assert core_rms(stamp, truth) <= 0.0035
    assert fit.psf.residual_amplitude > 0.01


@pytest.mark.parametrize(
    "snr, eps, peak, rms",
    [
        ([50.0] * 3, 0.025, 0.05, 0.01),
        (mixed_snr(8, np.random.default_rng(13)), 0.008, 0.015, 0.0035),
        ([100.0] * 30, 0.007, 0.015, 0.0035),
    ],
    ids=["3", "8", "30"],
)
def test_a_cell_that_differs_from_the_band(snr, eps, peak, rms):
    """The seeing alternates by 3 % from cell to cell, which no polynomial follows; a hundred stars of other
    cells know the rest.
    """
    stars, place = checkerboard(snr, seed=3)
    fit = fit_band("m500", FRAME, 4, stars, START)
    stamp = fit.psf.stamp(*place)
    truth = aligned_truth(stamp, aberrated(3.09))
    assert fit.psf.tau >= 0.01 or fit.psf.followed[0] >= 0.01
    assert abs(flux_error(stamp, truth)) <= eps
    assert abs(stamp.max() / truth.max() - 1) <= peak
    assert core_rms(stamp, truth) <= rms


def test_eight_stars_alone():
    "Without a band around them eight stars must find out about the wings by themselves."
    psf = aberrated()
    fit = fit_band(
        "m500", FRAME, 1, isolated_stars(psf, mixed_snr(8, np.random.default_rng(3)), seed=4), START
    )
    stamp = fit.psf.stamp(*MIDDLE)
    assert abs(flux_error(stamp, aligned_truth(stamp, psf))) <= 0.025


def test_moffat_psf_needs_no_residual():
    fit = fit_band(
        "m500", FRAME, 2, isolated_stars(MOFFAT, mixed_snr(60, np.random.default_rng(5)), seed=6), START
    )
    stamp = fit.psf.stamp(*MIDDLE)
    truth = aligned_truth(stamp, MOFFAT)
    y, x = np.mgrid[-27:28, -27:28]
    light = stamp * (np.hypot(x, y) < 6)
    assert np.hypot((light * x).sum(), (light * y).sum()) / light.sum() < 0.02
    assert fit.psf.residual_amplitude == 0.01
    assert core_rms(stamp, truth) <= 0.002
    assert abs(flux_error(stamp, truth)) <= 0.005


@pytest.mark.parametrize("damage, allowed", [("constant", 0.002), ("gradient", 0.004)])
def test_sky_left_in_the_stamps_does_not_matter(aberrated_band, damage, allowed):
    _, stars, fit = aberrated_band
    ramp = np.arange(-30, 31) / 100
    extra = SKY if damage == "constant" else SKY * np.broadcast_to(ramp, (61, 61))
    dirty = replace(stars, stamps=replace(stars.stamps, data=stars.stamps.data + np.float32(extra)))
    one, other = (f.psf.stamp(*MIDDLE) for f in (fit, fit_band("m500", FRAME, 2, dirty, START)))
    assert abs(flux_error(one, other)) <= allowed


def test_dead_pixels_do_not_matter(aberrated_band):
    _, stars, fit = aberrated_band
    good = np.random.default_rng(8).random(stars.stamps.data.shape) > 0.02
    good[:3, :, 28] = False
    damaged = replace(
        stars, stamps=replace(stars.stamps, good=good, data=np.where(good, stars.stamps.data, 0))
    )
    one, other = (f.psf.stamp(*MIDDLE) for f in (fit, fit_band("m500", FRAME, 2, damaged, START)))
    assert abs(flux_error(one, other)) <= 0.005


@pytest.mark.parametrize("count, snr, allowed", [(3, 50, 0.08), (5, 100, 0.03)])
def test_few_stars_and_thin_cells(count, snr, allowed):
    "Cells with 0, 1 or 2 stars have a usable PSF, and say where it came from and how far to trust it."
    fit = fit_band("m500", FRAME, 4, isolated_stars(MOFFAT, np.full(count, snr), seed=10), START)
    truth = image(MOFFAT) / image(MOFFAT).sum()
    for index, cell in enumerate(make_cells(FRAME, 4)):
        stamp = fit.psf.stamp(*cell.box.centre)
        assert fit.psf.source_at(*cell.box.centre) == ("cell+band" if fit.psf.cell_nstars[index] else "band")
        assert abs(flux_error(stamp, truth)) <= min(allowed, 3 * fit.psf.eps_pred(*cell.box.centre))


@pytest.mark.parametrize("cutout, fwhm", [(19, 3.2), (9, 3.2), (29, 5.0), (29, 7.0)])
def test_stamps_smaller_than_the_grid_would_like(cutout, fwhm):
    """Legal settings leave stamps that end inside the residual grid, or have no room for one: the PSF is
    found all the same.
    """
    psf = galsim.Convolve(galsim.Moffat(beta=3.0, fwhm=fwhm), galsim.Pixel(1.0))
    stars = isolated_stars(psf, np.full(20, 100.0), seed=3)
    fit = fit_band(
        "m500",
        FRAME,
        1,
        replace(stars, stamps=stars.stamps.window(cutout // 2)),
        START + [np.log(fwhm / 3.2), 0, 0, 0, 0],
    )
    stamp = fit.psf.stamp(*MIDDLE)
    truth = aligned_truth(stamp, psf)
    assert abs(stamp.max() / truth.max() - 1) <= 0.06 and abs(flux_error(stamp, truth)) <= 0.06
    assert (fit.psf.residual.size == 1) == (cutout == 9)


def test_predicted_error_is_of_the_right_size():
    "Over small bands the errors are about as large as predicted."
    ratios = []
    for seed in range(6):
        fit = fit_band("m500", FRAME, 1, isolated_stars(MOFFAT, np.full(10, 60.0), seed=20 + seed), START)
        stamp = fit.psf.stamp(*MIDDLE)
        ratios.append(flux_error(stamp, aligned_truth(stamp, MOFFAT)) / fit.psf.eps_pred(*MIDDLE))
    assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 1.8


@pytest.fixture(scope="module")
def scatter():
    "Rms of the flux error over ten fields of 3, 8 and 30 stars of S/N 50, with no band around them."

    def rms(count):
        fields = [isolated_stars(MOFFAT, np.full(count, 50.0), seed=[60 + seed, count]) for seed in range(10)]
        stamps = [fit_band("m500", FRAME, 1, stars, START).psf.stamp(*MIDDLE) for stars in fields]
        return np.sqrt(np.mean([flux_error(stamp, aligned_truth(stamp, MOFFAT)) ** 2 for stamp in stamps]))

    return {count: rms(count) for count in (3, 8, 30)}


def alone(reason):
    return pytest.mark.xfail(
        strict=True, reason=f"measured {reason}: without a band the stars must find the wings themselves"
    )


@pytest.mark.parametrize(
    "factor, count",
    [
        (3.5, 3),
        (3.5, 8),
        (3.5, 30),
        (1.6, 3),
        pytest.param(1.6, 8, marks=alone("2.4 %")),
        pytest.param(1.6, 30, marks=alone("1.4 %")),
    ],
)
def test_errors_fall_with_the_total_signal(scatter, factor, count):
    "Flux errors are `factor` over the total S/N, and 0.3 %; 1.6 is what stars with a band around them reach."
    assert scatter[count] <= factor / (50 * np.sqrt(count)) + 0.003


@pytest.mark.parametrize("fwhm", [1.6, 2.0])
def test_twelve_stars_of_an_undersampled_psf(fwhm):
    """The middle one of three fields; a single one may miss by a third (0.58 % and 1.35 % of the peak were
    seen).
    """
    before = np.sqrt(fwhm**2 - 0.74)
    psf = galsim.Convolve(
        0.96 * galsim.Moffat(beta=3.0, fwhm=before) + 0.04 * galsim.Moffat(beta=2.0, fwhm=2.2 * before),
        galsim.Pixel(1.0),
    )
    truth = image(psf, size=109, scale=0.5)
    truth *= 4 / truth.sum()
    worst, off = [], []
    for seed in (70, 71, 72):
        stars = isolated_stars(psf, np.full(12, 150.0), seed=seed)
        stamp = fit_band(
            "m500", FRAME, 1, stars, START + [np.log(before / 3.2), 0, 0, 0, 0], oversamp=2
        ).psf.stamp(*MIDDLE, oversamp=2)
        assert stamp.sum() / 4 == pytest.approx(1, abs=1e-9)
        worst.append(max(abs(flux_error(stamp[r::2, c::2], truth[r::2, c::2])) for r, c in np.ndindex(2, 2)))
        off.append(np.abs(stamp - truth).max() / truth.max())
    assert np.median(worst) <= 0.005
    assert np.median(off) <= 0.01


def test_undersampled_psf_with_factor_two():
    light = 0.96 * galsim.Moffat(beta=3.0, fwhm=1.4) + 0.04 * galsim.Moffat(beta=2.0, fwhm=3.1)
    psf = galsim.Convolve(light, galsim.Pixel(1.0))
    fit = fit_band(
        "m500",
        FRAME,
        1,
        isolated_stars(psf, np.full(30, 150.0), seed=30),
        START - [0.5, 0, 0, 0, 0],
        oversamp=2,
    )
    stamp = fit.psf.stamp(*MIDDLE, oversamp=2)
    assert stamp.shape == (109, 109)
    assert stamp.sum() / 4 == pytest.approx(1, abs=1e-9)
    truth = image(psf, size=109, scale=0.5) * 4
    truth *= 4 / truth.sum()
    assert np.abs(stamp - truth).max() <= 0.015 * truth.max()
    for row, column in np.ndindex(2, 2):
        assert abs(flux_error(stamp[row::2, column::2], truth[row::2, column::2])) <= 0.01


def test_photutils_with_thirty_good_stars():
    stars = isolated_stars(aberrated(), np.full(30, 100.0), seed=40)
    fit = fit_band("m500", FRAME, 1, stars, START)
    settings = load_config(SAMPLE / "config.yaml").epsf
    psf = with_stacks(fit, stars, settings)
    stamp = psf.stamp(*MIDDLE)
    assert psf.source == "photutils"
    assert stamp.sum() == pytest.approx(1, abs=1e-9)
    assert abs(flux_error(stamp, aligned_truth(stamp, aberrated()))) <= 0.01


def test_neighbours_are_modelled():
    "Stars with a neighbour of 30 % of their light: modelled it is harmless, ignored it is not."
    alone = isolated_stars(MOFFAT, np.full(30, 150.0), seed=50)
    rng = np.random.default_rng(51)
    angle, distance = rng.uniform(0, 2 * np.pi, 30), rng.uniform(7, 14, 30)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    light = np.array(
        [0.3 * f / 0.9 * image(MOFFAT, *place, size=61) for f, place in zip(alone.flux, zip(dx, dy))]
    )
    near = Neighbours.near(dx[:, None], dy[:, None], np.zeros((30, 1)), np.ones((30, 1), bool))
    ignored = replace(alone, stamps=replace(alone.stamps, data=alone.stamps.data + light.astype(np.float32)))
    truth = image(MOFFAT) / image(MOFFAT).sum()
    modelled, blind = (
        fit_band("m500", FRAME, 1, stars, START).psf.stamp(*MIDDLE)
        for stars in (replace(ignored, neighbours=near), ignored)
    )
    assert abs(flux_error(modelled, truth)) <= 0.006
    # 0.59 and 0.13 %; 9.8 % as long as the core kept its form whatever the stars looked like
    assert abs(flux_error(blind, truth)) > 3 * abs(flux_error(modelled, truth))


def test_stamp_invariants(aberrated_band):
    _, stars, fit = aberrated_band
    stamp = fit.psf.stamp(123.4, 567.8)
    again = fit_band("m500", FRAME, 2, stars, START).psf.stamp(123.4, 567.8)
    y, x = np.mgrid[-27:28, -27:28]
    assert stamp.sum() == pytest.approx(1, abs=1e-6)
    assert stamp.shape == (55, 55)
    assert (stamp[np.hypot(x, y) > 10] >= 0).all()
    assert np.array_equal(stamp, again)
    theta = fit.psf.theta(*MIDDLE)[None]
    state = fit_stars(
        stars.stamps.take([0]),
        theta,
        fit.psf.residual,
        1.0,
        start_state(stars.stamps.take([0]), stars.flux[:1]),
    )
    assert np.isfinite(evaluate_grid(fit.psf.residual, state.dx, state.dy, 30)).all()


# The sample tile


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_config(SAMPLE / "config.yaml", {"outputs.work_dir": tmp_path_factory.mktemp("epsf")})


@pytest.fixture(scope="module")
def tile(config):
    return load_inputs(config)


@pytest.fixture(scope="module")
def two_bands(tile):
    return replace(tile, bands=(tile.band("m500"), tile.band("m750")))


@pytest.fixture(scope="module")
def grid(two_bands, config):
    return build_epsf(two_bands, config, workers=1)


def test_sample_is_right_in_every_cell(grid, config):
    margin = config.crop.margin
    for product in grid.cells:
        x, y = product.cell.box.centre
        assert abs(flux_error(product.stamp, true_psf(product.band, x + margin, y + margin))) <= 0.01
        assert product.meta.verdict in ("good", "fair")


def star_counts(stars, band, margin):
    "Galaxies among the accepted, and isolated bright true stars that were found and that exist."
    truth = Table.read(SAMPLE / "truth.ecsv").to_pandas()
    x, y = truth["x"] - margin, truth["y"] - margin
    _, partner = cKDTree(np.column_stack([x, y])).query(stars)
    inside = (x > 16) & (y > 16) & (x < x.max() - 45) & (y < y.max() - 45)
    alone = (
        (truth["kind"] == "STAR")
        & (truth[f"SNR_{band}"] > 30)
        & ~truth["saturated"]
        & (truth["neighbour_pix"] > 14)
        & inside
    )
    galaxies = (truth["kind"][partner] != "STAR").sum()
    return galaxies, len(set(np.flatnonzero(alone)) & set(partner)), alone.sum()


def test_sample_is_right_at_the_stars(grid, config):
    """Where stars are, not only in the middle of cells: the light of stars of S/N above 30 is measured
    without bias or scatter.
    """
    for band, psf in grid.bands.items():
        stars = psf.stars[psf.stars.accepted & (psf.stars.snr > 30)]
        eps = [
            flux_error(psf.stamp(x, y), true_psf(band, x + config.crop.margin, y + config.crop.margin))
            for x, y in zip(stars.x, stars.y)
        ]
        assert abs(np.median(eps)) <= 0.004
        assert np.std(eps) <= 0.004


def test_no_step_in_the_gradient_at_the_edge_of_a_cell(grid):
    psf = grid.bands["m500"]
    border = make_cells(psf.shape, psf.ngrid)[0].box.x1
    inside, across = (psf.gradient(border - 40, 200, (reach, reach)) for reach in (30.0, 60.0))
    assert np.abs(inside - across).max() * 60 < 2e-3 * psf.stamp(border - 40, 200).max()
    wide = np.abs(psf.stamp(border + 20, 200) - psf.stamp(border - 100, 200) - 120 * across[0]).max()
    assert wide < 0.02 * psf.stamp(border - 40, 200).max()


def test_selection_with_gaia(grid, config):
    for band, model in grid.bands.items():
        used = model.stars[model.stars.accepted]
        galaxies, found, exist = star_counts(used[["x", "y"]].to_numpy(), band, config.crop.margin)
        assert galaxies == 0
        assert found >= 0.95 * exist
        assert set(model.stars.reason[~model.stars.accepted]) <= {
            "edge",
            "saturated",
            "bad_pixels",
            "crowded",
            "crowded_core",
            "shape",
            "chi2",
            "limit",
        }


def test_selection_without_gaia(two_bands, config):
    settings = config.epsf
    assert effective_mode(config, None) == "sep"
    sources = list_sources(two_bands, config, None)
    nobody = np.zeros(len(sources), bool)
    surveys = {
        band.name: survey_task(band, sources, settings, "sep", nobody, 4.0)[0] for band in two_bands.bands
    }
    verdict = star_verdict(None, surveys, sources, two_bands.shape)
    places = np.column_stack([sources.x, sources.y])[verdict.star]
    galaxies, found, exist = star_counts(places, "m750", config.crop.margin)
    assert galaxies <= 1
    assert found >= 0.95 * exist


def test_workers_write_the_same_bytes(two_bands, config, grid, tmp_path):
    other = build_epsf(two_bands, config, workers=2)
    folders = []
    for number, each in enumerate((grid, other)):
        layout = layout_in(tmp_path / str(number))
        write_epsf(each, layout)
        folders.append(
            {
                p.relative_to(layout.epsf_dir): p.read_bytes()
                for p in layout.epsf_dir.rglob("*")
                if p.is_file()
            }
        )
    assert folders[0] == folders[1]
    assert len(folders[0]) == 2 * (1 + 4 * 2) + 2  # the summary, and how the bands lie


def layout_in(folder):
    "A layout with all its folders below one."
    return Layout(*(folder / name for name in Layout.__dataclass_fields__))


def test_records_are_valid_and_complete(grid, tmp_path):
    import json

    layout = layout_in(tmp_path)
    write_epsf(grid, layout)
    summary = json.loads(
        layout.epsf_summary.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the summary")
    )
    assert [(row["band"], row["patch"]) for row in summary] == sorted(
        (row["band"], row["patch"]) for row in summary
    )
    meta = json.loads(layout.epsf_meta("m500", "r00_c00").read_text())
    assert meta["nstars_used"] == summary[0]["nstars_used"] > 3
    assert {"psf_source", "eps_pred", "ee_12", "residual_qa", "patch_background", "cfg"} <= set(meta)
    loaded = BandPSF.load(layout.psf_model("m500"))
    for each in fields(BandPSF):
        one, other = getattr(loaded, each.name), getattr(grid.bands["m500"], each.name)
        if each.name == "stars":
            assert one.equals(other.reset_index(drop=True).astype(one.dtypes))
        elif each.name == "registration":
            assert vars(one) == vars(other)
        elif isinstance(one, float):  # a card holds 16 digits
            assert one == pytest.approx(other, rel=1e-15, nan_ok=True)
        else:
            assert np.array_equal(one, other)


def test_a_broken_band_is_recorded_and_leaves_nothing_behind(two_bands, config, tmp_path):
    layout = layout_in(tmp_path)
    analytic_psf("m750", two_bands.shape, 2, 3.0).save(layout.psf_model("m750"))
    lost = two_bands.bands[1]
    broken = replace(lost, source=replace(lost.source, path=tmp_path / "gone.fits"))
    strict = config.model_copy(update={"epsf": config.epsf.model_copy(update={"star_snr_min": 2000.0})})
    grid = build_epsf(replace(two_bands, bands=(two_bands.bands[0], broken)), strict, workers=1)
    write_epsf(grid, layout)
    assert [failure.band for failure in grid.failures] == ["m750"]
    assert "gone.fits" in grid.failures[0].error
    assert not layout.psf_model("m750").exists()
    model = grid.bands["m500"]
    assert model.source == "analytic"
    assert "3 are needed" in model.warnings[0]
    answer = psf_for_patch(layout, "m750", "r00_c00", 10, 10, config, 3.1)
    assert (answer.source, answer.fallback_reason) == ("analytic", "missing ePSF")
    answer = psf_for_patch(layout, "m500", "r00_c00", 10, 10, config, 3.1)
    found = (model.stars.reason == "too_few").sum()
    assert answer.nstars_used == found < 3
    assert answer.fallback_reason == (
        f"low-star ePSF (nstars_used={found} < min_epsf_nstars_for_use=2)"
        if found < 2
        else "low-star ePSF (the band has 2 stars, a model needs 3)"
    )


def test_given_psfs(two_bands, config, tmp_path, caplog):
    for band in two_bands.band_names:
        fits.writeto(tmp_path / f"{band}.fits", true_psf(band, 400, 400, size=61))
    settings = config.epsf.model_copy(update={"psf_fits": tmp_path / "{band}.fits"})
    given = config.model_copy(update={"epsf": settings})
    with caplog.at_level("INFO"):
        grid = build_epsf(two_bands, given)
    assert "bands against each other: not measured" in caplog.text
    write_epsf(grid, layout_in(tmp_path / "out"))
    answer = psf_for_patch(layout_in(tmp_path / "out"), "m500", "r01_c01", 500, 500, given, None)
    assert answer.source == "given"
    assert answer.stamp.shape == (55, 55)
    assert answer.fallback_reason is None
    (tmp_path / "m750.fits").unlink()
    with pytest.raises(UserError, match="m750.fits"):
        build_epsf(two_bands, given)


def test_a_given_psf_is_moved_to_the_middle(two_bands, config, tmp_path, caplog):
    "A stamp half a pixel off would move all sources by as much."
    for band in two_bands.band_names:
        fits.writeto(tmp_path / f"{band}.fits", true_psf(band, 400, 400, size=61))
    right = build_epsf(two_bands, with_epsf(config, psf_fits=tmp_path / "{band}.fits")).bands["m500"]
    spectrum = fourier_shift(np.fft.fft2(fits.getdata(tmp_path / "m500.fits")), (0.5, -0.4))
    fits.writeto(tmp_path / "m500.fits", np.fft.ifft2(spectrum).real, overwrite=True)
    moved = build_epsf(two_bands, with_epsf(config, psf_fits=tmp_path / "{band}.fits")).bands["m500"]
    assert "m500.fits: the PSF lies (-0.40, +0.50) pix off the middle" in caplog.text
    assert np.abs(moved.stamp(300, 300) - right.stamp(300, 300)).max() < 0.01 * right.stamp(300, 300).max()


def test_given_psfs_of_cells(two_bands, config, tmp_path):
    tags = ["r00_c00", "r00_c01", "r01_c00", "r01_c01"]
    for width, tag in enumerate(tags):
        for band in two_bands.band_names:
            fits.writeto(
                tmp_path / f"{band}_{tag}.fits", image(galsim.Gaussian(fwhm=2.5 + 0.5 * width), size=61)
            )
    given = with_epsf(config, psf_fits=tmp_path / "{band}_{cell}.fits")
    grid = build_epsf(two_bands, given)
    peaks = [grid.cell("m500", tag).stamp.max() for tag in tags]
    assert all(one > other for one, other in zip(peaks, peaks[1:]))
    assert grid.cell("m500", "r00_c00").meta.psf_source == "given"


# What the keys do


def with_epsf(config, **changed):
    "The configuration with other values of `epsf` keys."
    return config.model_copy(update={"epsf": config.epsf.model_copy(update=changed)})


@pytest.fixture(scope="module")
def candidates(two_bands, config):
    "Survey band m500 with some `epsf` keys changed; returns the source list and the survey."

    def call(**changed):
        cfg = with_epsf(config, **changed)
        gaia = gaia_stars(cfg, two_bands.band_names)
        mode = effective_mode(cfg, gaia)
        sources, band = list_sources(two_bands, cfg, gaia if mode != "sep" else None), two_bands.band("m500")
        in_range = in_magnitude_range(sources, "m500", gaia, two_bands.wcs, cfg.epsf)
        return sources, survey_task(band, sources, cfg.epsf, mode, in_range, 3.0)[0]

    return call


def test_star_modes(candidates):
    chosen = {}
    for mode in ("sep", "gaia", "sep+gaia"):
        sources, survey = candidates(psfstar_mode=mode)
        chosen[mode] = sources.gaia[survey.reason == ""]
    assert not chosen["sep"].any() and len(chosen["sep"]) > 20
    assert chosen["gaia"].all() and len(chosen["gaia"]) > 10
    assert chosen["sep+gaia"].any() and not chosen["sep+gaia"].all()


def test_gaia_stars_outside_the_magnitudes_are_no_candidates(candidates):
    _, every = candidates(psfstar_mode="gaia")
    _, bright = candidates(psfstar_mode="gaia", gaia_mag_max=15.0)
    one, other = (survey.flux[survey.reason == ""] for survey in (every, bright))
    assert 0 < len(other) < len(one)
    assert other.min() > one.min()


def test_brightest_stars_first(candidates):
    sources, survey = candidates(max_stars=3)
    everyone = Verdict(np.zeros((len(sources), 3)), np.zeros((len(sources), 3)), np.ones(len(sources), bool))
    cell = cell_index((802, 826), 2, sources.x, sources.y)
    kept = final_reasons(survey, everyone, cell, 3) == ""
    for number in range(4):
        here = (survey.reason == "") & (cell == number)
        assert (kept & here).sum() == 3
        assert survey.snr[kept & here].min() >= np.sort(survey.snr[here])[-3]


def test_snapping_takes_the_place_of_the_detection(candidates):
    (snapped, _), (listed, _) = candidates(gaia_snap_to_sep=True), candidates(gaia_snap_to_sep=False)
    both = snapped.gaia & snapped.detected
    moved = np.hypot(snapped.x - listed.x, snapped.y - listed.y)
    assert both.sum() > 20
    assert (moved[both] > 1e-6).all() and not moved[~both].any()


def test_box_around_saturated_pixels(candidates):
    burnt = {
        box: (candidates(star_sat_check_r=box)[1].reason == "saturated").sum() for box in (0, "auto", 60)
    }
    assert burnt[0] == 0 < burnt["auto"] < burnt[60]


def test_thresholds_of_candidates(candidates):
    usual = (candidates(psfstar_mode="sep")[1].reason == "").sum()
    for changed in ({"thresh_sigma": 100.0}, {"star_snr_min": 100.0}, {"edge_pad": 150}):
        assert 0 < (candidates(psfstar_mode="sep", **changed)[1].reason == "").sum() < usual


def test_background_map_can_be_left_out(two_bands, config):
    band = two_bands.band("m500")
    with_map, without = (
        read_pixels(band, with_epsf(config, background_subtract_patch=on).epsf) for on in (True, False)
    )
    assert not without.background.any() and not without.hidden.any()
    assert with_map.background.any() and 0.05 < with_map.hidden.mean() < 0.9
    assert np.allclose(with_map.frame.image + with_map.background, without.frame.image, atol=1e-3)


def test_local_background_of_photutils_stacks(config):
    "A sky of 1 sigma in the stamps does not reach the stack, unless the annulus is switched off."
    stars = isolated_stars(MOFFAT, np.full(12, 150.0), seed=60)
    dirty = replace(stars, stamps=replace(stars.stamps, data=stars.stamps.data + np.float32(SKY)))
    fit = fit_band("m500", FRAME, 1, dirty, START)
    truth = image(MOFFAT) / image(MOFFAT).sum()
    on, off = (
        with_stacks(fit, dirty, with_epsf(config, star_local_bkg_subtract=value).epsf).stamp(*MIDDLE)
        for value in (True, False)
    )
    assert core_rms(off, on) > 0.002
    assert abs(flux_error(on, truth)) < abs(flux_error(off, truth))


def test_oversampling_from_the_stars_to_the_fit(two_bands, config, tmp_path):
    cfg = with_epsf(config, oversamp=2)
    grid = build_epsf(replace(two_bands, bands=(two_bands.band("m750"),)), cfg, workers=1)
    write_epsf(grid, layout_in(tmp_path))
    saved = np.load(layout_in(tmp_path).epsf_stamp("m750", "r01_c00"))
    assert saved.shape == tuple(grid.cell("m750", "r01_c00").meta.epsf_shape) == (109, 109)
    assert grid.bands["m750"].residual_step == 0.5
    answer = psf_for_patch(layout_in(tmp_path), "m750", "r01_c00", 200, 600, cfg, None)
    assert answer.oversamp == 2
    PixelPSF(answer.stamp, answer.oversamp)
    truth = true_psf("m750", 200 + config.crop.margin, 600 + config.crop.margin)
    coarse = answer.stamp[::2, ::2] / answer.stamp[::2, ::2].sum()
    assert abs(flux_error(coarse, truth)) <= 0.01


def test_photutils_on_the_sample(two_bands, config):
    cfg = with_epsf(config, builder="photutils")
    grid = build_epsf(replace(two_bands, bands=(two_bands.band("m750"),)), cfg, workers=1)
    assert grid.bands["m750"].source == "photutils"
    for product in grid.cells:
        x, y = (v + config.crop.margin for v in product.cell.box.centre)
        assert product.meta.builder == "photutils"
        assert abs(flux_error(product.stamp, aligned(product.stamp, true_psf("m750", x, y)))) <= 0.03


def aligned(stamp, truth):
    "The true stamp moved onto `stamp` by a fraction of a pixel, linearly."
    gy, gx = np.gradient(truth)
    difference = stamp - truth
    return truth + (difference * gx).sum() / (gx**2).sum() * gx + (difference * gy).sum() / (gy**2).sum() * gy


def test_one_stamp_for_each_cell(grid, config, tmp_path):
    "With `evaluate_at: cell` every patch of a cell gets the stored stamp."
    layout = layout_in(tmp_path)
    write_epsf(grid, layout)
    by_cell = config.model_copy(update={"epsf": config.epsf.model_copy(update={"evaluate_at": "cell"})})
    one, other = (
        psf_for_patch(layout, "m500", "r00_c01", x, y, by_cell, 3.0) for x, y in ((420, 20), (800, 380))
    )
    assert np.array_equal(one.stamp, other.stamp)
    assert np.allclose(one.stamp, np.load(layout.epsf_stamp("m500", "r00_c01")), atol=1e-8)
    assert one.source == "cell+band"


def test_idle_keys_are_named(config):
    changed = config.epsf.model_copy(update={"maxiters": 5, "min_sep": 12.0})
    assert idle_keys(config.epsf) == []
    assert idle_keys(changed) == ["min_sep", "maxiters"]
    assert idle_keys(changed.model_copy(update={"builder": "photutils"})) == ["min_sep"]


def test_an_interrupt_does_not_wait_for_queued_tasks():
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), band_pool(2) as pool:
        jobs = [pool.submit(time.sleep, 1.5) for _ in range(20)]
        raise KeyboardInterrupt
    while not jobs[-1].cancelled() and time.perf_counter() - start < 10:
        time.sleep(0.05)
    assert sum(job.cancelled() for job in jobs) > 10
