"""One line for each mistake, before anything heavy starts; help itself is in test_help.py."""

import importlib.util
import shutil

import pytest
from astropy.io import fits

from tract7dt.cli.commands import commands
from tract7dt.cli.main import cli


@pytest.fixture
def tile(fresh_sample):
    """A copy of the sample tile to break."""
    return fresh_sample("broken")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit_header(path, **cards):
    with fits.open(path, mode="update") as hdus:
        for key, value in cards.items():
            if value is None:
                del hdus[1].header[key]
            else:
                hdus[1].header[key] = value


def refused(program, tile, *words):
    """The run refuses with code 2, without a traceback, saying `words`, before it makes anything heavy."""
    done = program("run", "--config", tile / "config.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert str(word) in done.stderr, f"{word!r} is not in: {done.stderr}"
    assert not (tile / "work" / "EPSFs").exists()


def test_make_sample_says_where(tmp_path, monkeypatch, capsys):
    """The path that it returns is printed; `--dir` names the folder."""
    from tract7dt.sample import make as room

    monkeypatch.setattr(room, "write_sample", lambda folder, size, seed: folder.mkdir())
    assert cli(["make-sample", "--dir", str(tmp_path / "sample")], commands()) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'sample' / 'config.yaml'}\n"


@pytest.mark.parametrize("command, hint", [("model", "build-patch-inputs"), ("report", "")])
def test_model_and_report_of_a_run_that_was_not(program, tile, command, hint):
    """There is nothing to draw; the report is a page of what is missing."""
    done = program(command, tile / "config.yaml")
    assert "Traceback" not in done.stderr and hint in done.stderr
    assert done.returncode == (2 if hint else 0)
    assert (tile / "work" / "report.html").exists() == (not hint)


def test_unknown_option_runs_nothing(program, tmp_path):
    done = program("dump-config", "--out", tmp_path / "c.yaml", "--colour", "red")
    assert done.returncode == 2 and "colour" in done.stderr
    assert not (tmp_path / "c.yaml").exists()


def test_dump_config_does_not_overwrite(program, tmp_path):
    assert program("dump-config", "--out", tmp_path / "c.yaml").returncode == 0
    done = program("dump-config", "--out", tmp_path / "c.yaml")
    assert done.returncode == 2 and "--force" in done.stderr
    assert program("dump-config", "--out", tmp_path / "c.yaml", "--force").returncode == 0


def test_missing_configuration(program, tmp_path):
    done = program("run", "--config", tmp_path / "nothing.yaml")
    assert done.returncode == 2 and "nothing.yaml" in done.stderr and "--config" in done.stderr


def test_check_reports_and_writes_nothing(program, tile):
    done = program("check", tile / "config.yaml")
    assert (
        done.returncode == 0 and "6 bands of 826 x 802 pixels" in done.stdout and "36 patches" in done.stdout
    )
    assert not (tile / "work").exists()


def test_check_finds_what_run_would_refuse(program, tile):
    (tile / "images" / "m575.fits.fz").unlink()
    done = program("check", tile / "config.yaml")
    assert done.returncode == 2 and "m575.fits.fz" in done.stderr


def test_unknown_key_with_a_suggestion(program, tile):
    edit(tile / "config.yaml", "max_workers", "max_worker")
    refused(program, tile, "patch_run.max_worker", "max_workers")


def test_missing_image(program, tile):
    (tile / "images" / "m575.fits.fz").unlink()
    refused(program, tile, "m575.fits.fz", "images.txt", "line")


def test_missing_header_card(program, tile):
    edit_header(tile / "images" / "m500.fits.fz", ZP_AUTO=None)
    edit_header(tile / "images" / "m850.fits.fz", SKYSIG=-1.0)
    refused(program, tile, "m500.fits.fz", "ZP_AUTO", "m850.fits.fz", "SKYSIG", "-1")


def test_wrong_band_names(program, tile):
    edit(tile / "catalog.csv", "FLUX_m500", "FLUX_m501")
    refused(program, tile, "m501", "m500", "FILTER")


def test_duplicate_ids(program, tile):
    edit(tile / "catalog.csv", "\n00002,", "\n00001,")
    refused(program, tile, "00001", "row", "unique")


def test_two_images_of_one_band(program, tile):
    edit_header(tile / "images" / "m500.fits.fz", FILTER="m400")
    refused(program, tile, "m400.fits.fz", "m500.fits.fz", "one image per band")


def test_shape_mismatch(program, tile):
    path = tile / "images" / "m650.fits.fz"
    with fits.open(path) as hdus:
        data, header = hdus[1].data[:-10], hdus[1].header
        path.unlink()
        fits.CompImageHDU(data, header).writeto(path)
    refused(program, tile, "m650.fits.fz", "m400.fits.fz", "resample")


def test_wcs_mismatch(program, tile):
    edit_header(tile / "images" / "m750.fits.fz", CRVAL1=150.2)
    refused(program, tile, "m750.fits.fz", "CRVAL", "checks.wcs_tolerance.crval")


def test_many_mistakes_are_told_at_once(program, tile):
    edit(tile / "catalog.csv", "\n00002,", "\n00001,")
    edit_header(tile / "images" / "m500.fits.fz", EGAIN=None)
    (tile / "images" / "m575.fits.fz").unlink()
    refused(program, tile, "00001", "EGAIN", "m575.fits.fz")


def test_crop_that_leaves_nothing(program, tile):
    edit(tile / "config.yaml", "margin: 25", "margin: 500")
    refused(program, tile, "crop.margin", "500")


@pytest.mark.skipif(importlib.util.find_spec("tractor") is not None, reason="Tractor is installed")
def test_tractor_is_wanted_and_not_there(program, tile):
    edit(tile / "config.yaml", "patch_run:\n", "patch_run:\n  engine: tractor\n")
    refused(program, tile, "patch_run.engine: tractor", "not installed", "unrelated project")


def test_another_tractor_is_no_tractor(program, tile, monkeypatch):
    (tile / "path" / "tractor").mkdir(parents=True)
    (tile / "path" / "tractor" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tile / "path"))
    edit(tile / "config.yaml", "patch_run:\n", "patch_run:\n  engine: tractor\n")
    refused(program, tile, "patch_run.engine: tractor", "unrelated project")


@pytest.mark.parametrize(
    "command, hint",
    [("run-patches", "build-patch-inputs"), ("merge", "build-patch-inputs"), ("compute-zp", "merge")],
)
def test_commands_that_need_earlier_products_say_so(program, tile, command, hint):
    done = program(command, tile / "config.yaml")
    assert done.returncode == 2 and hint in done.stderr and "Traceback" not in done.stderr


def test_gaia_table_missing_is_not_fatal(program, tile):
    (tile / "gaia_xp.csv").unlink()
    done = program("check", tile / "config.yaml")
    assert done.returncode == 0 and "gaia_xp.csv" in done.stderr


def test_read_only_work_directory_is_one_line(program, tile):
    (tile / "work").write_text("a file where a folder should be")
    done = program("run", tile / "config.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    shutil.rmtree(tile)
