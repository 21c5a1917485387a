"""All forms of the PSF: against GalSim, in the fit, and in the record of what was used."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_inputs import SCALE, Field, rows_at

from tract7dt.config.schema import MoffatPsf, PatchRun
from tract7dt.epsf.model import BandPSF
from tract7dt.epsf.patch_psf import fallback_stamp, mixture_stamp
from tract7dt.fit.problem import PSFError
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs, read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.patches.record import patch_meta
from tract7dt.pipeline.run_patches import prepare_cells
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.layout import Layout

galsim = pytest.importorskip("galsim")
pytestmark = pytest.mark.xdist_group("middle_run")
FORMS = ("pixelized", "hybrid", "gaussian_mixture_from_stamp")
FALLBACKS = ("moffat", "ncircular_gaussian", "gaussian_mixture")


def changed(cfg, **patch_run):
    return cfg.model_copy(update={"patch_run": cfg.patch_run.model_copy(update=patch_run)})


def sampled(profile, side: int) -> np.ndarray:
    """A GalSim profile at the middles of the pixels, unit sum."""
    image = profile.drawImage(nx=side, ny=side, scale=1, method="no_pixel").array
    return image / image.sum()


def with_epsf(run, folder):
    """Configuration and layout of a run, with a copy of its ePSFs that a test may add to."""
    import shutil

    layout = Layout.of(run[0].outputs)
    shutil.copytree(layout.epsf_dir, folder / "EPSFs")
    return run[0], replace(layout, epsf_dir=folder / "EPSFs")


@pytest.fixture(scope="module")
def run_and_layout(middle_run, tmp_path_factory):
    return with_epsf(middle_run, tmp_path_factory.mktemp("epsf"))


@pytest.fixture(scope="module")
def payload(middle_run):
    layout = Layout.of(middle_run[0].outputs)
    return read_payload(layout.payload(sorted(middle_run[1].fits.done)[0]))


@pytest.fixture(scope="module")
def fits(run_and_layout, payload):
    """The same patch fitted with each form of the ePSF."""
    cfg, layout = run_and_layout
    each = {form: changed(cfg, psf_model=form) for form in FORMS}
    return {form: fit_patch(payload, load_psfs(payload, layout, own), own) for form, own in each.items()}


@pytest.mark.parametrize("fwhm", (1.7, 3.2, 5.0))
def test_moffat_fallback_is_galsims_moffat(fwhm):
    stamp = fallback_stamp(fwhm, PatchRun(), MoffatPsf(beta=2.8, radius_pix=25), 1)
    expected = sampled(
        galsim.Moffat(beta=2.8, fwhm=fwhm, gsparams=galsim.GSParams(maximum_fft_size=65536)), 51
    )
    assert np.abs(stamp - expected).max() < 2e-3 * expected.max()


@pytest.mark.parametrize(
    "count, parts", [(1, ((1, 1),)), (2, ((1, 0.85), (2.5, 0.15))), (3, ((1, 0.8), (2, 0.15), (4, 0.05)))]
)
def test_circular_gaussians_are_those_of_070(count, parts):
    """Widths and weights as 0.7.0 documented them, with s = FWHM / 2.35482."""
    stamp = fallback_stamp(
        3.0, PatchRun(psf_fallback_model="ncircular_gaussian", ncircular_gaussian_n=count), MoffatPsf(), 1
    )
    expected = sampled(
        galsim.Add([galsim.Gaussian(sigma=w * 3.0 / 2.35482, flux=f) for w, f in parts]), len(stamp)
    )
    assert np.abs(stamp - expected).max() < 1e-3 * expected.max()


def test_gaussian_mixture_fallback_is_a_gaussian_on_the_stamp_that_was_asked_for():
    run = PatchRun(psf_fallback_model="gaussian_mixture", fallback_stamp_radius_pix=18, gaussian_mixture_n=2)
    stamp = fallback_stamp(4.0, run, MoffatPsf(), 1)
    assert stamp.shape == (37, 37)
    assert np.abs(stamp - sampled(galsim.Gaussian(fwhm=4.0), 37)).max() < 5e-3 * stamp.max()


def test_hybrid_fits_as_the_stamp_itself(fits):
    assert np.array_equal(fits["hybrid"].result.flux, fits["pixelized"].result.flux, equal_nan=True)
    assert {psf.form for psf in fits["hybrid"].psfs.values()} == {"hybrid"}


def test_a_mixture_measures_the_same_stars(fits):
    """Four Gaussians miss the ePSF by some percent of its peak, and fluxes by some percent; no more."""
    bright = fits["pixelized"].measured.eval("FLUX_m650_fit > 50 * FLUXERR_m650_fit") & fits[
        "pixelized"
    ].measured.stype_fit.eq("star")
    ratio = (
        fits["gaussian_mixture_from_stamp"].measured.FLUX_m650_fit / fits["pixelized"].measured.FLUX_m650_fit
    )[bright]
    assert bright.sum() >= 3 and 0 < abs(ratio - 1).max() < 0.05


def test_what_was_used_is_on_record(fits, run_and_layout):
    cfg = run_and_layout[0]
    for form, fit in fits.items():
        meta = patch_meta(fit, changed(cfg, psf_model=form).patch_run, "f")
        frozen = [cut.name for cut in fit.payload.bands] if form == "gaussian_mixture_from_stamp" else []
        assert meta["psf_frozen_bands_for_optimizer"] == frozen
        assert set(fit.measured.psf_frozen_bands_for_optimizer) == {",".join(frozen)}
        assert {audit["psf_model"] for audit in meta["psf_audit"].values()} == {form}
        assert all(audit["used_epsf"] and audit["epsf_exists"] for audit in meta["psf_audit"].values())


def test_gaussians_are_fitted_once_for_a_cell(run_and_layout, middle_run, tmp_path):
    cfg, layout = with_epsf(middle_run, tmp_path)
    cfg = changed(cfg, psf_model="gaussian_mixture_from_stamp")
    tags = sorted(middle_run[1].fits.done)
    mixture_stamp.cache_clear()
    prepare_cells(tags, layout, cfg)
    assert len(tags) == 4 and mixture_stamp.cache_info().misses == 3
    kept = layout.gaussian_mixture("m500", "r00_c00").read_bytes()
    stamps = [load_psfs(read_payload(layout.payload(tag)), layout, cfg)["m500"].stamp for tag in tags]
    assert mixture_stamp.cache_info().misses == 3 and all((stamp == stamps[0]).all() for stamp in stamps)
    fewer = changed(cfg, gaussian_mixture_n=2)
    assert (
        np.abs(
            load_psfs(read_payload(layout.payload(tags[0])), layout, fewer)["m500"].stamp - stamps[0]
        ).max()
        > 0
    )
    assert layout.gaussian_mixture("m500", "r00_c00").read_bytes() != kept


@pytest.mark.parametrize("form", FALLBACKS)
def test_without_an_epsf_every_fallback_fits(payload, run_and_layout, tmp_path, form):
    cfg, layout = (
        changed(run_and_layout[0], psf_fallback_model=form),
        replace(run_and_layout[1], epsf_dir=tmp_path),
    )
    fit = fit_patch(payload, load_psfs(payload, layout, cfg), cfg)
    row = fit.measured.iloc[0]
    assert json.loads(row.psf_fallback_reasons_json) == {
        band: "missing ePSF" for band in ("m500", "m650", "m750")
    }
    assert (row.psf_used_epsf_band_count, row.psf_fallback_band_count, row.psf_low_star_band_count) == (
        0,
        3,
        0,
    )
    assert row.psf_frozen_bands_for_optimizer == ("" if form == "moffat" else "m500,m650,m750")
    assert np.isfinite(fit.measured.FLUX_m650_fit).all() and fit.measured.opt_converged.mean() > 0.8


@pytest.mark.parametrize(
    "cards, fwhm",
    [
        (dict(PEEING=3.4, SEEING=9.9), 3.4),
        (dict(PEEING=None, SEEING=1.6), 1.6 / (SCALE * 3600)),
        (dict(PEEING=-1.0, SEEING=1.6), 1.6 / (SCALE * 3600)),
        (dict(PEEING=None), 4.0),
    ],
)
def test_the_seeing_of_the_header_makes_the_fallback(tmp_path, cards, fwhm):
    """PEEING is in pixels, SEEING in arcseconds (0.7.0 took it as pixels), a bad PEEING does not hide a good
    SEEING.
    """
    field = Field(tmp_path, bands=("m400",))
    field.image(
        "m400",
        np.zeros((120, 160), "f4") + np.random.default_rng(1).normal(0, 1, (120, 160)).astype("f4"),
        **cards,
    )
    field.catalog(rows_at([(80, 60)]))
    cfg = field.cfg(epsf=dict(epsf_ngrid=1, ngrid=1))
    tile = load_inputs(cfg)
    (payload,) = build_patch_inputs(tile, build_patches(tile, cfg), cfg)
    psf = load_psfs(payload, Layout.of(cfg.outputs), cfg)["m400"]
    expected = sampled(galsim.Moffat(beta=3.5, fwhm=fwhm), 51)
    assert np.abs(psf.stamp - expected).max() < 3e-3 * expected.max()


def test_a_star_in_the_corner_has_the_psf_of_the_corner(payload, run_and_layout):
    """An image of one star far from the middle of its patch, drawn with the band's model there, five times as
    variable as the real one: with weights by its photons the flux is off by a tenth of a percent, and the
    gradient takes nine tenths of that. (With the error of its profile the core would be summed up.)"""
    cfg, layout = run_and_layout
    model = BandPSF.load(layout.psf_model("m650"))
    terms = model.coef.copy()
    terms[0, 1:3] = 0.2, -0.15
    terms[:, 3:] = 0
    lively = replace(model, coef=terms, cell_offset=0 * model.cell_offset)
    lively.save(layout.psf_model("m650"))
    try:
        psfs = load_psfs(payload, layout, cfg)
    finally:
        model.save(layout.psf_model("m650"))
    roi, base = payload.patch.roi, payload.patch.base
    x, y, half = base.x1 - 40, base.y1 - 40, 27
    image = np.zeros(roi.shape, np.float32)
    image[y - roi.y0 - half : y - roi.y0 + half + 1, x - roi.x0 - half : x - roi.x0 + half + 1] = (
        1e5 * lively.stamp(x, y, 55, 1)
    )
    cut = replace(
        next(c for c in payload.bands if c.name == "m650"), image=image, mask=np.zeros(roi.shape, np.uint8)
    )
    sources = payload.sources.iloc[:1].assign(
        TYPE="STAR", x_pix_patch=float(x - roi.x0), y_pix_patch=float(y - roi.y0)
    )
    alone = replace(payload, bands=(cut,), sources=sources)
    exact = replace(psfs["m650"], error=PSFError())
    moving = fit_patch(alone, {"m650": exact}, cfg).result.flux[0, 0]
    still = fit_patch(alone, {"m650": replace(exact, gradient=None)}, cfg).result.flux[0, 0]
    assert abs(moving / 1e5 - 1) < 0.1 * abs(still / 1e5 - 1) and abs(still / 1e5 - 1) > 0.0005
