"""The ePSF against known truth: isolated stars, thin cells, damaged stamps, and the sample tile."""

import time
from dataclasses import fields, replace
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scipy.spatial import cKDTree

from epsf_scene import FRAME, SKY, START, aberrated, aligned_truth, flux_error, image, isolated_stars, mixed_snr
from tract7dt.configfile import load_config
from tract7dt.epsf.bandfit import fit_band
from tract7dt.epsf.build import band_pool, build_epsf, effective_mode, idle_keys, list_sources, star_verdict, survey_task, write_epsf
from tract7dt.epsf.core import evaluate_grid
from tract7dt.epsf.model import BandPSF, analytic_psf, enclosed_flux
from tract7dt.epsf.others import with_stacks
from tract7dt.epsf.starfit import Neighbours, fit_stars, start_state
from tract7dt.epsf.use import psf_for_patch
from tract7dt.errors import UserError
from tract7dt.files import Layout
from tract7dt.sample.psf import true_psf
from tract7dt.sky import make_cells
from tract7dt.tile import load_inputs

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data"
MIDDLE = FRAME[1] / 2, FRAME[0] / 2
MOFFAT = galsim.Moffat(beta=3.0, fwhm=3.0)


def core_rms(stamp, truth):
    "Scatter of the difference within 8 px over the peak."
    y, x = np.mgrid[-27:28, -27:28]
    return np.std((stamp - truth)[np.hypot(x, y) < 8]) / truth.max()


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
    assert abs(flux_error(stamp, truth)) <= 0.01
    assert abs(stamp.max() / truth.max() - 1) <= 0.02
    assert np.abs(enclosed_flux(stamp, [4, 12]) - enclosed_flux(truth, [4, 12])).max() <= 0.006
    assert core_rms(stamp, truth) <= 0.0035
    assert fit.psf.residual_amplitude > 0.01


def test_eight_stars_of_mixed_brightness():
    psf = aberrated()
    fit = fit_band("m500", FRAME, 1, isolated_stars(psf, mixed_snr(8, np.random.default_rng(3)), seed=4), START)
    stamp = fit.psf.stamp(*MIDDLE)
    assert abs(flux_error(stamp, aligned_truth(stamp, psf))) <= 0.025


def test_moffat_psf_needs_no_residual():
    fit = fit_band("m500", FRAME, 2, isolated_stars(MOFFAT, mixed_snr(60, np.random.default_rng(5)), seed=6), START)
    stamp = fit.psf.stamp(*MIDDLE)
    truth = aligned_truth(stamp, MOFFAT)
    assert fit.psf.residual_amplitude == 0.01
    assert core_rms(stamp, truth) <= 0.002
    assert abs(flux_error(stamp, truth)) <= 0.01


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
    damaged = replace(stars, stamps=replace(stars.stamps, good=good, data=np.where(good, stars.stamps.data, 0)))
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


def test_predicted_error_is_of_the_right_size():
    "Over small bands the errors are about as large as predicted."
    ratios = []
    for seed in range(6):
        fit = fit_band("m500", FRAME, 1, isolated_stars(MOFFAT, np.full(10, 60.0), seed=20 + seed), START)
        stamp = fit.psf.stamp(*MIDDLE)
        ratios.append(flux_error(stamp, aligned_truth(stamp, MOFFAT)) / fit.psf.eps_pred(*MIDDLE))
    assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 1.8


def test_undersampled_psf_with_factor_two():
    psf = galsim.Convolve(galsim.Moffat(beta=3.0, fwhm=1.4), galsim.Pixel(1.0))
    fit = fit_band("m500", FRAME, 1, isolated_stars(psf, np.full(30, 150.0), seed=30), START - [0.5, 0, 0, 0, 0], oversamp=2)
    stamp = fit.psf.stamp(*MIDDLE, oversamp=2)
    assert stamp.shape == (109, 109)
    assert stamp.sum() / 4 == pytest.approx(1, abs=1e-9)
    truth = image(psf, size=109, scale=0.5) * 4
    truth *= 4 / truth.sum()
    for row, column in np.ndindex(2, 2):
        assert abs(flux_error(stamp[row::2, column::2], truth[row::2, column::2])) <= 0.02


def test_photutils_with_thirty_good_stars():
    stars = isolated_stars(aberrated(), np.full(30, 100.0), seed=40)
    fit = fit_band("m500", FRAME, 1, stars, START)
    settings = load_config(SAMPLE / "config.yaml").epsf
    psf = with_stacks(fit, stars, settings)
    stamp = psf.stamp(*MIDDLE)
    assert psf.source == "photutils"
    assert stamp.sum() == pytest.approx(1, abs=1e-9)
    assert abs(flux_error(stamp, aligned_truth(stamp, aberrated()))) <= 0.025


def test_neighbours_are_modelled():
    "Stars with a neighbour of 30 % of their light: modelled it is harmless, ignored it is not."
    alone = isolated_stars(MOFFAT, np.full(30, 150.0), seed=50)
    rng = np.random.default_rng(51)
    angle, distance = rng.uniform(0, 2 * np.pi, 30), rng.uniform(7, 14, 30)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    light = np.array([0.3 * f / 0.9 * image(MOFFAT, *place, size=61) for f, place in zip(alone.flux, zip(dx, dy))])
    near = Neighbours(dx[:, None], dy[:, None], np.zeros((30, 1)), np.ones((30, 1), bool))
    ignored = replace(alone, stamps=replace(alone.stamps, data=alone.stamps.data + light.astype(np.float32)))
    truth = image(MOFFAT) / image(MOFFAT).sum()
    modelled, blind = (fit_band("m500", FRAME, 1, stars, START).psf.stamp(*MIDDLE)
                       for stars in (replace(ignored, neighbours=near), ignored))
    assert abs(flux_error(modelled, truth)) <= 0.01
    assert abs(flux_error(blind, truth)) > abs(flux_error(modelled, truth)) + 0.005


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
    state = fit_stars(stars.stamps.take([0]), theta, fit.psf.residual, 1.0, start_state(stars.stamps.take([0]), stars.flux[:1]))
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
    alone = (truth["kind"] == "STAR") & (truth[f"SNR_{band}"] > 30) & ~truth["saturated"] & (truth["neighbour_pix"] > 14) & inside
    galaxies = (truth["kind"][partner] != "STAR").sum()
    return galaxies, len(set(np.flatnonzero(alone)) & set(partner)), alone.sum()


def test_selection_with_gaia(grid, config):
    for band, model in grid.bands.items():
        used = model.stars[model.stars.accepted]
        galaxies, found, exist = star_counts(used[["x", "y"]].to_numpy(), band, config.crop.margin)
        assert galaxies == 0
        assert found >= 0.95 * exist
        assert set(model.stars.reason[~model.stars.accepted]) <= {
            "edge", "saturated", "bad_pixels", "crowded", "crowded_core", "shape", "chi2", "limit"}


def test_selection_without_gaia(two_bands, config):
    settings = config.epsf
    assert effective_mode(config, None) == "sep"
    sources = list_sources(two_bands, config, None)
    nobody = np.zeros(len(sources), bool)
    surveys = {band.name: survey_task(band, sources, settings, "sep", nobody, 4.0)[0] for band in two_bands.bands}
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
        folders.append({p.relative_to(layout.epsf_dir): p.read_bytes() for p in layout.epsf_dir.rglob("*") if p.is_file()})
    assert folders[0] == folders[1]
    assert len(folders[0]) == 2 * (1 + 4 * 2) + 1


def layout_in(folder):
    "A layout with all its folders below one."
    return Layout(*(folder / name for name in Layout.__dataclass_fields__))


def test_records_are_valid_and_complete(grid, tmp_path):
    import json

    layout = layout_in(tmp_path)
    write_epsf(grid, layout)
    summary = json.loads(layout.epsf_summary.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the summary"))
    assert [(row["band"], row["patch"]) for row in summary] == sorted((row["band"], row["patch"]) for row in summary)
    meta = json.loads(layout.epsf_meta("m500", "r00_c00").read_text())
    assert meta["nstars_used"] == summary[0]["nstars_used"] > 3
    assert {"psf_source", "eps_pred", "ee_12", "residual_qa", "patch_background", "cfg"} <= set(meta)
    loaded = BandPSF.load(layout.psf_model("m500"))
    for each in fields(BandPSF):
        one, other = getattr(loaded, each.name), getattr(grid.bands["m500"], each.name)
        if each.name == "stars":
            assert one.equals(other.reset_index(drop=True).astype(one.dtypes))
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
    assert answer.fallback_reason == (f"low-star ePSF (nstars_used={found} < min_epsf_nstars_for_use=2)" if found < 2 else
                                      "low-star ePSF (the band has 2 stars, a model needs 3)")


def test_given_psfs(two_bands, config, tmp_path):
    for band in two_bands.band_names:
        fits.writeto(tmp_path / f"{band}.fits", true_psf(band, 400, 400, size=61))
    settings = config.epsf.model_copy(update={"psf_fits": tmp_path / "{band}.fits"})
    given = config.model_copy(update={"epsf": settings})
    grid = build_epsf(two_bands, given)
    write_epsf(grid, layout_in(tmp_path / "out"))
    answer = psf_for_patch(layout_in(tmp_path / "out"), "m500", "r01_c01", 500, 500, given, None)
    assert answer.source == "given"
    assert answer.stamp.shape == (55, 55)
    assert answer.fallback_reason is None
    (tmp_path / "m750.fits").unlink()
    with pytest.raises(UserError, match="m750.fits"):
        build_epsf(two_bands, given)


def test_one_stamp_for_each_cell(grid, config, tmp_path):
    "With `evaluate_at: cell` every patch of a cell gets the stored stamp."
    layout = layout_in(tmp_path)
    write_epsf(grid, layout)
    by_cell = config.model_copy(update={"epsf": config.epsf.model_copy(update={"evaluate_at": "cell"})})
    one, other = (psf_for_patch(layout, "m500", "r00_c01", x, y, by_cell, 3.0) for x, y in ((420, 20), (800, 380)))
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
