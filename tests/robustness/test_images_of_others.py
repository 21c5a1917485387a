"""Files with the names, units and cards of other surveys run as they are, with a preset or a few keys."""

import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits

from tract7dt.config.load import load_config
from tract7dt.core.errors import Problems, UserError
from tract7dt.inputs.headers import read_bands
from tract7dt.pipeline.commands import check, run
from tract7dt.results.finished import open_band, open_bands, open_run
from tract7dt.tile.load import load_inputs

SHAPE, SCALE, FWHM, SKY = (300, 320), 0.4, 3.2, 6.0  # pixels, arcsec, pixels, counts of ZP
ZP, GAIN = 26.0, 2.0  # of the counts that are simulated


def scene():
    """Stars on a jittered grid: positions and fluxes in counts."""
    rng = np.random.default_rng(8)
    x, y = (grid.ravel() + rng.uniform(-4, 4, 36) for grid in np.meshgrid(*[np.linspace(40, 260, 6)] * 2))
    return x, y, 10 ** rng.uniform(3.7, 5, 36)


def counts(seed):
    """The image of the stars (Moffat, beta 3), and the stars."""
    galsim = pytest.importorskip("galsim")
    x, y, flux = scene()
    image = np.zeros(SHAPE)
    for u, v, f in zip(x, y, flux):
        star = galsim.Moffat(beta=3, fwhm=FWHM, flux=f).shift(u - (SHAPE[1] - 1) / 2, v - (SHAPE[0] - 1) / 2)
        image += star.drawImage(nx=SHAPE[1], ny=SHAPE[0], scale=1).array
    rng = np.random.default_rng(seed)
    return image + rng.normal(size=SHAPE) * np.sqrt(SKY**2 + np.maximum(image, 0) / GAIN)


def wcs(**cards):
    made = dict(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=150.0, CRVAL2=2.0, CRPIX1=160.5, CRPIX2=150.5)
    step = SCALE / 3600
    return fits.Header(made | dict(CD1_1=-step, CD1_2=0.0, CD2_1=0.0, CD2_2=step) | cards)


def unit(zp):
    """Counts in the unit of another zero point."""
    return 10 ** (0.4 * (zp - ZP))


def sdss(folder):
    for k, band in enumerate("gr"):
        cards = wcs(FILTER=band, NMGY=0.005, BUNIT="nanomaggy", ORIGIN="SDSS")
        hdus = [
            fits.PrimaryHDU((counts(k) * unit(22.5)).astype("f4"), cards),
            fits.ImageHDU(np.ones(320, "f4")),
        ]
        fits.HDUList(hdus).writeto(folder / f"frame-{band}-000094-1-0131.fits")
    return ["frame-g-000094-1-0131.fits", "frame-r-000094-1-0131.fits"], 22.5


def legacysurvey(folder):
    scale = unit(22.5)
    for k, band in enumerate("gz"):
        cards = wcs(FILTER=band, MAGZERO=22.5, BUNIT="nanomaggy", BRICK="1498p020", LEGPIPEV="DR10.1")
        image, invvar = counts(k) * scale, np.full(SHAPE, (SKY * scale) ** -2, "f4")
        invvar[:20] = 0
        for kind, data in (("image", image.astype("f4")), ("invvar", invvar)):
            hdu = fits.CompImageHDU(data, cards, quantize_level=0, compression_type="GZIP_2")
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(
                folder / f"legacysurvey-1498p020-{kind}-{band}.fits.fz"
            )
    bits = np.zeros(SHAPE, "i4")
    bits[100:104, 10:20], bits[110:114, 10:20] = 0x20, 0x2
    masks = [fits.CompImageHDU(data, name=name) for data, name in ((bits, "MASKBITS"), (bits * 0, "WISEM1"))]
    fits.HDUList([fits.PrimaryHDU(), *masks]).writeto(folder / "legacysurvey-1498p020-maskbits.fits.fz")
    return [f"legacysurvey-1498p020-image-{band}.fits.fz" for band in "gz"], 22.5


def vista(folder):
    for k, band in enumerate(("J", "Ks")):
        primary = fits.PrimaryHDU(header=fits.Header(dict(INSTRUME="VIRCAM", EXPTIME=10.0, CRVAL1=12.0)))
        primary.header["HIERARCH ESO INS FILT1 NAME"] = band
        cards = wcs(MAGZPT=ZP - 2.5, SATURATE=60000.0)
        tile = fits.CompImageHDU(counts(k).astype("f4"), cards, quantize_level=0, compression_type="GZIP_2")
        fits.HDUList([primary, tile]).writeto(folder / f"{band}_st_tl.fits")
        confidence = fits.CompImageHDU(np.full(SHAPE, 100, "i2"), cards)
        fits.HDUList([fits.PrimaryHDU(), confidence]).writeto(folder / f"{band}_st_tl_conf.fits")
    return ["J_st_tl.fits", "Ks_st_tl.fits"], ZP


def cfht(folder):
    for k, band in enumerate(("g.MP9401", "r.MP9601")):
        cards = wcs(
            FILTER=band, PHOTZP=30.0, GAIN=GAIN / unit(30), SATURATE=6e4 * unit(30), INSTRUME="MegaPrime"
        )
        fits.writeto(folder / f"D1.{band[0].upper()}.fits", (counts(k) * unit(30)).astype("f4"), cards)
        fits.writeto(folder / f"D1.{band[0].upper()}.weight.fits", np.full(SHAPE, 7, "f4"), cards)
    return ["D1.G.fits", "D1.R.fits"], 30.0


def sevendt(folder):
    scale = unit(23.9)
    for k, band in enumerate(("m400", "m650")):
        cards = wcs(FILTER=band, ZP_AUTO=23.9, SKYVAL=0.0, SKYSIG=SKY * scale * 0.7, EGAIN=GAIN / scale)
        cards.update(SATURATE=6e4 * scale, PEEING=FWHM, SEEING=FWHM * SCALE, SANITY=True, EXPTIME=300.0)
        stem = f"T08147_{band}_7DT02_20251126_043413_100s_coadd"
        fits.writeto(folder / f"{stem}.fits", (counts(k) * scale).astype("f4"), cards)
        fits.writeto(folder / f"{stem}_weight.fits", np.full(SHAPE, (SKY * scale) ** -2, "f4"), cards)
        planes = dict(NGEOM=3, NUSED=3, NBAD=0, NSAT=0, NTRAIL=0, NOUTLIER=0)
        hdus = [fits.CompImageHDU(np.full(SHAPE, n, "u1"), name=name) for name, n in planes.items()]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / f"{stem}_counts.fits")
    return [f"T08147_{band}_7DT02_20251126_043413_100s_coadd.fits" for band in ("m400", "m650")], 23.9


MAKERS = {"sdss": sdss, "legacysurvey": legacysurvey, "vista": vista, "cfht": cfht, "7dt": sevendt}


def configuration(folder, names, **inputs):
    """A configuration of images in `folder`, with a catalog of the stars."""
    x, y, _ = scene()
    ra, dec = fits_wcs().all_pix2world(x, y, 0)
    pd.DataFrame(dict(ID=np.arange(len(x)), RA=ra, DEC=dec, TYPE="STAR")).to_csv(
        folder / "cat.csv", index=False
    )
    (folder / "images.txt").write_text("".join(f"{name}\n" for name in names))
    settings = dict(
        inputs=dict(input_catalog="cat.csv", image_list_file="images.txt", gaiaxp_synphot_csv=None) | inputs,
        outputs=dict(work_dir="work"),
        crop=dict(enabled=False),
        zp=dict(enabled=False),
        overlay=dict(enabled=False),
        epsf=dict(epsf_ngrid=1, ngrid=1),
        patch_run=dict(max_workers=1, no_cutouts=True, no_patch_overview=True),
        plotting=dict(dpi=30),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder / "config.yaml"


def fits_wcs():
    from astropy.wcs import WCS

    return WCS(wcs())


@pytest.mark.parametrize("survey", MAKERS)
def test_survey_runs_by_its_preset(survey, tmp_path, capsys):
    """Fluxes are right in the unit of the survey (3 % of a hundred noises), the noise to 2 %."""
    names, zp = MAKERS[survey](tmp_path)
    path = configuration(tmp_path, names, preset=survey)
    cfg = load_config(path)
    bands = load_inputs(cfg).bands
    assert [band.zp_auto for band in bands] == pytest.approx([zp, zp])
    assert [band.skysig / unit(zp) / SKY for band in bands] == pytest.approx([1, 1], abs=0.02)
    assert check(cfg).tile.band_names == tuple(band.name for band in bands)
    assert "nan" not in capsys.readouterr().out
    assert [open_band(open_run(cfg), band.name).skysig for band in bands] == [band.skysig for band in bands]
    assert [band.skysig for band in open_bands(cfg)] == [band.skysig for band in bands]
    if survey in ("sdss", "7dt"):
        result = run(cfg)
        flux = scene()[2] * 10 ** (-0.4 * (ZP - 25))
        for band in bands:
            ratio = result.catalog[f"FLUX_{band.name}_fit"].to_numpy(float) / flux
            assert np.median(ratio) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("survey", ["sdss", "legacysurvey", "vista", "cfht"])
def test_without_the_preset_its_name_is_said(survey, tmp_path):
    """One line an image: what is missing, where it is, and the preset that knows."""
    names, _ = MAKERS[survey](tmp_path)
    hdu = 1 if survey in ("vista", "legacysurvey") else None
    problems = Problems()
    read_bands(load_config(configuration(tmp_path, names, hdu=hdu)), problems)
    lines = [line for line in problems.errors if "are missing" in line]
    assert len(lines) == 2 and all(f"or inputs.preset: {survey} for all" in line for line in lines)


def test_weight_of_zero_and_mask_bits_of_a_brick(tmp_path):
    names, _ = legacysurvey(tmp_path)
    cfg = load_config(configuration(tmp_path, names, preset="legacysurvey"))
    mask = load_inputs(cfg).read("g").mask
    assert mask[:20].all() and mask[100:104, 10:20].all() and not mask[110:114, 10:20].any()


def test_rejected_images_are_refused_in_one_line(tmp_path):
    names, _ = sevendt(tmp_path)
    for name in names:
        fits.setval(tmp_path / name, "SANITY", value=False)
    path = configuration(tmp_path, names, preset="7dt")
    with pytest.raises(UserError) as refusal:
        load_inputs(load_config(path))
    (line,) = str(refusal.value).splitlines()
    assert "SANITY = F" in line and names[0] in line and names[1] in line and "use_rejected" in line
    cfg = load_config(path, {"inputs.use_rejected": True})
    problems = Problems()
    assert len(read_bands(cfg, problems)) == 2 and not problems.errors
    assert any("SANITY = F" in line for line in problems.warnings)


def test_paths_may_be_relative_to_the_list(tmp_path):
    images = tmp_path / "data"
    images.mkdir()
    names, _ = sdss(images)
    configuration(tmp_path, names, preset="sdss")
    (tmp_path / "images.txt").rename(images / "images.txt")
    cfg = load_config(tmp_path / "config.yaml", {"inputs.image_list_file": str(images / "images.txt")})
    assert [band.path.parent for band in read_bands(cfg, Problems())] == [images, images]
    (tmp_path / names[0]).write_bytes((images / names[0]).read_bytes())
    assert [band.path.parent for band in read_bands(cfg, Problems())] == [tmp_path, images]
