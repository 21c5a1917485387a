"""Products that something damaged between two commands: a line that names the file and the cure, exit code 2,
never a traceback.
"""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from small_inputs import sky
from test_bad_days import QUICK, small_tile

from tract7dt.cli.commands import commands
from tract7dt.cli.main import cli
from tract7dt.config.load import load_config
from tract7dt.core.errors import UserError
from tract7dt.core.reading import Damaged
from tract7dt.epsf.given import read_stamp
from tract7dt.epsf.patch_psf import saved_stamp
from tract7dt.patches.payload import read_payload, write_payload
from tract7dt.pipeline.batch import tile_state
from tract7dt.results.merge import read_catalog, write_catalog
from tract7dt.widgets.epsf import read_band_view, read_summary
from tract7dt.workdir.layout import Layout
from tract7dt.workdir.manifest import Manifest

BYTES = {
    "empty": b"",
    "list": b"[]",
    "object": b"{}",
    "binary": b"\x00\xff\xfe\x01\n\x00",
    "text": b"a,b\n1,2\n",
    "ragged": b"ID\n1,2,3\n",
}
SHARES = {"tenth": 0.1, "half": 0.5, "nearly": 0.95}  # of a file that was cut off


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Configuration of a tile that was run, with all kinds of products; its work directory must be left as it
    is.
    """
    folder = tmp_path_factory.mktemp("damaged")
    ra, dec = sky(*np.transpose([(x, y) for x in (30, 75, 130) for y in (20, 60, 100)]))
    gaia = pd.DataFrame(
        dict(
            source_id=10**18 + np.arange(9),
            ra=ra,
            dec=dec,
            phot_g_mean_mag=15.0,
            mag_m400=16.3,
            mag_m425=16.3,
        )
    )
    gaia.to_csv(folder / "gaia.csv", index=False)
    config = small_tile(
        folder,
        inputs=dict(gaiaxp_synphot_csv=str(folder / "gaia.csv")),
        zp=dict(enabled=True, min_box_size_pix=10),
        bright_mask=dict(enabled=True),
        logging=dict(level="ERROR"),
        epsf=QUICK["epsf"] | dict(evaluate_at="cell"),
        patch_run=QUICK["patch_run"] | dict(resume=True, psf_model="gaussian_mixture_from_stamp"),
    )
    assert cli(["run", str(config)], commands()) == 0
    return config


def broken(content, how):
    """What is left of a file."""
    if how == "word":  # in place of all numbers of the second row
        first, second, *rest = content.splitlines(keepends=True)
        return b"".join([first, re.sub(rb"\d+\.\d+", b"x", second), *rest])
    if how == "nothing":
        return content
    if how == "column":
        return b"".join(line.split(b",", 1)[1] for line in content.splitlines(keepends=True))
    return content[: int(len(content) * SHARES[how])] if how in SHARES else BYTES[how]


@pytest.fixture
def damage(finished):
    """Replace the content of the only, or first, product that matches a pattern; afterwards everything is as
    it was.
    """
    work = finished.parent / "work"
    keep = work.with_name("kept")
    shutil.copytree(work, keep)

    def replace(pattern, how):
        path = min(work.rglob(pattern))
        content = path.read_bytes()
        if how not in ("gone", "folder"):
            path.write_bytes(broken(content, how))
            return path
        path.unlink()
        if how == "folder":
            path.mkdir()
        return path

    yield replace
    shutil.rmtree(work)
    keep.rename(work)


def cases(pattern, commands, kinds="empty list object binary text"):
    return [(pattern, how, command) for command in commands.split() for how in kinds.split()]


CUT = "empty binary tenth half nearly"


@pytest.mark.parametrize(
    "pattern, how, command",
    [
        *cases("manifest.json", "merge", f"{CUT} list text"),
        *cases("manifest.json", "run-patches report model", "half"),
        *cases("tile.json", "merge", f"{CUT} list object"),
        *cases("tile/catalog.csv", "merge", f"{CUT} column text"),
        *cases("patches.csv", "model", f"{CUT} text"),
        *cases("*_cat_fit.csv", "merge", f"gone {CUT} column text ragged"),
        *cases("*_others.csv", "merge", "gone half"),
        *cases("outputs/*/meta.json", "merge", f"gone {CUT} list object"),
        *cases("output_catalog.csv", "report model", "binary nearly"),
        *cases("output_catalog.csv", "compute-zp", f"{CUT} list text ragged"),
        *cases("epsf_summary.json", "report run-patches", "object half"),
        *cases("psf_model.fits", "model", f"{CUT} text"),
        *cases("epsf.npy", "model", f"{CUT} text"),
        *cases("epsf.npy", "report", "half"),
        *cases("white_bright_mask.fits", "model", f"{CUT} text"),
        *cases("run_summary.csv", "report", "half column"),
        *cases("registration.csv", "report", "binary column"),
        *cases("zp_summary.csv", "report", "binary nearly"),
        *cases("zp_all_bands__per_object.csv", "report", "half column word"),
        *cases("zp_summary.csv", "report", "word"),
    ],
)
def test_a_damaged_product_is_named_with_its_cure(finished, damage, capfd, pattern, how, command):
    path = damage(pattern, how)
    assert cli([command, str(finished)], commands()) == 2
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said.err
    if "outputs/" in str(path):
        path = next(path.parent.glob("*_cat_fit.csv"), path)
    assert (
        said.err.startswith(f"tract7dt: {path}: damaged or of another version (")
        and "; run tract7dt " in said.err
        and said.err.endswith(" again\n")
    )


@pytest.mark.parametrize("suffix", [".csv", ".fits", ".ecsv", ".parquet"])
def test_a_damaged_catalog_is_named_whatever_its_format(finished, tmp_path, suffix):
    """Bytes that are others, and files that were cut: they are read, with other numbers, or refused, never
    with another error.
    """
    path, random, refusals = tmp_path / f"catalog{suffix}", np.random.default_rng(4), []
    write_catalog(
        read_catalog(Layout.of(load_config(finished).outputs).final_catalog), path, ["m400", "m425"]
    )
    good = path.read_bytes()
    header = good.index(b"TTYPE3") if suffix == ".fits" else 10
    spots = [
        (header + 3, 0x00),
        (header + 9, 0x7F),
        *(
            (int(at), int(byte))
            for at, byte in random.integers([0, 0], [min(len(good), 30_000), 256], (60, 2))
        ),
    ]
    for content in [good[:at] + bytes([byte]) + good[at + 1 :] for at, byte in spots] + [
        good[:at] for at in random.integers(0, len(good), 5)
    ]:
        path.write_bytes(content)
        try:
            assert len(read_catalog(path).columns) > 5
        except Damaged as refusal:
            refusals.append(str(refusal))
    assert len(refusals) > 5 and all(
        f"{path}: damaged or of another version (" in text and text.endswith("; run tract7dt merge again")
        for text in refusals
    )


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.parametrize("byte", b"\x00'(")
def test_one_wrong_byte_in_the_header_of_an_epsf_is_damage(tmp_path, byte):
    """Or harmless; it never ends in another error."""
    path = tmp_path / "epsf.npy"
    np.save(path, np.ones((5, 5)))
    good, refusals = path.read_bytes(), 0
    for at in range(128):
        path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
        try:
            saved_stamp(path)
        except Damaged as refusal:
            refusals += str(refusal).startswith(f"{path}: damaged or of another version (")
    assert refusals > 30


def test_an_inspector_names_an_epsf_that_is_damaged(finished, damage):
    path = damage("epsf.npy", "half")
    layout = Layout.of(load_config(finished).outputs)
    band = path.parent.parent.name
    with pytest.raises(
        Damaged, match="epsf.npy: damaged or of another version .*; run tract7dt run-epsf again"
    ):
        read_band_view(layout, band, read_summary(layout)[band])


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # astropy leaves files open that it refuses
def test_a_psf_of_the_user_that_is_damaged_is_refused_with_the_key(tmp_path):
    """Wrong bytes in the header; a file that may not be read is told as what it is."""
    path, random, refusals = tmp_path / "psf.fits", np.random.default_rng(1), []
    fits.writeto(path, np.outer(*[np.exp(-(np.linspace(-2, 2, 25) ** 2))] * 2))
    good = path.read_bytes()
    for at, byte in random.integers(0, [480, 256], (300, 2)):
        path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
        try:
            read_stamp(path)
        except UserError as refusal:
            refusals.append(str(refusal))
    assert (
        len(refusals) > 20
        and [text for text in refusals if str(path) not in text or "epsf.psf_fits" not in text] == []
    )
    path.unlink()
    path.mkdir()
    with pytest.raises(
        UserError,
        match="^epsf.psf_fits: [^\n]*psf.fits: cannot be read .Is a directory; remove the folder that "
        "stands in its place.$",
    ):
        read_stamp(path)


@pytest.mark.parametrize("command", ["compute-zp", "model"])
def test_rows_that_were_lost_at_a_line_end_are_missed(finished, damage, capfd, command):
    """The file is a good table; only its writer knows that there were more rows."""
    path = damage("output_catalog.csv", "empty")
    good = (path.parents[1] / "kept" / path.name).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(good[:-4]))
    assert cli([command, str(finished)], commands()) == 2
    assert capfd.readouterr().err.endswith(
        f"(it has {len(good) - 5} rows, {len(good) - 1} were written); run tract7dt merge again\n"
    )
    cfg = load_config(finished)
    assert tile_state(cfg) == ""
    path.write_bytes(b"".join(good))
    assert tile_state(cfg) != ""


def test_a_catalog_that_its_owner_changed_is_used_with_a_warning(finished, damage, caplog):
    path = damage("output_catalog.csv", "empty")
    pd.read_csv(path.parents[1] / "kept" / path.name, dtype=str, keep_default_na=False).assign(
        mine="1"
    ).to_csv(path, index=False)
    with caplog.at_level("WARNING", "tract7dt.results.merge"):
        assert cli(["compute-zp", str(finished)], commands()) == 0
        assert (
            f"{path}: changed since it was written; it is used as it is" in caplog.text
            and "mine" in pd.read_csv(path)
        )
        caplog.clear()
        assert cli(["compute-zp", str(finished)], commands()) == 0
    assert "changed since" not in caplog.text


def test_a_catalog_of_which_nothing_was_noted_is_taken_as_it_is(finished, damage, caplog):
    """A work directory of an earlier version."""
    path = damage("manifest.json", "empty")
    noted = json.loads((path.parents[1] / "kept" / path.name).read_text())
    assert noted.pop("written")["final catalog"]["rows"]
    path.write_text(json.dumps(noted))
    with caplog.at_level("WARNING", "tract7dt.results.merge"):
        assert cli(["compute-zp", str(finished)], commands()) == 0
    assert "changed since" not in caplog.text


@pytest.mark.parametrize(
    "pattern, command",
    [
        ("manifest.json", "merge"),
        ("manifest.json", "run"),
        ("tile.json", "merge"),
        ("tile/catalog.csv", "merge"),
        ("patches.csv", "model"),
        ("output_catalog.csv", "model"),
        ("epsf_summary.json", "report"),
        ("psf_model.fits", "model"),
        ("epsf.npy", "model"),
        ("white_bright_mask.fits", "model"),
        ("run_summary.csv", "report"),
        ("zp_summary.csv", "report"),
        ("zp_summary.csv", "compute-zp"),
        ("gaussian_mixture_psf.npz", "model"),
        ("patches.csv", "build-patches"),
        ("*.fits.gz", "run"),
        ("wcs.fits", "run"),
    ],
)
def test_a_folder_in_place_of_a_product_is_named_with_its_cure(finished, damage, capfd, pattern, command):
    path = damage(pattern, "folder")
    assert cli([command, str(finished)], commands()) == 2
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("tract7dt: ")]
    assert (
        str(path) in line
        and "Is a directory" in line
        and "remove the folder that stands in its place" in line
    ), said


@pytest.mark.parametrize(
    "pattern, how, cure",
    [
        ("*.fits.gz", "gone", "run build-patch-inputs again"),
        ("psf_model.fits", "gone", "run run-epsf again"),
        ("epsf_summary.json", "gone", "run tract7dt run-epsf again"),
        ("patches.csv", "gone", "run tract7dt build-patches again"),
    ],
)
def test_a_product_that_is_gone_is_missed(finished, damage, capfd, pattern, how, cure):
    path = damage(pattern, how)
    assert cli(["model", str(finished)], commands()) == 2
    said = capfd.readouterr().err
    assert (
        said.startswith(f"tract7dt: {path}: ")
        and said.endswith(f"; {cure}\n")
        and len(said.splitlines()) == 1
    )


@pytest.mark.parametrize("how", ["folder", "empty", "binary", "tenth", "half", "nearly", "text"])
def test_a_damaged_payload_is_one_patch_that_failed_with_its_cure(finished, damage, capfd, how):
    path = damage("*.fits.gz", how)
    assert cli(["run-patches", str(finished)], commands()) == 1
    (problem,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("problem: ")]
    cure = (
        "remove the folder that stands in its place)"
        if how == "folder"
        else "run tract7dt build-patch-inputs again"
    )
    assert problem.startswith(
        f"problem: patch {path.name.removesuffix('.fits.gz')}: {path}: "
    ) and problem.endswith(cure)


def test_a_payload_of_another_patch_is_one_patch_that_failed_with_its_cure(finished, damage, capfd):
    """Nothing of it reaches the other patch's folder."""
    path = damage("*.fits.gz", "gone")
    other = max(path.parent.glob("*.fits.gz"))
    shutil.copy(other, path)
    assert cli(["run-patches", str(finished)], commands()) == 1
    (problem,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert (
        f"{path}: damaged or of another version (it is the payload of {other.name.removesuffix('.fits.gz')}"
        in problem
    )
    assert problem.endswith("run tract7dt build-patch-inputs again")


@pytest.mark.parametrize("name", ["psf_model.fits", "epsf.npy"])
@pytest.mark.parametrize("recorded", [True, False])
def test_epsfs_of_another_band_are_named_with_their_cure(finished, damage, capfd, name, recorded):
    """Models without a record (of an earlier version) are known by the band in them; of such stamps nothing
    tells.
    """
    path = damage(f"m425/**/{name}", "gone")
    shutil.copy(str(path).replace("m425", "m400"), path)
    if not recorded:
        manifest = finished.parent / "work" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"written": {}}))
    code = cli(["run-patches", str(finished)], commands())
    said = capfd.readouterr()
    if recorded:
        assert code == 2 and said.err == (
            f"tract7dt: {path}: damaged or of another version (it is not the file that run-epsf "
            f"wrote); run tract7dt run-epsf again\n"
        )
    elif name == "psf_model.fits":
        assert (
            code == 1
            and said.out.count(
                f"{path}: damaged or of another version (it is the model of m400); run tract7dt "
                f"run-epsf again"
            )
            == 4
        )
    else:
        assert code == 0


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda stamp: stamp[26:29, 26:29], "3 samples a side with the sum"),
        (lambda stamp: np.where(stamp == stamp.max(), np.nan, stamp), "1 of its values are not finite"),
        (lambda stamp: 2 * stamp, "55 samples a side with the sum 2, its model has 55 with 1"),
    ],
)
def test_a_stamp_that_cannot_be_of_its_model_is_named_with_its_cure(finished, damage, capfd, change, why):
    """In a work directory without a record of the stamps."""
    path, manifest = damage("m400/r00_c00/epsf.npy", "nothing"), damage("manifest.json", "nothing")
    np.save(path, change(np.load(path)).astype("f4"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"written": {}}))
    assert cli(["run-patches", str(finished)], commands()) == 1
    said = capfd.readouterr().out
    assert f"{path}: damaged or of another version ({why}" in said and "run tract7dt run-epsf again" in said


def test_a_payload_that_was_replaced_is_one_patch_that_failed_with_its_cure(finished, damage, capfd):
    """Another payload of the same patch, such as one of other settings."""
    path = damage("*.fits.gz", "nothing")
    payload = read_payload(path)
    write_payload(replace(payload, sources=payload.sources.iloc[:1]), path)
    assert cli(["run-patches", str(finished)], commands()) == 1
    (problem,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert (
        f"{path}: damaged or of another version (it is not the file that build-patch-inputs wrote); "
        f"run tract7dt build-patch-inputs again"
    ) in problem


@pytest.mark.parametrize("how", ["empty", "binary", "half", "nearly", "text"])
def test_sums_of_gaussians_that_are_damaged_are_made_again(finished, damage, how):
    """They are kept to save time only."""
    catalog = finished.parent / "work" / "output_catalog.csv"
    before, good = catalog.read_bytes(), min(catalog.parent.rglob("gaussian_mixture_psf.npz")).read_bytes()
    path = damage("gaussian_mixture_psf.npz", how)
    for command in ("run-patches", "merge", "compute-zp"):
        assert cli([command, str(finished)], commands()) == 0
    assert catalog.read_bytes() == before and len(path.read_bytes()) == len(good)


@pytest.mark.parametrize(
    "pattern, how, why",
    [
        ("*_cat_fit.csv", "half", "its catalog is missing or damaged"),
        ("*_cat_fit.csv", "gone", "its catalog is missing or damaged"),
        ("*_others.csv", "half", "its catalog is missing or damaged"),
        ("outputs/*/meta.json", "half", "not fitted before"),
        ("outputs/*/meta.json", "list", "not fitted before"),
        ("outputs/*/meta.json", "gone", "not fitted before"),
    ],
)
def test_a_patch_whose_files_are_damaged_is_fitted_again_and_only_that(
    finished, damage, caplog, pattern, how, why
):
    """What the patch's record does not vouch for is not taken for its result."""
    catalog = finished.parent / "work" / "output_catalog.csv"
    before = catalog.read_bytes()
    path = damage(pattern, how)
    good = path.with_name(path.name)
    with caplog.at_level("INFO", "tract7dt.pipeline.run_patches"):
        assert all(
            cli([command, str(finished)], commands()) == 0
            for command in ("run-patches", "merge", "compute-zp")
        )
    assert f"1 patch fitted: {why}" in caplog.text and good.exists() and catalog.read_bytes() == before


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(fit_fingerprint=None), "its record is damaged"),
        (dict(pictures={"overview": None}), "not fitted before"),
        (dict(written={"a.csv": 3}), "not fitted before"),
    ],
)
def test_a_record_with_other_values_is_one_patch_fitted_again(finished, damage, caplog, change, why):
    """What the merge refuses is what the next fit makes again."""
    path = damage("outputs/*/meta.json", "nothing")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert cli(["merge", str(finished)], commands()) == 2
    with caplog.at_level("INFO", "tract7dt.pipeline.run_patches"):
        assert all(cli([command, str(finished)], commands()) == 0 for command in ("run-patches", "merge"))
    assert f"1 patch fitted: {why}" in caplog.text


@pytest.mark.parametrize("command, code", [("run-patches", 1), ("merge", 2)])
def test_a_record_that_cannot_be_read_now_is_named(finished, damage, capfd, command, code):
    """It does not mean that its patch was not fitted, or that its catalog is damaged."""
    path = damage("outputs/*/meta.json", "folder")
    assert cli([command, str(finished)], commands()) == code
    said = capfd.readouterr()
    assert (
        f"{path}: cannot be read (Is a directory; remove the folder that stands in its place)"
        in said.out + said.err
    )


@pytest.mark.parametrize("how", ["empty", "binary", "half"])
def test_a_report_shows_all_but_a_damaged_picture(finished, damage, how):
    path = damage("white_bright_mask_overlay.png", how)
    assert cli(["report", str(finished)], commands()) == 0
    assert f"not shown ({path}: damaged" in (finished.parent / "work" / "report.html").read_text()


@pytest.mark.parametrize(
    "content",
    [
        '{"made": {"payloads": {}}}',
        '{"inputs": [{"x": 1}]}',
        '{"inputs": 3}',
        '{"fits": ["a"]}',
        '{"payloads": 1}',
        '{"made": []}',
    ],
)
def test_a_manifest_with_foreign_fields(finished, damage, capfd, content):
    path = damage("manifest.json", "empty")
    path.write_text(content)
    assert cli(["merge", str(finished)], commands()) == 2
    assert capfd.readouterr().err.startswith(f"tract7dt: {path}: damaged or of another version (")


def test_a_manifest_is_what_it_was_after_it_was_saved(finished):
    layout = Layout.of(load_config(finished).outputs)
    before, text = Manifest.load(layout), layout.manifest.read_bytes()
    before.save(layout)
    assert (
        layout.manifest.read_bytes() == text
        and before.fits
        and before.made["payloads"].settings
        and before.inputs
    )


def test_report_reads_logs_that_are_no_text(finished):
    odd = finished.parent / "work" / "odd.log"
    odd.write_bytes(b"\xff\xfe fit: done in 3.0 s\n")
    assert cli(["report", str(finished)], commands()) == 0
    odd.unlink()


@pytest.mark.parametrize("how", ["empty", "list", "binary", "half"])
def test_run_makes_everything_anew_when_the_manifest_is_damaged(tmp_path, finished, caplog, how):
    """One warning; the products are those of before."""
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.yaml"
    config.write_text(
        config.read_text()
        .replace(str(finished.parent), str(tmp_path))
        .replace("level: ERROR", "level: WARNING")
    )
    manifest, catalog = tmp_path / "work" / "manifest.json", tmp_path / "work" / "output_catalog.csv"
    before, fits = catalog.read_bytes(), Manifest.load(Layout.of(load_config(config).outputs)).fits
    manifest.write_bytes(broken(manifest.read_bytes(), how))
    with caplog.at_level("WARNING", "tract7dt.workdir.manifest"):
        assert cli(["run", str(config)], commands()) == 0
    assert [
        str(manifest) in r.getMessage() for r in caplog.records if r.name == "tract7dt.workdir.manifest"
    ] == [True]
    assert catalog.read_bytes() == before and len(
        Manifest.load(Layout.of(load_config(config).outputs)).fits
    ) == len(fits)


def test_only_our_own_temporary_files_are_swept(finished):
    """A folder, a link and files of other programs that are named alike stay, and end no command."""
    work = finished.parent / "work"
    folder, others, ours, link = (
        work / ".part-0a1b2c3d-folder",
        work / ".part-movie.mp4",
        work / ".part-0a1b2c3d-a.csv",
        work / ".part-0a1b2c3d-link",
    )
    folder.mkdir()
    link.symlink_to(others)
    for path in (others, ours, folder / "mine"):
        path.write_text("1")
    try:
        assert cli(["build-patches", str(finished)], commands()) == 0
        assert (
            folder.is_dir()
            and (folder / "mine").exists()
            and others.exists()
            and link.is_symlink()
            and not ours.exists()
        )
    finally:
        shutil.rmtree(folder)
        others.unlink()
        link.unlink()
