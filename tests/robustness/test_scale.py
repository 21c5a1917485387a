"""Large tiles: images however others wrote them, memory that does not grow with bands, workers that die."""

import gzip
import json
import os
import shutil
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from small_inputs import Field, header, rows_at

from tract7dt.config.schema import Config
from tract7dt.core import resources as machine
from tract7dt.core.geometry import Box, make_cells
from tract7dt.epsf.band_task import frame_and_numbers
from tract7dt.epsf.tasks import (
    BAND_BYTES,
    OWN_BYTES_PER_PIXEL,
    PROCESS_BYTES,
    WEIGHT_BYTES_PER_PIXEL,
    WORKER_BYTES_PER_PIXEL,
    band_workers,
    tell_bound,
)
from tract7dt.inputs.fits import locate_image
from tract7dt.patches import payload
from tract7dt.patches.geometry import build_patches
from tract7dt.patches.payload import build_patch_inputs
from tract7dt.patches.record import file_hashes
from tract7dt.pipeline import executors
from tract7dt.pipeline import run_patches as run
from tract7dt.results import patch_catalogs as catalogs
from tract7dt.tile import stack
from tract7dt.tile.load import load_inputs
from tract7dt.tile.stack import BYTES_PER_STRIP_PIXEL, STACK_ROWS
from tract7dt.tile.tile import Tile
from tract7dt.workdir.layout import Layout

SHAPE = (120, 160)
QUICK = dict(epsf=dict(epsf_ngrid=1, ngrid=3, final_psf_size=15), source_saturation_cut=dict(enabled=False))


def counts():
    """Whole numbers, some of them without a value, so that integers of every kind hold them exactly."""
    values = np.random.default_rng(3).integers(1, 1200, SHAPE).astype(float)
    values[10:14, 20:30] = np.nan
    return values


def as_float(path, dtype):
    fits.writeto(path, counts().astype(dtype), header(SHAPE))


def as_integers(path, blank=-32768, **scale):
    """Scaled 16-bit integers with BLANK; physical values are those of `counts`."""
    zero, step = scale.get("bzero", 0), scale.get("bscale", 1)
    raw = np.where(np.isnan(counts()), blank, np.round((counts() - zero) / step)).astype(">i2")
    hdu = fits.PrimaryHDU(raw, header(SHAPE))
    hdu.header.update({"BLANK": blank} | {key.upper(): value for key, value in scale.items()})
    hdu.writeto(path)


def as_extension(path, dtype="f4"):
    """An empty primary HDU that holds some of the cards, a table, and the image."""
    cards, first = header(SHAPE), fits.Header()
    for name in ("ZP_AUTO", "FILTER"):
        first[name] = cards.pop(name)
    fits.HDUList(
        [
            fits.PrimaryHDU(header=first),
            fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])]),
            fits.ImageHDU(counts().astype(dtype), cards),
        ]
    ).writeto(path)


def as_tiles(path, kind):
    """Tile-compressed by each of the usual methods, without loss."""
    if kind == "RICE_1":
        hdu = fits.CompImageHDU(
            np.where(np.isnan(counts()), -32768, (counts() - 50) * 2).astype("i2"),
            header(SHAPE),
            compression_type=kind,
        )
        hdu.header.update({"BLANK": -32768, "BZERO": 50.0, "BSCALE": 0.5})
    else:
        hdu = fits.CompImageHDU(counts().astype("f4"), header(SHAPE), compression_type=kind, quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def zipped(path, write, *values, **options):
    plain = path.with_name(f"plain_{path.stem}")
    write(plain, *values, **options)
    path.write_bytes(gzip.compress(plain.read_bytes()))


WRITTEN = {
    "float64.fits": (as_float, ">f8"),
    "integers.fits": (as_integers,),
    "unsigned.fits": (as_integers, -32768, dict(bzero=32768)),
    "scaled.fits": (as_integers, -32768, dict(bzero=50, bscale=0.5)),
    "extension.fits": (as_extension,),
    "rice.fits.fz": (as_tiles, "RICE_1"),
    "gzip.fits.fz": (as_tiles, "GZIP_2"),
    "zipped.fits.gz": (zipped, as_float, ">f4"),
    "zipped_scaled.fits.gz": (zipped, as_integers, -32768, dict(bzero=50, bscale=0.5)),
    "zipped_tiles.fits.gz": (zipped, as_tiles, "GZIP_2"),
}


def write(path, function, *values):
    options = values[-1] if values and isinstance(values[-1], dict) else {}
    function(path, *values[: len(values) - bool(options)], **options)


@pytest.fixture
def field(tmp_path):
    field = Field(tmp_path, bands=("m400",))
    field.catalog(rows_at([(40, 50), (90, 60), (130, 100)]))
    return field


def seen(field, name):
    """What the stages take from an image: the white stack, and the pixels of all payloads."""
    field.list(name)
    cfg = field.cfg(**QUICK)
    tile = load_inputs(cfg)
    cuts = [p.bands[0] for p in build_patch_inputs(tile, build_patches(tile, cfg), cfg)]
    return [
        tile.white,
        tile.white_sigma,
        tile.saturated,
        *(c.image for c in cuts),
        *(c.mask for c in cuts),
        *(c.invvar for c in cuts),
    ]


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_science_however_the_image_was_written(field, name):
    as_float(field.folder / "plain.fits", ">f4")
    write(field.folder / name, *WRITTEN[name])
    expected, found = seen(field, "plain.fits"), seen(field, name)
    assert len(expected) == len(found) > 8 and np.isnan(expected[0]).sum() == 40 and expected[2].any()
    for one, other in zip(expected, found):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["float64.fits", "scaled.fits", "extension.fits"])
def test_a_section_of_a_plain_file_is_mapped(field, name, monkeypatch):
    """A section of a file of 40 MB costs memory like what it covers."""
    rows = 2000
    monkeypatch.setattr(f"{__name__}.SHAPE", (rows, 5000))
    monkeypatch.setattr(f"{__name__}.counts", lambda: np.ones((rows, 5000)))
    write(field.folder / name, *WRITTEN[name])
    image, _ = locate_image(field.folder / name)
    image.section(Box(0, 10, 0, 10))
    tracemalloc.start()
    assert image.section(Box(100, 1100, 500, 600)).shape == (100, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_a_gzip_file_is_unpacked_once_for_all_threads(field, monkeypatch):
    zipped(field.folder / "a.fits.gz", as_float, ">f4")
    image, _ = locate_image(field.folder / "a.fits.gz")
    opened, real = [], fits.open

    def counted(path, *values, **options):
        opened.append(path)
        time.sleep(0.05)
        return real(path, *values, **options)

    monkeypatch.setattr(fits, "open", counted)
    found = [None] * 6
    threads = [
        threading.Thread(
            target=lambda k: found.__setitem__(k, image.section(Box(0, 160, 20 * k, 20 * k + 20))), args=(k,)
        )
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    np.testing.assert_array_equal(np.concatenate(found), counts().astype("f4"))


def test_a_gzip_file_that_changed_is_unpacked_again(field):
    path = field.folder / "a.fits.gz"
    zipped(path, as_float, ">f4")
    image, _ = locate_image(path)
    before = image.section(Box(0, 160, 0, 120))
    fits.writeto(path, before + 1, header(SHAPE), overwrite=True)
    np.testing.assert_array_equal(image.section(Box(0, 160, 0, 120)), before + 1)


def test_strips_in_pieces_give_the_same_payloads(field, monkeypatch):
    as_float(field.folder / "plain.fits", ">f4")
    whole = seen(field, "plain.fits")
    boxes, real = [], Tile.read
    monkeypatch.setattr(payload, "STRIP_PIXELS", 8000)
    monkeypatch.setattr(Tile, "read", lambda tile, band, box=None: boxes.append(box) or real(tile, band, box))
    parts = seen(field, "plain.fits")
    assert boxes and max(box.width for box in boxes) < 160
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def patch_catalogs(folder, patches, bands):
    """A work directory with so many patch catalogs of ten rows, and their fingerprints."""
    layout, fits_done = Layout(*[folder] * 8), {}
    columns = {"ID": [str(k) for k in range(10)], "stype_fit": "star", "fit_flags": 0}
    columns |= {
        f"{name}_m{400 + b}_fit": np.linspace(0.1, 1, 10)
        for b in range(bands)
        for name in ("FLUX", "FLUXERR", "sky", "chi2")
    }
    text = pd.DataFrame(columns).to_csv(index=False)
    for k in range(patches):
        tag = f"r00_c00_pr{k // 100:02d}_pc{k % 100:02d}"
        layout.patch_catalog(tag).parent.mkdir(parents=True)
        layout.patch_catalog(tag).write_text(text)
        layout.patch_meta(tag).write_text(
            json.dumps({"fit_fingerprint": "done", "written": file_hashes(layout.patch_catalog(tag))})
        )
        fits_done[tag] = "done"
    return layout, fits_done


def test_joining_many_patches_never_holds_all_of_them_as_text(tmp_path, middle_config, monkeypatch):
    """Catalogs are joined in small groups, and the groups after their columns have their types; the result is
    the same.
    """
    layout, done = patch_catalogs(tmp_path, 30, 3)
    cfg, given = middle_config(), []
    whole, real = catalogs.read_patch_catalogs(layout, cfg, done), catalogs.as_declared
    monkeypatch.setattr(catalogs, "JOINED_AT_ONCE", 4)
    monkeypatch.setattr(
        catalogs, "as_declared", lambda table, columns: given.append(table) or real(table, columns)
    )
    pd.testing.assert_frame_equal(catalogs.read_patch_catalogs(layout, cfg, done), whole)
    assert whole.shape == (300, 15) and whole["FLUX_m401_fit"].dtype == float
    texts = [len(table) for table in given if not pd.api.types.is_float_dtype(table["FLUX_m401_fit"])]
    assert max(texts) == 40 and sum(texts) == 300


@pytest.mark.xdist_group("middle_run")
def test_a_process_killed_in_the_middle_changes_nothing(middle_run, middle_config, monkeypatch):
    """As the kernel does it when memory runs out: SIGKILL to a worker that fits."""
    cfg, _ = middle_run
    again = middle_config(**{"patch_run.max_workers": 2})
    shutil.copytree(cfg.outputs.work_dir, again.outputs.work_dir, dirs_exist_ok=True)
    layout, before = Layout.of(again.outputs), Layout.of(cfg.outputs)
    shutil.rmtree(layout.tractor_out_dir)
    pools, killed, real = [], [], run.make_executor
    monkeypatch.setattr(run, "make_executor", lambda *values: pools.append(real(*values)) or pools[0])

    def kill():
        while not pools or not pools[0]._processes:
            time.sleep(0.01)
        pid = next(iter(pools[0]._processes))
        while (
            not any(Path(f"/proc/{pid}/fd").glob("*"))
            or Path(f"/proc/{pid}/stat").read_text().split()[13] == "0"
        ):
            time.sleep(0.01)
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run.run_patches(layout, again)
    killer.join()
    assert killed and summary.ok and len(summary.done) > 2
    for tag in summary.done:
        assert layout.patch_catalog(tag).read_bytes() == before.patch_catalog(tag).read_bytes()


def peak_of(work):
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_bands(tmp_path, monkeypatch):
    """What three times as many bands need more is less than an image when loading, less than half an image
    (the pixels of two payloads are held) when cutting.
    """
    shape = (600, 800)
    monkeypatch.setattr(payload, "STRIP_PIXELS", 100_000)
    peaks = {}
    for number in (2, 6):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        field = Field(folder, bands=tuple(f"m{400 + 25 * k}" for k in range(number)), shape=shape)
        field.catalog(rows_at([(x, y) for x in range(50, 800, 100) for y in range(50, 600, 100)], shape))
        cfg = field.cfg(
            **QUICK
            | {
                "performance": {"white_stack_workers": 1, "frame_prep_workers": 1},
                "epsf": {"epsf_ngrid": 1, "ngrid": 8, "final_psf_size": 15},
            }
        )
        tile = load_inputs(cfg)
        peaks[number] = (
            peak_of(lambda: load_inputs(cfg)),
            peak_of(lambda: [p.patch for p in build_patch_inputs(tile, build_patches(tile, cfg), cfg)]),
        )
    image = 4 * shape[0] * shape[1]
    more = np.subtract(peaks[6], peaks[2])
    assert more[0] < image and more[1] < image / 2


@pytest.mark.parametrize("weights", [False, True])
def test_a_band_of_the_epsf_stage_takes_twelve_bytes_a_pixel(tmp_path, weights):
    """What the bound on memory counts with: the image, its background and four masks, and a weight map; the
    rest is for what does not grow with the frame.
    """
    shape = (1500, 2000)
    field = Field(tmp_path, bands=("m400",), shape=shape)
    field.catalog(rows_at([(x, y) for x in range(50, 2000, 100) for y in range(50, 1500, 100)], shape))
    fits.writeto(tmp_path / "m400_w.fits", np.full(shape, 1, "f4"))
    cfg = field.cfg(**QUICK, inputs=dict(weight_suffix="_w.fits" if weights else None))
    (band,) = load_inputs(cfg).bands
    assert (band.weight is not None) == weights
    cells = make_cells(shape, 4)
    frame_and_numbers(band, cells, cfg.epsf)
    assert (
        peak_of(lambda: frame_and_numbers(band, cells, cfg.epsf))
        < (WORKER_BYTES_PER_PIXEL + weights * WEIGHT_BYTES_PER_PIXEL + 1) * shape[0] * shape[1]
    )


@pytest.mark.parametrize("gigabytes,most", [("auto", 4.0), (4, 4.0), (8, 8.0), (1, 1.0)])
def test_a_full_tile_stays_within_its_memory_on_a_machine_with_many_processors(monkeypatch, gigabytes, most):
    """64 processors, 256 GB; one worker is the least, and a full tile in less than 2 GB is impossible."""
    for module in (machine, stack):
        monkeypatch.setattr(module, "available_cpus", lambda *values: 64)
    monkeypatch.setattr(machine, "available_memory_gb", lambda *values: 256.0)
    shape, performance = (6388, 9576), Config(performance={"max_memory_gb": gigabytes}).performance
    pixels = shape[0] * shape[1]
    workers = {bands: band_workers("auto", bands, shape, performance.max_memory_gb) for bands in (3, 12, 40)}
    assert workers[40] <= workers[12] and (workers[3] > 1 or most < 3)
    for bands, count in workers.items():
        own, each = (PROCESS_BYTES + size * pixels for size in (OWN_BYTES_PER_PIXEL, WORKER_BYTES_PER_PIXEL))
        assert count == 1 or own + BAND_BYTES * bands + count * each <= most * 1e9
    assert (
        stack.stack_workers(performance, shape) * STACK_ROWS * shape[1] * BYTES_PER_STRIP_PIXEL
        < most * 1e9 / 4
    )


@pytest.mark.parametrize(
    "wanted,gigabytes,weights,told",
    [
        (
            3,
            1.0,
            False,
            (
                "1 of 3 workers, more do not fit into 1 GB",
                "2.0 GB of memory are needed, performance.max_memory_gb means 1; raise it, or crop",
            ),
        ),
        (3, 3.2, False, ("2 of 3 workers, more do not fit into 3.2 GB",)),
        (3, 3.2, True, ("1 of 3 workers, more do not fit into 3.2 GB",)),
        (3, 8.0, True, ()),
    ],
)
def test_a_bound_on_memory_that_acts_or_cannot_be_kept_is_told(caplog, wanted, gigabytes, weights, told):
    facts = (wanted, 3, (6388, 9576), gigabytes, weights)
    with caplog.at_level("INFO", "tract7dt.epsf"):
        tell_bound(band_workers(*facts), *facts)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(told) and all(text in line for text, line in zip(told, lines)), lines


@pytest.mark.parametrize(
    "gigabytes,there,expected", [("auto", 256.0, 64), ("auto", 4.6, 10), (4, 256.0, 8), (0.6, 256.0, 1)]
)
def test_fits_stay_within_the_memory_too(monkeypatch, caplog, gigabytes, there, expected):
    """0.4 GB for each worker, on a machine of 64 processors."""
    monkeypatch.setattr(machine, "available_cpus", lambda *values: 64)
    monkeypatch.setattr(executors, "available_memory_gb", lambda: there)
    with caplog.at_level("INFO", "tract7dt.pipeline.executors"):
        assert (
            executors.within_memory(Config(performance={"max_memory_gb": gigabytes})).max_workers == expected
        )
    assert (f"{expected} of 64 workers" in caplog.text) == (expected < 64)
