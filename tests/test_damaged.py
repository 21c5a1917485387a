"""Products that something damaged between two commands: a line that names the file and the cure, exit code 2, never a traceback."""

import shutil

import pytest
from test_bad_days import small_tile

from tract7dt.cli import cli
from tract7dt.commands import commands
from tract7dt.configfile import load_config
from tract7dt.files import Layout
from tract7dt.manifest import Manifest

BYTES = {"empty": b"", "list": b"[]", "object": b"{}", "binary": b"\x00\xff\xfe\x01\n\x00", "text": b"a,b\n1,2\n", "ragged": b"ID\n1,2,3\n", "half": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Configuration of a tile that was run; its work directory must be left as it is."""
    config = small_tile(tmp_path_factory.mktemp("damaged"), logging=dict(level="ERROR"))
    assert cli(["run", str(config)], commands()) == 0
    return config


@pytest.fixture
def damage(finished):
    """Replace the content of the only, or first, product that matches a pattern; it is mended afterwards."""
    kept = []

    def replace(pattern, how):
        path = min((finished.parent / "work").rglob(pattern))
        kept.append((path, path.read_bytes()))
        path.write_bytes(kept[-1][1][: len(kept[-1][1]) // 2] if BYTES[how] is None else BYTES[how])
        return path
    yield replace
    for path, content in kept:
        path.write_bytes(content)


def cases(pattern, commands, kinds="empty list object binary text"):
    return [(pattern, how, command) for command in commands.split() for how in kinds.split()]


@pytest.mark.parametrize("pattern, how, command", [
    *cases("manifest.json", "merge", "empty list binary text half"),
    *cases("manifest.json", "run-patches report", "empty"),
    *cases("tile.json", "merge", "empty list object binary half"),
    *cases("catalog.csv", "merge"),
    *cases("*_cat_fit.csv", "merge", "empty list object binary text ragged half"),
    *cases("output_catalog.csv", "compute-zp report model", "empty list binary text ragged"),
    *cases("epsf_summary.json", "report", "empty object binary half"),
    *cases("epsf.npy", "report", "empty binary"),
    *cases("run_summary.csv", "report", "empty list binary text"),
])
def test_a_damaged_product_is_named_with_its_cure(finished, damage, capfd, pattern, how, command):
    path = damage(pattern, how)
    assert cli([command, str(finished)], commands()) == 2
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith(f"tract7dt: {path}: damaged or of another version (") and "; run tract7dt " in said.err and said.err.endswith(" again\n")


@pytest.mark.parametrize("content", ['{"made": {"payloads": {}}}', '{"inputs": [{"x": 1}]}', '{"inputs": 3}', '{"fits": ["a"]}', '{"payloads": 1}', '{"made": []}'])
def test_a_manifest_with_foreign_fields(finished, damage, capfd, content):
    path = damage("manifest.json", "empty")
    path.write_text(content)
    assert cli(["merge", str(finished)], commands()) == 2
    assert capfd.readouterr().err.startswith(f"tract7dt: {path}: damaged or of another version (")


def test_a_manifest_is_what_it_was_after_it_was_saved(finished):
    layout = Layout.of(load_config(finished).outputs)
    before, text = Manifest.load(layout), layout.manifest.read_bytes()
    before.save(layout)
    assert layout.manifest.read_bytes() == text and before.fits and before.made["payloads"].settings and before.inputs


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
    config.write_text(config.read_text().replace(str(finished.parent), str(tmp_path)).replace("level: ERROR", "level: WARNING"))
    manifest, catalog = tmp_path / "work" / "manifest.json", tmp_path / "work" / "output_catalog.csv"
    before, fits = catalog.read_bytes(), Manifest.load(Layout.of(load_config(config).outputs)).fits
    manifest.write_bytes(manifest.read_bytes()[:99] if BYTES[how] is None else BYTES[how])
    with caplog.at_level("WARNING", "tract7dt.manifest"):
        assert cli(["run", str(config)], commands()) == 0
    assert [str(manifest) in r.getMessage() for r in caplog.records if r.name == "tract7dt.manifest"] == [True]
    assert catalog.read_bytes() == before and len(Manifest.load(Layout.of(load_config(config).outputs)).fits) == len(fits)


def test_only_our_own_temporary_files_are_swept(finished):
    """A folder, a link and files of other programs that are named alike stay, and end no command."""
    work = finished.parent / "work"
    folder, others, ours, link = work / ".part-0a1b2c3d-folder", work / ".part-movie.mp4", work / ".part-0a1b2c3d-a.csv", work / ".part-0a1b2c3d-link"
    folder.mkdir()
    link.symlink_to(others)
    for path in (others, ours, folder / "mine"):
        path.write_text("1")
    try:
        assert cli(["build-patches", str(finished)], commands()) == 0
        assert folder.is_dir() and (folder / "mine").exists() and others.exists() and link.is_symlink() and not ours.exists()
    finally:
        shutil.rmtree(folder)
        others.unlink()
        link.unlink()
