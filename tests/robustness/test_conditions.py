"""Everything that can be wrong with the inputs, a row of a table each: what `check` says, and how it ends.

`refused`: exit code 2, one line (or one for each file) with all the words, nothing is made. `warned`: exit
code 0, a line with
all the words, and every row of the catalog is kept.
"""

import builtins
import errno
import io
import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from small_inputs import Field, header, noise

from tract7dt.cli.commands import commands
from tract7dt.cli.main import cli
from tract7dt.config import load as configfile
from tract7dt.inputs import fits as fits_image
from tract7dt.tile.load import load_inputs

GAIA = "source_id,ra,dec,phot_g_mean_mag,mag_m400,mag_m425\n11,150.0,2.0,15,15,15\n"
PRIORS = "ID,RA,DEC,TYPE,FLUX_m400,FLUX_m400_ERR,Re,Re_ERR,POS_ERR\n"


@dataclass(frozen=True)
class Case:
    """A condition: how to bring it about in a field (returns sections of the configuration), what must be
    said.
    """

    condition: str
    bring: object
    words: tuple
    refused: bool = True


def catalog(*lines):
    return lambda f: f.catalog("".join(f"{line}\n" for line in lines))


def cards(name="m400", **values):
    return lambda f: f.image(name, noise(), **values)


def gaia(text, **sections):
    def bring(f):
        f.gaia(text)
        return dict(zp=dict(enabled=True, min_box_size_pix=10)) | sections

    return bring


def gone(name):
    return lambda f: (f.folder / name).unlink()


def text_file(name, content):
    return lambda f: (f.folder / name).write_bytes(content)


def cut(f):
    data = (f.folder / "m425.fits").read_bytes()
    (f.folder / "m425.fits").write_bytes(data[: len(data) // 2])


def empty_hdu(f):
    fits.PrimaryHDU().writeto(f.folder / "m425.fits", overwrite=True)


def other_shape(f):
    fits.writeto(
        f.folder / "m425.fits", noise(shape=(60, 80)), header((60, 80), FILTER="m425"), overwrite=True
    )


WARNED = False
CASES = [
    Case(
        "unknown key",
        lambda f: dict(text={"margin: ": "margins: "}),
        ("crop.margins", "did you mean crop.margin"),
    ),
    Case(
        "wrong type",
        lambda f: dict(text={"psf_model: pixelized": "psf_model: 7"}),
        ("patch_run.psf_model", "7", "pixelized", "hybrid"),
    ),
    Case(
        "no choice",
        lambda f: dict(text={"gal_model: exp": "gal_model: round"}),
        ("patch_run.gal_model", "'round'", "exp", "sersic"),
    ),
    Case(
        "out of range",
        lambda f: dict(text={"n_opt_iters: ": "n_opt_iters: -"}),
        ("patch_run.n_opt_iters", "-", "int >= 1"),
    ),
    Case(
        "placeholder",
        lambda f: dict(inputs=dict(input_catalog="path/to/input_catalog.csv")),
        ("inputs.input_catalog", "set it to your file"),
    ),
    Case("catalog missing", gone("cat.csv"), ("cat.csv", "inputs.input_catalog", "No such file")),
    Case(
        "catalog unreadable",
        catalog("ID,RA,DEC", "a,150,2", "b,150,2,3,4"),
        ("cat.csv", "inputs.input_catalog", "line 3", "comma-separated"),
    ),
    Case("catalog no text", text_file("cat.csv", b"\xff\xfe\x00ID"), ("cat.csv", "inputs.input_catalog")),
    Case("catalog empty", catalog("ID,RA,DEC"), ("cat.csv", "at least one row")),
    Case(
        "no RA",
        catalog("ID,ALPHA,DEC", "a,150,2"),
        ("cat.csv", "no column RA", "ID, ALPHA, DEC", "in any case"),
    ),
    Case("no RA and DEC", catalog("ID,x,y", "a,150,2"), ("no column RA and DEC", "ID, x, y")),
    Case("RA in another case", catalog("ID,ra,Dec", "a,150,2"), ("'ra' and 'Dec'", "degrees"), WARNED),
    Case(
        "two columns of one meaning",
        catalog("ID,RA,DEC,Type,TYPE", "a,150,2,EXP,EXP"),
        ("'Type' and 'TYPE'", "rename one"),
    ),
    Case(
        "two columns of one name", catalog("ID,RA,DEC,TYPE,TYPE", "a,150,2,EXP,EXP"), ("TYPE", "rename one")
    ),
    Case(
        "RA not numeric",
        catalog("ID,RA,DEC", "a,150,2", "bad,here,2"),
        ("RA not a number", "row 2 (ID bad): here", "kept, not fitted"),
        WARNED,
    ),
    Case(
        "DEC out of range",
        catalog("ID,RA,DEC", "a,150,2", "bad,150,200"),
        ("DEC", "out of range [-90, 90]", "row 2 (ID bad): 200", "kept, not fitted"),
        WARNED,
    ),
    Case(
        "all rows outside",
        catalog("ID,RA,DEC", "a,10,2", "b,11,3"),
        ("none of the 2 rows", "(10, 2)", "frame corners", "150.0", "check coordinates, WCS"),
    ),
    Case(
        "duplicate ID",
        catalog("ID,RA,DEC", "a,150,2", "b,150,2", "a,150,2"),
        ("'a' in rows 1, 3", "make IDs unique"),
    ),
    Case(
        "empty ID",
        catalog("ID,RA,DEC", "a,150,2", " ,150,2"),
        ("empty ID in 1 row (row 2)", "make IDs unique"),
    ),
    Case("no ID", catalog("RA,DEC", "150,2"), ("no ID column", "row numbers"), WARNED),
    Case(
        "unknown TYPE",
        catalog("ID,RA,DEC,TYPE", "a,150,2,BLOB", "b,150,2,BLOB"),
        ("TYPE 'BLOB' in 2 rows", "EXP", "patch_run.gal_model"),
        WARNED,
    ),
    Case(
        "flux of no band",
        catalog("ID,RA,DEC,FLUX_m400,FLUX_m450", "a,150,2,1,1"),
        ("FLUX_m450", "m425", "m400 (m400.fits)", "m425 (m425.fits)", "rename or drop"),
    ),
    Case(
        "flux of something else",
        catalog("ID,RA,DEC,FLUX_AUTO", "a,150,2,1"),
        ("FLUX_AUTO", "carried through"),
        WARNED,
    ),
    Case(
        "error value not positive",
        catalog(PRIORS.strip(), "a,150,2,EXP,5,0,2,1,1", "b,150,2,EXP,5,-1,2,1,nan"),
        ("FLUX_m400_ERR", "2 rows", "no prior"),
        WARNED,
    ),
    Case(
        "error value not finite",
        catalog(PRIORS.strip(), "a,150,2,EXP,5,1,2,1,inf", "b,150,2,EXP,5,1,2,1,1"),
        ("POS_ERR", "1 row", "no prior"),
        WARNED,
    ),
    Case(
        "SERSIC_n too large",
        catalog("ID,RA,DEC,TYPE,SERSIC_n", "a,150,2,SERSIC,8"),
        ("SERSIC_n outside [0.29, 6.3]", "row 1 (ID a): 8", "clipped to 6.3"),
        WARNED,
    ),
    Case(
        "SERSIC_n too small",
        catalog("ID,RA,DEC,TYPE,SERSIC_n", "a,150,2,SERSIC,0.1"),
        ("SERSIC_n", "row 1 (ID a): 0.1", "clipped to 0.29"),
        WARNED,
    ),
    Case(
        "ELL out of range",
        catalog("ID,RA,DEC,TYPE,ELL", "a,150,2,EXP,1.5", "b,150,2,EXP,0.5"),
        ("ELL not in [0, 1)", "1 row", "clipped"),
        WARNED,
    ),
    Case(
        "Re not positive",
        catalog("ID,RA,DEC,TYPE,Re", "a,150,2,EXP,0", "b,150,2,EXP,-2"),
        ("Re not in (0, inf)", "2 rows", "clipped"),
        WARNED,
    ),
    Case("image list missing", gone("images.txt"), ("images.txt", "inputs.image_list_file")),
    Case(
        "image list empty",
        lambda f: f.list("# m400.fits", "", "  "),
        ("images.txt", "one FITS path per line"),
    ),
    Case(
        "image list with a link in a circle",
        lambda f: ((f.folder / "loop").symlink_to(f.folder / "loop"), f.list("m400.fits", "loop/m425.fits")),
        ("images.txt line 2", "loop/m425.fits leads nowhere", "correct the path or the link"),
    ),
    Case(
        "image of nobody",
        lambda f: f.list("m400.fits", "~nosuchuser/m425.fits"),
        ("images.txt line 2", "~nosuchuser/m425.fits", "no such file"),
    ),
    Case(
        "work_dir below a link in a circle",
        lambda f: (
            (f.folder / "loop").symlink_to(f.folder / "loop"),
            dict(text={f"work_dir: {f.folder}/work": f"work_dir: {f.folder}/loop/work"}),
        )[1],
        ("config.yaml", "outputs.work_dir", "loop/work leads nowhere", "correct the path or the link"),
    ),
    Case(
        "image list of bytes",
        text_file("images.txt", b"m400.fits\n\x00\n"),
        ("images.txt", "inputs.image_list_file", "no text"),
    ),
    Case(
        "path with a zero byte",
        lambda f: dict(text={"file: auto": 'file: "a\\0b"'}),
        ("logging.file", "expected", "path"),
    ),
    Case(
        "same path twice",
        lambda f: f.list("m400.fits", "m425.fits", "./m400.fits"),
        ("lines 1, 3", "m400.fits", "keep one"),
    ),
    Case("image missing", gone("m425.fits"), ("m425.fits", "images.txt line 2", "relative paths start at")),
    Case(
        "image no FITS",
        text_file("m425.fits", b"hello " * 1000),
        ("m425.fits", "not a readable FITS file", "2-D image in the primary HDU"),
    ),
    Case("image empty file", text_file("m425.fits", b""), ("m425.fits", "not a readable FITS file", "2-D")),
    Case("image truncated", cut, ("m425.fits", "truncated", "2-D")),
    Case(
        "image without data",
        empty_hdu,
        ("m425.fits", "found HDU 0", "expected a 2-D image in the primary HDU"),
    ),
    Case(
        "image not 2-D",
        lambda f: f.image("m425", np.zeros((2, 5, 5), "f4")),
        ("m425.fits", "(2, 5, 5)", "expected a 2-D image in the primary HDU"),
    ),
    Case("FILTER missing", cards(FILTER=None), ("m400.fits", "FILTER", "missing")),
    Case("FILTER blank", cards(FILTER="  "), ("m400.fits", "FILTER", "blank")),
    Case(
        "FILTER twice",
        lambda f: f.image("m425", noise(), "m400"),
        ("m400.fits", "m425.fits", "'m400'", "one image per band"),
    ),
    *(
        Case(
            f"ZP_AUTO {value!r}",
            cards(ZP_AUTO=value),
            ("m400.fits", "ZP_AUTO", str(value) if value is not None else "missing", "finite AB zero point"),
        )
        for value in (None, "bright", 1e9)
    ),
    *(
        Case(
            f"{key} {value!r}",
            cards(**{key: value}),
            ("m400.fits", key, str(value) if value is not None else "missing", unit),
        )
        for key, unit in (("SKYSIG", "ADU"), ("EGAIN", "e-/ADU"))
        for value in (None, "x", 0.0, -1.0)
    ),
    Case("SATURATE missing", cards(SATURATE=None), ("m400.fits", "SATURATE", "no saturation mask"), WARNED),
    Case(
        "SATURATE not finite",
        cards(SATURATE="inf"),
        ("m400.fits", "SATURATE = 'inf'", "no saturation mask"),
        WARNED,
    ),
    Case(
        "SATURATE not positive",
        cards(SATURATE=-5.0),
        ("m400.fits", "SATURATE = -5.0", "must be positive ADU"),
    ),
    Case(
        "no seeing",
        cards(PEEING=None),
        ("m400.fits", "PEEING is missing", "SEEING is missing", "3 pix", "fallback_default_fwhm_pix"),
        WARNED,
    ),
    Case(
        "bad seeing",
        cards(PEEING=-1.0, SEEING=0.0),
        ("m400.fits", "PEEING = -1.0", "SEEING = 0.0", "3 pix"),
        WARNED,
    ),
    Case("no WCS", cards(CRVAL1=None, CTYPE2=None), ("m400.fits", "CTYPE2, CRVAL1", "WCS")),
    Case("singular WCS", cards(CD1_1=0.0, CD1_2=0.0), ("m400.fits", "WCS", "singular")),
    Case(
        "shape differs",
        other_shape,
        ("m400.fits", "m425.fits", "(120, 160)", "(60, 80)", "resample", "one grid"),
    ),
    Case(
        "WCS differs",
        cards("m425", CRVAL1=150.1),
        (
            "m425.fits",
            "m400.fits",
            "CRVAL1",
            "150.0 against 150.1",
            "difference 0.1",
            "checks.wcs_tolerance.crval",
        ),
    ),
    Case(
        "no finite pixel",
        lambda f: f.image("m425", np.full((120, 160), np.nan, "f4")),
        ("m425.fits", "no pixel with data"),
    ),
    Case(
        "crop leaves nothing",
        lambda f: dict(crop=dict(enabled=True, margin=60)),
        ("crop.margin", "60", "(120, 160)", "largest legal value is 59"),
    ),
    Case(
        "zoom box malformed",
        lambda f: dict(text={"zoom_box: [4000, 5000, 4000, 5000]": "zoom_box: [10, 5, 3]"}),
        ("overlay.zoom_box", "[10, 5, 3]"),
    ),
    Case(
        "Gaia table missing",
        lambda f: (f.gaia(GAIA), (f.folder / "gaia.csv").unlink(), dict(zp=dict(enabled=True)))[2],
        ("gaia.csv", "inputs.gaiaxp_synphot_csv", "PSF stars", "zero points", "null", "zp.enabled"),
        WARNED,
    ),
    Case(
        "Gaia table lacks columns",
        gaia("ra,dec,mag_m400,mag_m425\n150,2,15,15\n"),
        ("gaia.csv", "source_id, phot_g_mean_mag", "augmentation and zero points", "null"),
    ),
    Case(
        "Gaia table lacks a band",
        gaia(GAIA.replace(",mag_m425", ",other")),
        ("gaia.csv", "mag_m425", "PSF stars", "zero points"),
        WARNED,
    ),
    Case(
        "Gaia id no integer",
        gaia(GAIA + "1.5e18,150.001,2,15,15,15\n"),
        ("gaia.csv", "row 2", "1.5e18", "source_id as integer"),
    ),
    Case(
        "Gaia id twice",
        gaia(GAIA + "11,150.001,2,15,15,15\n"),
        ("gaia.csv", "row 2", "11", "source_id", "integer"),
        WARNED,
    ),
    Case(
        "no Gaia star in range",
        gaia(GAIA, zp=dict(enabled=True, gaia_mag_min=20.0, min_box_size_pix=10)),
        ("1 in the table", "0 with 20", "zp.gaia_mag_min", "zp.gaia_mag_max"),
        WARNED,
    ),
]


def said(field, sections, capsys):
    """Exit code of `check` and its lines on standard error."""
    text = configfile.to_yaml(
        field.as_written(**{name: values for name, values in sections.items() if name != "text"})
    )
    for old, new in sections.get("text", {}).items():
        assert old in text
        text = text.replace(old, new)
    (field.folder / "config.yaml").write_text(text)
    code = cli(["check", str(field.folder / "config.yaml")], commands())
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.condition.replace(" ", "_"))
def test_condition(case, tmp_path, capsys, caplog):
    field = Field(tmp_path)
    sections = case.bring(field)
    code, lines = said(field, sections if isinstance(sections, dict) else {}, capsys)
    lines = lines if case.refused else [record.getMessage() for record in caplog.records]
    assert code == (2 if case.refused else 0), lines
    assert any(all(word in line for word in case.words) for line in lines), lines
    assert not (tmp_path / "work").exists()
    if not case.refused:
        rows = load_inputs(configfile.load_config(tmp_path / "config.yaml")).catalog
        assert len(rows) == len(pd.read_csv(tmp_path / "cat.csv")), "a row is lost"


def test_rows_that_cannot_be_fitted_say_why(tmp_path):
    field = Field(tmp_path)
    field.catalog("ID,RA,DEC\na,150,2\nno,here,2\nfar,10,2\n")
    rows = load_inputs(field.cfg()).catalog.set_index("ID")
    assert dict(rows.excluded_reason) == {"a": "", "no": "no_coordinates", "far": "off_frame"}


def test_errors_of_fluxes_are_taken(tmp_path, capsys):
    """FLUX_{band}_ERR, of which 0.7.0 thought that it was a band, is fine in any case of letters."""
    field = Field(tmp_path)
    field.catalog("ID,RA,DEC,FLUX_m400,flux_M400_err\na,150,2,5,1\n")
    code, lines = said(field, {}, capsys)
    assert code == 0 and not [line for line in lines if "FLUX" in line.upper()]


def test_filter_that_is_a_number_is_its_text(tmp_path):
    field = Field(tmp_path)
    field.image("m400", noise(), FILTER=400)
    assert load_inputs(field.cfg()).band_names == ("400", "m425")


def test_ten_rows_are_named_and_the_rest_counted(tmp_path, capsys):
    field = Field(tmp_path)
    field.catalog("ID,RA,DEC\n" + "a,150,2\n" * 25)
    code, lines = said(field, {}, capsys)
    assert code == 2 and len(lines) == 1
    assert "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, and 15 more" in lines[0]


def test_all_problems_of_all_files_come_together(tmp_path, capsys):
    field = Field(tmp_path)
    field.image("m400", noise(), SKYSIG=-1.0, EGAIN=None)
    (tmp_path / "m425.fits").unlink()
    field.catalog("ID,RA,DEC\na,150,2\na,150,2\n")
    code, lines = said(field, {}, capsys)
    assert code == 2 and len(lines) == 4 and all(line.startswith("tract7dt: ") for line in lines), lines


def refusing(monkeypatch, name, failure):
    """Opening files of this name fails, whoever does it."""
    real = builtins.open

    def opened(path, *values, **options):
        if isinstance(path, str | os.PathLike) and os.path.basename(path) == name:
            raise failure
        return real(path, *values, **options)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", opened)


REFUSALS = {
    errno.EACCES: "Permission denied; give yourself the right to use it",
    errno.EMFILE: "Too many open files; raise the limit of open files (ulimit -n)",
    errno.EIO: "Input/output error; check the disk",
}


@pytest.mark.parametrize("name", ["m425.fits", "cat.csv", "images.txt", "gaia.csv", "config.yaml"])
@pytest.mark.parametrize("number", REFUSALS)
def test_a_file_that_the_system_refuses_is_not_called_damaged(tmp_path, monkeypatch, capsys, name, number):
    """There is nothing wrong with it that its user could correct in it."""
    field = Field(tmp_path)
    field.gaia("source_id,ra,dec,phot_g_mean_mag,mag_m400\n1,150,2,15,16\n")
    (tmp_path / "config.yaml").write_text(
        configfile.to_yaml(field.as_written(zp=dict(enabled=True, min_box_size_pix=10)))
    )
    refusing(monkeypatch, name, OSError(number, os.strerror(number), str(tmp_path / name)))
    code = cli(["check", str(tmp_path / "config.yaml")], commands())
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and f"{tmp_path / name}: cannot be read ({REFUSALS[number]})" in line
    assert not any(word in line for word in ("damaged", "truncated", "expected", "correct", "give a"))


def test_too_little_memory_for_an_image_is_not_called_damage(tmp_path, monkeypatch, capsys):
    field = Field(tmp_path)
    (tmp_path / "config.yaml").write_text(configfile.to_yaml(field.as_written()))

    def too_large(*values):
        raise MemoryError("Unable to allocate 9.11 GiB for an array")

    monkeypatch.setattr(fits_image.Plain, "section", too_large)
    assert cli(["check", str(tmp_path / "config.yaml")], commands()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "m400.fits: cannot be read (not enough memory (Unable to allocate 9.11 GiB for an array); "
        "lower performance.max_memory_gb"
    ) in line


def test_too_little_memory_anywhere_is_no_mistake_of_the_program(tmp_path, monkeypatch, capsys):
    field = Field(tmp_path)
    (tmp_path / "config.yaml").write_text(configfile.to_yaml(field.as_written()))
    monkeypatch.setattr(
        "tract7dt.pipeline.commands.divide_frame", lambda *values: (_ for _ in ()).throw(MemoryError())
    )
    assert cli(["check", str(tmp_path / "config.yaml")], commands()) == 2
    assert (
        capsys.readouterr().err
        == "tract7dt: not enough memory; lower performance.max_memory_gb, use fewer workers, or crop\n"
    )
