"""Many tiles: each is its own affair, a finished one is left alone, and the table tells everything."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_inputs import Field, rows_at

from tract7dt.cli import main as cli
from tract7dt.config.load import load_config
from tract7dt.core.errors import UserError
from tract7dt.pipeline import batch, tile_list
from tract7dt.widgets import run as widgets

CRASHES = {"killed": "import os; os.kill(os.getpid(), 9)", "broken": "raise LookupError('a mistake of ours')"}


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A tile of noise that runs in seconds."""
    field = Field(tmp_path_factory.mktemp("tile"))
    field.catalog(rows_at([(40, 50), (90, 60)]).assign(TYPE="STAR"))
    quick = dict(
        epsf=dict(epsf_ngrid=1, ngrid=1, parallel_bands=False),
        bright_mask=dict(enabled=False),
        overlay=dict(enabled=False),
        patch_run=dict(max_workers=1, no_cutouts=True, no_patch_overview=True),
        inputs=dict(tile_name="noise"),
    )
    for name, work in {"good": "work", "killed": "killed", "broken": "broken"}.items():
        cfg = field.cfg(**quick, outputs=dict(work_dir=str(field.folder / work)))
        (field.folder / f"{name}.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    (field.folder / "refused.yaml").write_text(
        "inputs: {input_catalog: nowhere.csv, image_list_file: none.txt}\noutputs: {work_dir: other}\n"
    )
    (field.folder / "tiles.txt").write_text("killed.yaml\ngood.yaml\nbroken.yaml\nrefused.yaml\n")
    return field


def with_crashes(tile: str) -> str:
    """The program of a tile's process, with those of two tiles replaced by programs that crash."""
    return f"import sys, pathlib; exec({CRASHES!r}.get(pathlib.Path(sys.argv[1]).stem, {tile!r}))"


@pytest.fixture(scope="module")
def done(field):
    """All four tiles, run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "BEGIN", with_crashes(batch.BEGIN))
        return batch.run_many(str(field.folder / "tiles.txt"), str(field.folder / "table.csv"))


def test_tiles_that_are_refused_are_told_before_the_others_are_run(tmp_path, field, monkeypatch, capfd):
    """Their user can mend them meanwhile; no process is started for them."""
    monkeypatch.setattr(
        batch,
        "run_apart",
        lambda path, said: (
            said.parent.mkdir(exist_ok=True),
            said.write_text(""),
            print(f"running {path.stem}"),
            (3, False),
        )[-1],
    )
    batch.run_many([field.folder / "good.yaml", field.folder / "refused.yaml"], str(tmp_path / "table.csv"))
    said = capfd.readouterr()
    assert said.out.splitlines() == ["running good"]
    first, second = said.err.splitlines()[:2]
    assert (
        "refused.yaml: refused in 0.0 s; " in first
        and "inputs.gaiaxp_synphot_csv is still" in first
        and "_refused.log" in first
    )
    assert "1 of 2 tiles are refused; mend them while the others run" in second


def test_a_crash_harms_no_other_tile(done, field):
    rows = {Path(row.config).stem: row for row in done.rows}
    assert {name: (row.status, row.exit_code) for name, row in rows.items()} == {
        "killed": ("crashed", -9),
        "good": ("done", 0),
        "broken": ("crashed", 1),
        "refused": ("refused", 2),
    }
    assert (rows["good"].sources, rows["good"].failed_patches, rows["good"].tile) == (2, 0, "noise")
    assert 0 <= rows["good"].reliable <= 2 and rows["good"].first_problem == ""
    assert (
        "out of memory?" in rows["killed"].first_problem
        and "a mistake of ours" in rows["broken"].first_problem
    )
    assert (
        "inputs.gaiaxp_synphot_csv" in rows["refused"].first_problem
        and Path(rows["refused"].log).name == f"0004_{field.folder.name}_refused.log"
    )
    assert Path(rows["refused"].log).read_text().startswith(f"tract7dt: {rows['refused'].first_problem}\n")
    assert not done.ok and done.facts()[-1].startswith("4 tiles: ")
    assert list(batch.read_rows(field.folder / "table.csv").values()) == list(done.rows)
    assert "sources, " in Path(rows["good"].log).read_text()


@pytest.mark.parametrize("name", ["EPSFInspector", "PatchInspector", "SourceInspector", "ZeroPointInspector"])
def test_tiles_can_be_inspected(done, name):
    """By their rows in the table: what there is is shown, and of a tile that was refused it is said why there
    is nothing.
    """
    inspector, rows = getattr(widgets, name), {Path(row.config).stem: row for row in done.rows}
    assert inspector(rows["good"]).run.layout.work_dir == Path(
        load_config(rows["good"].config).outputs.work_dir
    )
    assert len(inspector(rows["good"]).children) > 1 or name == "ZeroPointInspector"
    refused = inspector(rows["refused"])
    assert refused.children == (refused.message,) and "gaiaxp_synphot_csv is still" in refused.message.value


@pytest.fixture
def next_time(field, done, monkeypatch):
    """Run the good tile alone again, with a process that does nothing but fail: its status tells whether it
    was begun.
    """
    monkeypatch.setattr(batch, "BEGIN", "raise SystemExit(2)")
    table = (field.folder / "table.csv").read_bytes()

    def run(**options):
        (field.folder / "again.csv").write_bytes(table)
        return (
            batch.run_many(str(field.folder / "g*.yaml"), str(field.folder / "again.csv"), **options)
            .rows[0]
            .status
        )

    return run


def test_a_finished_tile_is_left_alone(next_time):
    assert next_time() == "done"
    assert next_time(again=True) == "crashed"


def test_what_changed_is_run_again(next_time, field):
    path = field.folder / "good.yaml"
    text = path.read_text()
    path.write_text(text.replace("zp_ref: 25.0", "zp_ref: 24.0"))
    assert "zp_ref: 24.0" in path.read_text() and next_time() == "crashed"
    path.write_text(text)
    assert next_time() == "done"
    image = field.folder / "m400.fits"
    before = image.stat()
    os.utime(image, (0, 0))
    assert next_time() == "crashed"
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    catalog = field.folder / "work" / "output_catalog.csv"
    catalog.rename(catalog.with_suffix(".away"))
    assert next_time() == "crashed"
    catalog.with_suffix(".away").rename(catalog)
    assert next_time() == "done"


def test_two_tiles_in_one_work_directory_are_refused(field, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text((field.folder / "good.yaml").read_text())
    with pytest.raises(
        UserError,
        match="^[^\n]*two.yaml: outputs.work_dir is .*, as outputs.work_dir of .*one.yaml; give each tile "
        "its own$",
    ):
        batch.run_many(str(tmp_path / "*.yaml"), str(tmp_path / "table.csv"))


OUTPUTS = (
    "epsf_dir",
    "patches_dir",
    "patch_inputs_dir",
    "tractor_out_dir",
    "final_catalog",
    "cropped_images_dir",
    "overlay_dir",
)


def places(folder, **outputs):
    """Configurations a and b of tiles with work directories of their own; `outputs` gives keys of one of
    them.
    """
    made = {}
    for name in "ab":
        own = {"work_dir": f"{folder}/work_{name}"} | outputs.get(name, {})
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(
                {
                    "inputs": {
                        "input_catalog": "c.csv",
                        "image_list_file": "i.txt",
                        "gaiaxp_synphot_csv": None,
                    },
                    "outputs": own,
                }
            )
        )
        made[folder / f"{name}.yaml"] = tile_list.load_tile(folder / f"{name}.yaml")
    assert None not in made.values()
    return made


@pytest.mark.parametrize("key", OUTPUTS)
def test_two_tiles_that_write_to_one_place_are_refused(tmp_path, key):
    """Any product: both tiles would be reported as done, and one catalog would be left."""
    name = {key: str(tmp_path / "common" / "a.csv")}
    with pytest.raises(UserError) as refused:
        tile_list.check_folders(places(tmp_path, a=name, b=name))
    assert str(refused.value) == (
        f"{tmp_path}/b.yaml: outputs.{key} is {tmp_path}/common/a.csv, as outputs.{key} of "
        f"{tmp_path}/a.yaml; give each tile its own"
    )


def test_a_tile_below_a_folder_of_another_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match="^[^\n]*a.yaml: outputs.work_dir is .*work_b/deep, inside outputs.work_dir of .*b.yaml; give "
        "each tile its own$",
    ):
        tile_list.check_folders(places(tmp_path, a={"work_dir": f"{tmp_path}/work_b/deep"}))
    (tmp_path / "link").symlink_to(tmp_path / "work_a")
    with pytest.raises(
        UserError, match="b.yaml: outputs.work_dir is .*work_a, as outputs.work_dir of .*a.yaml"
    ):
        tile_list.check_folders(places(tmp_path, b={"work_dir": f"{tmp_path}/link"}))


def test_catalogs_side_by_side_in_one_folder_are_fine(tmp_path):
    tile_list.check_folders(
        places(
            tmp_path,
            a={"final_catalog": f"{tmp_path}/all/a.csv"},
            b={"final_catalog": f"{tmp_path}/all/b.csv"},
        )
    )


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\x00"])
def test_a_tile_with_a_damaged_manifest_is_not_finished(next_time, field, content):
    """It ends no batch; the tile is run again."""
    manifest = field.folder / "work" / "manifest.json"
    before = manifest.read_bytes()
    manifest.write_bytes(content)
    assert next_time() == "crashed"
    manifest.write_bytes(before)
    assert next_time() == "done"


def test_what_cannot_be_read_is_not_counted(field, done):
    cfg, catalog = (
        tile_list.load_tile(field.folder / "good.yaml"),
        field.folder / "work" / "output_catalog.csv",
    )
    before = catalog.read_bytes()
    assert set(batch.counts(cfg)) == {"sources", "reliable", "failed_patches"}
    catalog.write_bytes(b"")
    assert set(batch.counts(cfg)) == {"failed_patches"}
    catalog.write_bytes(before)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"a,b\n1,2\n",
        b"config,status,state,exit_code\na,done,x,1.0\n",
        b"config,status,state,seconds\na,done,x,long\n",
    ],
)
def test_a_summary_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "a.yaml").write_text("{}")
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(
        UserError,
        match="^[^\n]*table.csv: this is no table of run-many [^\n]*; remove the file, or give --summary "
        "another name$",
    ):
        batch.run_many(str(tmp_path / "*.yaml"), str(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_bytes() == content


@pytest.mark.parametrize("line, why", [("loop/config.yaml", "loop"), ("a\0b.yaml", "null")])
def test_a_line_that_leads_nowhere_is_named(tmp_path, line, why):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "tiles.txt").write_text(f"# tiles\n{line}\n")
    with pytest.raises(
        UserError,
        match=f"^tiles: [^\n]*tiles.txt line 2: [^\n]* leads nowhere [^\n]*{why}[^\n]*; correct the path "
        f"or the link$",
    ):
        batch.run_many(str(tmp_path / "tiles.txt"), str(tmp_path / "table.csv"))


def test_the_home_of_nobody_is_a_file_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "tiles.txt").write_text("~nosuchuser/config.yaml\n")
    (row,) = batch.run_many(str(tmp_path / "tiles.txt"), str(tmp_path / "table.csv")).rows
    assert row.status == "refused" and "~nosuchuser/config.yaml" in row.first_problem


def test_a_table_below_a_link_in_a_circle_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="^--summary: [^\n]*loop/table.csv leads nowhere "):
        batch.run_many([tmp_path / "a.yaml"], str(tmp_path / "loop" / "table.csv"))


def test_a_tile_below_a_link_in_a_circle_is_refused_alone(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    made = places(tmp_path, a={"work_dir": "loop/work"})
    assert isinstance(made[tmp_path / "b.yaml"], batch.Config)
    assert "outputs.work_dir: loop/work leads nowhere " in made[tmp_path / "a.yaml"]


@pytest.mark.parametrize("owner, name", [(batch.Manifest, "up_to_date"), (Path, "exists")])
def test_a_disk_that_fails_under_one_tile_ends_no_batch(field, done, monkeypatch, owner, name):
    """The tile counts as not finished."""
    good = next(row for row in done.rows if row.config.endswith("good.yaml"))
    cfg = load_config(good.config)
    assert batch.is_finished(good, cfg)

    def stale(self, **options):
        if owner is Path and self.name != "output_catalog.csv":
            return True
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "images/a.fits")

    monkeypatch.setattr(owner, name, property(stale) if name == "up_to_date" else stale)
    assert not batch.is_finished(good, cfg)


@pytest.mark.parametrize("name", ["config.yaml", "config.YML"])
def test_a_configuration_is_no_list(tmp_path, name):
    (tmp_path / name).write_text("inputs: {}\noutputs: {}\n")
    with pytest.raises(UserError, match="is a configuration, not a list of them; use tract7dt run"):
        batch.run_many(str(tmp_path / name), str(tmp_path / "table.csv"))
    assert not (tmp_path / "table.csv").exists()


def test_names_of_tiles_do_not_command_the_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(batch, "BEGIN", "raise SystemExit(2)")
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump(
            {
                "inputs": {
                    "input_catalog": "c.csv",
                    "image_list_file": "i.txt",
                    "gaiaxp_synphot_csv": None,
                    "tile_name": "\x1b[31mred",
                },
                "outputs": {"work_dir": "work"},
            }
        )
    )
    assert cli.call(lambda: batch.run_many(str(tmp_path / "*.yaml"), str(tmp_path / "table.csv"))) == 1
    said = "".join(capfd.readouterr())
    assert "\x1b" not in said and said.count("\\x1b[31mred") == 2


def test_a_tile_listed_twice_is_refused(tmp_path):
    (tmp_path / "tiles.txt").write_text("a.yaml\n./a.yaml\n")
    with pytest.raises(UserError, match="a.yaml more than once"):
        tile_list.read_tiles(tmp_path / "tiles.txt")


SLOW_TILE = """
import signal, sys, threading, time
from tract7dt.pipeline.batch import stop_with_starter
def stop(*_):
    open(sys.argv[1] + ".stopped", "w").close()
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.SIG_IGN)
threading.Thread(target=stop_with_starter, daemon=True).start()
open(sys.argv[1] + ".begun", "w").close()
time.sleep(60)
"""


def wait_until(condition, seconds=60):
    for _ in range(20 * seconds):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
def test_stopping_stops_the_running_tile_and_begins_no_other(tmp_path, number):
    """The signal goes to the whole group, as a terminal's does; SIGKILL to the program alone."""
    for name in "ab":
        made = Field(tmp_path).cfg(outputs=dict(work_dir=str(tmp_path / name)))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    program = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from tract7dt.cli import main; from tract7dt.pipeline import batch; batch.BEGIN = {SLOW_TILE!r}; "
        f"sys.argv = ['tract7dt', 'run-many', {str(tmp_path / '*.yaml')!r}, '--summary', "
        f"{str(tmp_path / 'table.csv')!r}]; main.main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with running:
        wait_until(lambda: (tmp_path / "a.yaml.begun").exists() or running.poll() is not None)
        if number == signal.SIGINT:
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
    wait_until((tmp_path / "a.yaml.stopped").exists)
    assert not (tmp_path / "b.yaml.begun").exists()
    assert running.returncode == (-9 if number == signal.SIGKILL else 3)
    rows = batch.read_rows(tmp_path / "table.csv")
    if number != signal.SIGKILL:
        assert [(row.status, row.exit_code) for row in rows.values()] == [
            ("interrupted", 3),
            ("waiting", None),
        ]
