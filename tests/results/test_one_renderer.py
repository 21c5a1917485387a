"""Fitted parameters become light in one place: the fit's model, the stored fit and the model images agree."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from tract7dt.fit import model as renderer
from tract7dt.fit.footprints import Pixels
from tract7dt.fit.problem import FitOptions, Kind, PixelPSF
from tract7dt.fit.render import Window
from tract7dt.patches.fit import fit_patch
from tract7dt.patches.payload import read_payload
from tract7dt.patches.problem import load_psfs
from tract7dt.patches.stored import read_fit
from tract7dt.results.finished import open_run
from tract7dt.results.model_images import BandSources, draw_strip, largest_footprint, skies

pytestmark = pytest.mark.xdist_group("middle_run")
PACKAGE = Path(inspect.getfile(renderer)).parents[1]
TAG = "r00_c00_pr01_pc01"


def test_only_the_fit_renders():
    """No room but `fit` makes images of profiles: whoever wants one calls `fit.model`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        names = {
            n.id for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Name)
        }
        found |= (
            {path.parent.name}
            if names & {"render_stack", "profile_transform", "mixture_transform"}
            else set()
        )
    assert found == {"fit"}


@pytest.fixture(scope="module")
def three(middle_run):
    """One patch: its payload, and its model images over the base box, by the fit, as stored, in the frame."""
    run = open_run(middle_run[0])
    payload = read_payload(run.layout.payload(TAG))
    psfs = load_psfs(payload, run.layout, run.cfg)
    patch = payload.patch
    base = patch.base.shift(-patch.roi.x0, -patch.roi.y0).slices
    drawn = [
        draw_strip(run, band, BandSources.of(run.catalog, band.name), skies(run.catalog, band), patch.base)
        for band in run.bands
    ]
    fitted = fit_patch(payload, psfs, run.cfg).model[(..., *base)]
    stored = read_fit(payload, psfs, run.layout, run.cfg).model[(..., *base)]
    return payload, fitted, stored, np.array(drawn)


def test_all_users_agree(three):
    """In units of the sky noise.

    Stored: the light at a footprint's edge, the root of `footprint_loss` at most. Frame: the light beyond the
    footprints too, and sources of the halo as their own patch measured them; most pixels have none of either.
    """
    payload, fitted, stored, drawn = three
    noise = np.array([cut.sky_sigma for cut in payload.bands])[:, None, None]
    assert np.abs((stored - fitted) / noise).max() < np.sqrt(FitOptions().footprint_loss)
    for other in (fitted, stored):
        off = np.abs(drawn - other) / noise
        assert np.median(off) < 0.01 and np.quantile(off, 0.95) < 0.2
    assert (
        np.quantile(fitted, 0.999, axis=(1, 2)) - np.median(fitted, axis=(1, 2)) > 20 * noise[:, 0, 0]
    ).all()


@pytest.mark.parametrize("kind", [Kind.STAR, Kind.EXP, Kind.SERSIC])
def test_where_an_image_is_cut_does_not_matter(kind):
    """A source drawn into a part of the frame is that part of it drawn into the frame, to rounding."""
    rows, columns = np.mgrid[-12:13, -12:13]
    stamp = np.exp(-(rows**2 + columns**2) / 8.0)
    psf = PixelPSF(stamp / stamp.sum())
    none = np.zeros((1, 0, 0), np.float32)
    theta = np.array([30.3, 25.6, np.log(2.0), 0.2, -0.1, 2.0])
    source = renderer.FittedSource(int(kind), theta, np.float32([1000.0]), (30.0, 25.0))
    images = []
    for frame in (Window(0, 60, 0, 50), Window(20, 45, 10, 30)):
        pixels = Pixels(none, none, (psf,), {})
        image = np.zeros((1, *frame.shape), np.float32)
        footprint = largest_footprint(source, frame, pixels.psf_radius)
        renderer.add_source(image, frame, source, footprint, pixels)
        images.append(image[0])
    np.testing.assert_allclose(images[0][10:30, 20:45], images[1], atol=1000 * 2e-6)
    assert images[0].sum() == pytest.approx(1000, rel=0.02) and images[0].argmax() == 26 * 60 + 30
