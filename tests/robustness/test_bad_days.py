"""Days on which things break: two runs at once, a killed run, a full disk, products of other settings."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROGRAM
from small_inputs import Field, rows_at

from tract7dt.cli.commands import commands
from tract7dt.cli.main import cli
from tract7dt.config import load as configfile
from tract7dt.core.errors import DiskFull, UserError
from tract7dt.core.writing import TEMPORARY, atomic_path
from tract7dt.pipeline import batch, pictures, stages
from tract7dt.pipeline import commands as pipeline
from tract7dt.pipeline import run_patches as run
from tract7dt.tile.load import load_inputs
from tract7dt.workdir.lock import Owner, process_start, remove_stale, take, work_lock
from tract7dt.workdir.provenance import fit_settings

QUICK = dict(
    epsf=dict(epsf_ngrid=1, ngrid=2, parallel_bands=False, max_workers=1),
    bright_mask=dict(enabled=False),
    overlay=dict(enabled=False),
    patch_run=dict(max_workers=1, no_cutouts=True, no_patch_overview=True),
    plotting=dict(dpi=20),
    logging=dict(level="INFO"),
)


def small_tile(folder, **sections):
    """Configuration file of a tile of 120 x 160 pixels in two bands with nine stars in four patches; it runs
    in a second.
    """
    field = Field(folder)
    y, x = np.mgrid[:120, :160]
    places = [(px, py) for px in (30, 75, 130) for py in (20, 60, 100)]
    light = sum(
        3000 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.3**2)) / (2 * np.pi * 1.3**2)
        for px, py in places
    )
    for i, band in enumerate(field.bands):
        field.image(
            band, (light + np.random.default_rng(i).normal(0, 1, light.shape)).astype("f4"), SATURATE=1e6
        )
    field.catalog(rows_at(places).assign(TYPE="STAR"))
    cfg = field.as_written(
        **{name: QUICK.get(name, {}) | sections.get(name, {}) for name in QUICK | sections}
    )
    (folder / "config.yaml").write_text(configfile.to_yaml(cfg))
    return folder / "config.yaml"


@pytest.fixture
def tile(tmp_path):
    return small_tile(tmp_path)


def leftovers(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(f"{TEMPORARY}*"))


# ---- two runs at once
# ---------------------------------------------------------------------------------------------


def sleeper(seconds=60):
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])


def test_a_second_run_is_sent_away_politely(program, tile):
    """Exit code 2 and one line: process, host, command, since when, the cure.

    The first run's log and files are untouched.
    """
    work = tile.parent / "work"
    work.mkdir()
    with work_lock(work / "run.lock", "run-epsf"):
        done = program("run", tile)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in (
        str(work),
        f"process {os.getpid()}",
        socket.gethostname(),
        "tract7dt run-epsf",
        "since 20",
        f"kill {os.getpid()}",
        "outputs.work_dir",
    ):
        assert word in lines[0]
    assert list(work.iterdir()) == []


def test_looking_needs_no_lock(tile, capsys):
    (tile.parent / "work").mkdir()
    with work_lock(tile.parent / "work" / "run.lock", "run"):
        assert pipeline.check(tile).ok


@pytest.mark.parametrize(
    "change, why", [(dict(), "no longer runs"), (dict(start="another boot 17"), "another process")]
)
def test_the_lock_of_a_dead_process_is_taken_over_and_the_log_says_so(tile, change, why):
    """Once its process has ended, and once its number belongs to a later process (here: this one)."""
    work, gone = tile.parent / "work", sleeper(0)
    gone.wait()
    work.mkdir()
    owner = replace(Owner.this("run"), **change) if change else replace(Owner.this("run"), pid=gone.pid)
    (work / "run.lock").write_text(json.dumps(asdict(owner)))
    pipeline.build_patches(tile)
    line = next(line for line in (work / "build-patches.log").read_text().splitlines() if "run.lock" in line)
    assert "taken over" in line and str(owner.pid) in line and why in line and "WARNING" in line
    assert not (work / "run.lock").exists()


def test_a_killed_owner_that_nobody_has_waited_for_is_dead_too(tmp_path):
    """A killed process stays in the list until its parent asks for it."""
    child = sleeper()
    (tmp_path / "run.lock").write_text(
        json.dumps(asdict(replace(Owner.this("run"), pid=child.pid, start="")))
    )
    with pytest.raises(UserError, match=f"process {child.pid}"):
        take(tmp_path / "run.lock", "run")
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert "no longer runs" in take(tmp_path / "run.lock", "run")
    child.wait()


def test_the_lock_of_another_computer_is_respected(tmp_path):
    lock = tmp_path / "run.lock"
    lock.write_text(json.dumps(asdict(replace(Owner.this("run"), host="node17", pid=4_000_000))))
    with pytest.raises(UserError, match=f"4000000 on node17.*if it no longer runs there, remove {lock}"):
        take(lock, "run")
    assert lock.exists()


NOBODY = '{"pid": -1, "host": "here", "command": "run", "since": "now", "start": ""}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null", NOBODY])
def test_a_lock_that_names_nobody_is_taken_over(tmp_path, monkeypatch, text):
    monkeypatch.setattr("tract7dt.workdir.lock.PATIENCE", 0.1)
    (tmp_path / "run.lock").write_text(text)
    assert "names no process" in take(tmp_path / "run.lock", "run")


def test_a_lock_names_its_owner_however_slow_the_disk(tmp_path, monkeypatch):
    """A maker that stalls while it writes must not be taken for one that was killed."""
    written = Path.write_text
    monkeypatch.setattr(
        Path,
        "write_text",
        lambda path, *words, **more: (
            seen.append((tmp_path / "run.lock").exists()),
            written(path, *words, **more),
        ),
    )
    seen = []
    assert take(tmp_path / "run.lock", "run") == "" and seen == [False]
    with pytest.raises(UserError, match="another run"):
        take(tmp_path / "run.lock", "merge")


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch, error):
    def link(*names):
        raise OSError(error, "no links here")

    monkeypatch.setattr("os.link", link)
    assert take(tmp_path / "run.lock", "run") == ""
    with pytest.raises(UserError, match="another run"):
        take(tmp_path / "run.lock", "merge")
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_a_fresh_lock_is_not_taken_for_the_stale_one_that_was_there_before(tmp_path):
    """Between reading a stale lock and removing it, another run may have been faster."""
    stale, fresh = replace(Owner.this("run"), pid=4_000_000), replace(Owner.this("merge"), pid=1)
    (tmp_path / "run.lock").write_text(json.dumps(asdict(fresh)))
    remove_stale(tmp_path / "run.lock", stale)
    assert Owner.read(tmp_path / "run.lock") == fresh
    remove_stale(tmp_path / "run.lock", fresh)
    remove_stale(tmp_path / "run.lock", fresh)
    assert not (tmp_path / "run.lock").exists()


TAKERS = """
import sys, time
from pathlib import Path
from tract7dt.workdir import lock
from tract7dt.core.errors import UserError
path, won = Path(sys.argv[1]), Path(sys.argv[2])
(path.parent / f"ready-{lock.os.getpid()}").touch()
while not (path.parent / "go").exists():
    time.sleep(0.001)
try:
    with lock.work_lock(path, "run"):
        (won / str(lock.os.getpid())).touch()
        time.sleep(1)
except UserError:
    sys.exit(2)
"""


def test_of_many_that_find_a_stale_lock_one_wins(tmp_path):
    gone = sleeper(0)
    gone.wait()
    (tmp_path / "run.lock").write_text(json.dumps(asdict(replace(Owner.this("run"), pid=gone.pid))))
    (tmp_path / "won").mkdir()
    takers = [
        subprocess.Popen([sys.executable, "-c", TAKERS, tmp_path / "run.lock", tmp_path / "won"])
        for _ in range(4)
    ]
    while len(list(tmp_path.glob("ready-*"))) < 4:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert sorted(taker.wait() for taker in takers) == [0, 2, 2, 2]
    assert len(list((tmp_path / "won").iterdir())) == 1 and not (tmp_path / "run.lock").exists()


def test_the_lock_goes_with_every_end(tile, monkeypatch):
    lock = tile.parent / "work" / "run.lock"
    for end in (KeyboardInterrupt, RuntimeError, UserError):

        def stopped(*values, end=end):
            assert lock.exists()
            raise end("stopped")

        monkeypatch.setattr(pipeline, "prepare_tile", stopped)
        with pytest.raises(end):
            pipeline.run(tile)
        assert not lock.exists()


def test_sigterm_gives_the_lock_back(program, tile):
    driver = textwrap.dedent(f"""
        import os, signal, sys
        from tract7dt.cli.main import main
        from tract7dt.pipeline import commands
        def stop(cfg, layout):
            assert layout.lock.exists()
            os.kill(os.getpid(), signal.SIGTERM)
        commands.prepare_tile = stop
        sys.argv = ["tract7dt", "run", {str(tile)!r}]
        main()""")
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True)
    assert done.returncode == 3 and "interrupted" in done.stderr, done.stderr
    assert not (tile.parent / "work" / "run.lock").exists()


# ---- kill -9
# ------------------------------------------------------------------------------------------------------

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from tract7dt import run as run_pipeline, load_config

config, first, resumed, moments, how = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")

def run(work, resume, die_at=None):
    # a process group of its own; die_at: seconds, or the number of the file event before which it is killed
    child = os.fork()
    if child:
        if how == "clock" and die_at is not None:
            time.sleep(die_at)
            os.killpg(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    os.setsid()
    seen = 0
    def count(event, values):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if how == "events" and seen == die_at:
                os.killpg(0, signal.SIGKILL)
    sys.addaudithook(count)
    changes = {"outputs.work_dir": work, "patch_run.resume": resume}
    cfg = load_config(config, changes | {"patch_run.max_workers": 2 if how == "clock" else 1})
    ok = run_pipeline(cfg).ok
    open(config + ".events", "w").write(str(seen))
    os._exit(0 if ok else 1)

def final(work):
    return open(work + "/output_catalog.csv", "rb").read()

def products(work):
    "Names of all files but logs and copies of the configuration, whose names have the time."
    names = (str(path.relative_to(work)) for path in Path(work).rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith(".log") and not name.startswith("config_used_"))

start = time.monotonic()
assert run(first, False) == 0
seconds, events = time.monotonic() - start, int(open(config + ".events").read())
rng, report = random.Random(7), []
for _ in range(moments):
    moment = rng.uniform(0, seconds) if how == "clock" else rng.randrange(1, events)
    os.system("rm -rf " + resumed)
    killed = run(resumed, True, moment)
    left = list(Path(resumed).rglob(".part-*"))
    again = run(resumed, True)
    report.append(dict(moment=moment, killed=killed == signal.SIGKILL, left=len(left), again=again,
                       same=final(first) == final(resumed),
                       differ=sorted(set(products(first)) ^ set(products(resumed)))))
print(json.dumps(report))
"""


def test_what_a_killed_run_left_half_written_is_swept_away(tile):
    """Everywhere below the work directory, and for the final catalog; other hidden files stay."""
    work = tile.parent / "work"
    left = [
        work / f"{TEMPORARY}0a1b2c3d-manifest.json",
        work / "EPSFs" / "m400" / "r00_c00" / f"{TEMPORARY}0a1b2c3d-epsf.npy",
        work / ".mine",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    pipeline.build_patches(tile)
    assert leftovers(work) == [] and left[-1].exists()
    assert "2 temporary files of an earlier run removed" in (work / "build-patches.log").read_text()


def killed_runs(tile, moments, how):
    """What became of runs that were killed, each followed by one that resumes."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLER,
            tile,
            tile.parent / "first",
            tile.parent / "resumed",
            str(moments),
            how,
        ],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_resumed(report, least_killed):
    assert sum(r["killed"] for r in report) >= least_killed, report
    for r in report:
        assert r["again"] == 0 and r["same"] and r["differ"] == [], r


@pytest.fixture
def pictured(tmp_path):
    """A tile whose run draws all pictures, small."""
    patch_run = QUICK["patch_run"] | dict(no_cutouts=False, no_patch_overview=False, cutout_size=20)
    return small_tile(
        tmp_path, patch_run=patch_run, overlay=dict(enabled=True), bright_mask=dict(enabled=True)
    )


def test_a_killed_run_is_resumed_to_the_same_catalog_and_files(pictured):
    """Killed before three of its file operations, at random among all."""
    check_resumed(killed_runs(pictured, 3, "events"), 3)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("how", ["events", "clock"])
def test_a_run_killed_at_thirty_moments_is_resumed_to_the_same_catalog_and_files(pictured, how):
    """By the clock with two workers, whose whole group is killed; a run may end before the clock does."""
    report = killed_runs(pictured, 30, how)
    check_resumed(report, 30 if how == "events" else 15)
    assert how == "clock" or any(r["left"] for r in report)


# ---- a full disk, a folder that may not be written to
# -------------------------------------------------------------


def one_line(capsys, *words):
    """What was said on the console is one line with all `words`."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tract7dt: ")]
    assert len(said) == 1, said
    for word in words:
        assert str(word) in said[0], f"{word!r} is not in: {said[0]}"


def full_for(monkeypatch, ending):
    """A disk that has no room for files whose names end so: half of each is written."""

    def full(path):
        if path.name.endswith(ending):
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tract7dt.core.writing.to_disk", full)


@pytest.mark.parametrize(
    "ending", ["wcs.fits", "psf_model.fits", ".fits.gz", "manifest.json", "output_catalog.csv"]
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path, monkeypatch, capsys, ending):
    tile = small_tile(tmp_path, logging=dict(level="ERROR"))
    full_for(monkeypatch, ending)
    assert cli(["run", str(tile)], commands()) == 2
    one_line(
        capsys,
        ending,
        str(tmp_path / "work"),
        "cannot be written (No space left on device)",
        "free space",
        "outputs.work_dir",
    )
    assert not [p for p in tmp_path.rglob(f"*{ending}")] and leftovers(tmp_path) == []
    assert not (tmp_path / "work" / "run.lock").exists()


def begun(folder):
    """Tags of the patches that were tried: a fit makes the folder of its results."""
    return sorted(path.name for path in (folder / "work" / "outputs").glob("r*"))


def test_a_disk_that_is_full_during_the_fit_stops_it_at_once(tmp_path, monkeypatch, capsys, caplog):
    """One line and exit code 2; what was finished is kept, and with room again the same command does the
    rest.
    """
    tile = small_tile(
        tmp_path,
        logging=dict(level="ERROR"),
        epsf=QUICK["epsf"] | dict(ngrid=3),
        patch_run=QUICK["patch_run"] | dict(resume=True),
    )
    full_for(monkeypatch, "pc01_cat_fit.csv")
    assert cli(["run", str(tile)], commands()) == 2
    one_line(
        capsys, "pc01_cat_fit.csv: cannot be written (No space left on device)", "free space on that disk"
    )
    assert (
        2 <= len(begun(tmp_path)) < 9
        and not (tmp_path / "work" / "output_catalog.csv").exists()
        and leftovers(tmp_path) == []
    )
    assert cli(["merge", str(tile)], commands()) == 2
    one_line(capsys, "were not fitted; run run-patches first")
    monkeypatch.undo()
    with caplog.at_level("INFO", "tract7dt.pipeline.run_patches"):
        assert cli(["run", str(tile)], commands()) == 0
    assert "9 patches fitted, 0 failed" in capsys.readouterr().out and re.search("[1-7] skipped", caplog.text)


def test_a_file_that_cannot_grow_in_the_middle_of_a_write(program, tile):
    """The operating system stops a real write half-way: payloads are larger than files may be."""
    limit = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
        import os, resource, subprocess, sys
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        sys.exit(subprocess.run([{str(PROGRAM)!r}, "build-patch-inputs", {str(tile)!r}]).returncode)"""),
        ],
        capture_output=True,
        text=True,
    )
    assert limit.returncode == 2 and "Traceback" not in limit.stderr, limit.stderr
    line = limit.stderr.splitlines()[-1]
    assert "patch_payloads" in line and "cannot be written (File too large" in line and "free space" in line
    assert leftovers(tile.parent) == [] and not list((tile.parent / "work" / "patch_payloads").glob("*"))


def test_a_work_directory_that_may_not_be_written_to(tmp_path, capsys):
    """No folder can be made below a folder of the kernel, not even by root."""
    tile = small_tile(tmp_path, outputs=dict(work_dir="/proc/work"))
    assert cli(["run", str(tile)], commands()) == 2
    one_line(capsys, "/proc/work: cannot be written", "outputs.work_dir")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_real_full_disk_and_a_read_only_one(program, tmp_path, small_disk):
    """Workers in processes of their own run out of space; then nothing may be written at all."""
    tile = small_tile(
        tmp_path,
        outputs=dict(work_dir=str(small_disk / "work")),
        patch_run=QUICK["patch_run"] | dict(max_workers=2),
    )
    assert program("build-patch-inputs", tile).returncode == 0
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(b"0" * (free.f_bavail * free.f_bsize - 40_000))
    done = program("run-patches", tile)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tract7dt: ")]
    assert "No space left on device" in line and "free space on that disk" in line
    assert program("merge", tile).returncode == 2, "not all patches were fitted"
    assert leftovers(small_disk) == []
    filler.unlink()
    assert program("run-patches", tile).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = program("run-patches", tile)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "run.lock: cannot be written (Read-only file system); make the folder writable" in done.stderr


def test_a_full_disk_keeps_its_text_when_it_comes_from_a_worker(tmp_path):
    import pickle

    with pytest.raises(DiskFull) as raised, atomic_path(tmp_path / "a.png", durable=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    again = pickle.loads(pickle.dumps(raised.value))
    assert str(again) == str(raised.value) and type(again) is DiskFull


@pytest.mark.parametrize(
    "ending", ["white_overlay.png", "epsf_sheet.png", "patch_overview.png", "src_00004.png"]
)
def test_pictures_that_found_no_room_are_drawn_when_there_is_some(tmp_path, monkeypatch, capsys, ending):
    """The run ends as at any other file, and the same command goes on: a patch with half of its pictures is
    not finished.
    """
    patch_run = QUICK["patch_run"] | dict(
        no_cutouts=False, no_patch_overview=False, cutout_size=20, resume=True
    )
    tile = small_tile(tmp_path, patch_run=patch_run, overlay=dict(enabled=True), logging=dict(level="ERROR"))
    real = pictures.save_picture

    def full(picture, path, dpi):
        if path.name != ending:
            return real(picture, path, dpi)
        with atomic_path(path, durable=False) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "save_picture", full)
        assert cli(["run", str(tile)], commands()) == 2
    one_line(capsys, ending, "cannot be written (No space left on device)", "free space on that disk")
    assert leftovers(tmp_path) == [] and not (tmp_path / "work" / "output_catalog.csv").exists()
    assert cli(["run", str(tile)], commands()) == 0
    drawn = [path.name for path in (tmp_path / "work").rglob("*.png")]
    assert ending in drawn and drawn.count("patch_overview.png") == 4
    assert {name for name in drawn if name.startswith("src_0")} == {
        f"src_{number:05d}.png" for number in range(9)
    }


def test_no_room_for_unpacked_images_is_not_blamed_on_the_image(tmp_path, monkeypatch):
    """Pixels of gzip files go to a temporary file, on a disk of its own."""
    field = Field(tmp_path)
    field.image("m400", np.zeros((120, 160), "f4"))
    subprocess.run(["gzip", tmp_path / "m400.fits"], check=True)
    field.list("m400.fits.gz", "m425.fits")
    monkeypatch.setattr("tract7dt.inputs.fits.TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))
    with pytest.raises(UserError, match="no room to unpack images .No space left on device.; set TMPDIR"):
        load_inputs(field.cfg())


def test_errors_of_files_that_are_read_are_not_taken_for_errors_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError):
        with atomic_path(tmp_path / "a.csv"):
            (tmp_path / "input.csv").read_text()


# ---- products of other settings, images, ePSFs
# --------------------------------------------------------------------


def change(tile, old, new):
    text = tile.read_text()
    assert old in text
    tile.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tile that was run, with patch_run.resume on; its folder may be copied, but is not changed."""
    folder = tmp_path_factory.mktemp("finished")
    tile = small_tile(folder, patch_run=QUICK["patch_run"] | dict(resume=True))
    assert pipeline.run(tile).ok
    return tile


@pytest.fixture
def stale(finished):
    """The finished tile and what a command says of it; afterwards everything is as it was."""
    folder = finished.parent
    keep = folder.with_name(folder.name + "-kept")
    shutil.copytree(folder, keep)

    def say(command):
        (folder / "work" / f"{command}.log").unlink(missing_ok=True)
        code = cli([command, str(finished)], commands())
        return code, (folder / "work" / f"{command}.log").read_text()

    yield finished, say
    shutil.rmtree(folder)
    keep.rename(folder)


def refused(capsys, say, command, *words):
    capsys.readouterr()
    code, _ = say(command)
    one_line(capsys, *words)
    assert code == 2


def test_nothing_has_changed_and_nothing_is_fitted(stale):
    tile, say = stale
    code, log = say("run")
    assert (
        code == 0
        and "0 fitted, 4 skipped" in log
        and "payloads: made again as before, nothing has changed" in log
    )


def test_changed_settings_are_noticed(stale, capsys):
    """Those that reach the payloads make old ones unusable; `run` makes new ones and says why."""
    tile, say = stale
    change(tile, "halo_pix_min: 20", "halo_pix_min: 35")
    for command in ("run-patches", "merge", "model"):
        refused(
            capsys,
            say,
            command,
            "payloads are out of date",
            "patches.halo_pix_min was 20, is 35",
            "run build-patch-inputs again",
        )
    code, log = say("run")
    assert code == 0 and "payloads: made again, because patches.halo_pix_min was 20, is 35" in log
    assert "ePSFs: made again as before" in log
    assert "4 patches fitted: its pixels or sources have changed" in log


def test_changed_settings_of_the_fit_are_noticed(stale):
    tile, say = stale
    change(tile, "n_opt_iters: 20", "n_opt_iters: 30")
    code, log = say("run-patches")
    assert code == 0 and "4 patches fitted: patch_run.n_opt_iters was 20, is 30" in log


def test_a_setting_that_reaches_no_product_redoes_nothing(stale):
    tile, say = stale
    change(tile, "dpi: 20", "dpi: 30")
    code, log = say("run-patches")
    assert code == 0 and "0 fitted, 4 skipped" in log


@pytest.mark.parametrize("name", ["m425.fits", "cat.csv", "images.txt"])
def test_changed_inputs_are_noticed(stale, capsys, name):
    tile, say = stale
    path = tile.parent / name
    path.write_bytes(path.read_bytes())
    os.utime(path, (1e9, 1e9))
    refused(
        capsys,
        say,
        "run-patches",
        "payloads are out of date",
        f"{path} has changed",
        "run build-patch-inputs again",
    )


def test_changed_images_reach_the_catalog(stale):
    tile, say = stale
    from astropy.io import fits

    before = pd.read_csv(tile.parent / "work" / "output_catalog.csv")
    with fits.open(tile.parent / "m425.fits", mode="update") as hdus:
        hdus[0].data *= 2
    code, log = say("run")
    assert code == 0 and f"payloads: made again, because {tile.parent / 'm425.fits'} has changed" in log
    assert "ePSFs: made again, because" in log and "its pixels or sources have changed" in log
    after = pd.read_csv(tile.parent / "work" / "output_catalog.csv")
    assert np.allclose(after.FLUX_m425_fit / before.FLUX_m425_fit, 2, rtol=0.05) and np.allclose(
        after.FLUX_m400_fit / before.FLUX_m400_fit, 1, rtol=0.05
    )


def test_another_catalog_of_the_same_age_and_size_is_noticed(stale, capsys):
    tile, say = stale
    shutil.copy2(tile.parent / "cat.csv", tile.parent / "dog.csv")
    change(tile, "cat.csv", "dog.csv")
    refused(capsys, say, "run-patches", "inputs.input_catalog was", "dog.csv")


def test_changed_epsfs_are_noticed(stale, capsys):
    """First the settings of old ePSFs, then, when they were built again, the patches that were fitted with
    the old ones.
    """
    tile, say = stale
    change(tile, "max_stars: 30", "max_stars: 3")
    refused(
        capsys,
        say,
        "run-patches",
        "ePSFs are out of date",
        "epsf.max_stars was 30, is 3",
        "run run-epsf again",
    )
    code, log = say("run-epsf")
    assert code == 0 and "ePSFs: made again, because epsf.max_stars was 30, is 3" in log
    code, log = say("run-patches")
    assert code == 0 and "4 patches fitted: the PSFs of m400, m425 have changed" in log


@pytest.mark.parametrize(
    "stage, product, command",
    [("write_payloads", "patch_payloads", "build-patch-inputs"), ("write_epsf", "EPSFs", "run-epsf")],
)
def test_products_whose_making_was_stopped_are_not_taken_for_whole(
    stale, capsys, monkeypatch, stage, product, command
):
    """They may be partly of one configuration and partly of another; back with the first, nothing fits with
    the manifest.
    """
    tile, say = stale
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            f"tract7dt.pipeline.stages.{stage}", lambda *values: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        pipeline.run(tile)
    refused(
        capsys, say, "run-patches", product if command == "run-epsf" else "no payloads are recorded", command
    )


def test_fits_of_other_settings_are_noticed(stale, capsys):
    """A catalog holds fits of one configuration; settings of pictures and workers, and what the native engine
    does not read, are no part of it.
    """
    tile, say = stale
    change(tile, "cutout_size: 100", "cutout_size: 50")
    change(tile, "r_ap: 5.0", "r_ap: 9.0")
    assert say("merge")[0] == 0
    change(tile, "pos_max_shift_pix: 5.0", "pos_max_shift_pix: 0.01")
    change(tile, "weak_priors: true", "weak_priors: false")
    for command in ("merge", "model"):
        refused(
            capsys,
            say,
            command,
            "the fits are out of date",
            "patch_run.pos_max_shift_pix was 5.0, is 0.01",
            "patch_run.weak_priors was True, is False",
            "run run-patches again",
        )
    code, log = say("run-patches")
    assert (
        code == 0
        and (
            "4 patches fitted: patch_run.weak_priors was True, is False, patch_run.pos_max_shift_pix was "
            "5.0, is 0.01"
        )
        in log
    )
    assert say("merge")[0] == 0


def test_fits_with_other_epsfs_are_noticed(stale, capsys):
    tile, say = stale
    change(tile, "star_snr_min: 20.0", "star_snr_min: 60.0")
    assert say("run-epsf")[0] == 0
    refused(
        capsys,
        say,
        "merge",
        "the fits are out of date",
        "fingerprint of the ePSFs was",
        "run run-patches again",
    )
    change(tile, "star_snr_min: 60.0", "star_snr_min: 20.0")
    assert say("run-epsf")[0] == 0
    assert say("merge")[0] == 0, "the ePSFs are those of the fits again"


def test_settings_of_the_fit_that_reach_the_epsfs_make_them_out_of_date(stale, capsys):
    """Without a seeing in the header its default decides which detections are stars."""
    tile, say = stale
    change(tile, "fallback_default_fwhm_pix: 4.0", "fallback_default_fwhm_pix: 9.0")
    refused(
        capsys,
        say,
        "run-patches",
        "ePSFs are out of date",
        "patch_run.fallback_default_fwhm_pix was 4.0, is 9.0",
        "run run-epsf again",
    )


def test_start_fluxes_belong_to_the_fit_of_the_tractor_engine(tile):
    """Only it has start fluxes."""

    def settings(engine, **changes):
        return fit_settings(
            configfile.load_config(
                tile, {"patch_run.engine": engine} | {f"patch_run.{k}": v for k, v in changes.items()}
            )
        )

    for changes in (dict(r_ap=9.0), dict(eps_flux=0.5)):
        assert settings("native") == settings("native", **changes)
        assert settings("tractor") != settings("tractor", **changes)


def backwards(table):
    return table.assign(RA=table["RA"].to_numpy()[::-1], DEC=table["DEC"].to_numpy()[::-1], TYPE="EXP")


@pytest.mark.parametrize("stage", ["load_inputs", "build_epsf", "cut_payloads"])
def test_a_catalog_that_is_edited_during_a_run_is_not_taken_for_the_one_that_was_read(
    stale, capsys, monkeypatch, stage
):
    """The run held the old catalog; rows of the new one must not be joined with its fits."""
    tile, say = stale
    real = getattr(stages, stage)

    def edited(*values):
        made = real(*values)
        backwards(pd.read_csv(tile.parent / "cat.csv", dtype=str)).to_csv(
            tile.parent / "cat.csv", index=False
        )
        return made

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, edited)
        refused(capsys, say, "run", "payloads are out of date", f"{tile.parent / 'cat.csv'} has changed")
    refused(
        capsys,
        say,
        "merge",
        "payloads are out of date",
        f"{tile.parent / 'cat.csv'} has changed",
        "run build-patch-inputs again",
    )
    assert say("run")[0] == 0
    catalog = pd.read_csv(tile.parent / "work" / "output_catalog.csv")
    assert set(catalog["TYPE"]) == {"EXP"} and set(catalog["stype_fit"]) == {"exp"}


def test_a_batch_does_not_skip_a_tile_whose_inputs_changed_during_its_run(stale):
    """What counts is the files as they were read, not as they were when the tile was finished."""
    tile, say = stale
    cfg = configfile.load_config(tile)
    done = batch.TileRow(str(tile), status="done", state=batch.tile_state(cfg))
    assert batch.is_finished(done, cfg)
    os.utime(tile.parent / "m425.fits", (1, 1))
    late = replace(done, state=batch.tile_state(cfg))
    assert not batch.is_finished(done, cfg) and not batch.is_finished(late, cfg)


def test_a_merge_without_patches_that_failed_says_so(stale, monkeypatch, capsys):
    """As the run did: exit code 1 and a line for each."""
    tile, say = stale
    change(tile, "resume: true", "resume: false")
    real = run.fit_patch

    def failing(payload, *values):
        if payload.patch.tag.endswith("pr00_pc00"):
            raise ValueError("no")
        return real(payload, *values)

    with monkeypatch.context() as patch:
        patch.setattr(run, "fit_patch", failing)
        assert say("run")[0] == 1
    capsys.readouterr()
    code, _ = say("merge")
    told = capsys.readouterr()
    assert code == 1 and "problem: patch r00_c00_pr00_pc00: its fit failed; see " in told.out + told.err
    assert pipeline.run_patches(tile).ok and pipeline.merge(tile).ok


# ---- workers whose run was killed
# ---------------------------------------------------------------------------------

STARTER = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from tract7dt.core.resources import worker_begins
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=worker_begins)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_run_that_was_killed(tmp_path):
    """They would wait for patches for ever, and keep their memory."""
    (tmp_path / "starter.py").write_text(STARTER)
    starter = subprocess.Popen([sys.executable, tmp_path / "starter.py"], stdout=subprocess.PIPE, text=True)
    worker = int(starter.stdout.readline())
    assert process_start(worker)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    for _ in range(200):
        try:
            process_start(worker)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("the worker is still there")
