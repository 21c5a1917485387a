"""Days on which things break: two runs at once, a killed run, a full disk, products of other settings."""

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from small_inputs import Field, rows_at
from tract7dt import configfile, pipeline
from tract7dt.errors import NotWritten, UserError
from tract7dt.files import TEMPORARY, Layout, atomic_path, safe_name, write_csv, write_json
from tract7dt.lock import Owner, take, work_lock

QUICK = dict(epsf=dict(epsf_ngrid=1, ngrid=2, parallel_bands=False, max_workers=1), bright_mask=dict(enabled=False), overlay=dict(enabled=False),
             patch_run=dict(max_workers=1, no_cutouts=True, no_patch_overview=True), plotting=dict(dpi=20), logging=dict(level="INFO"))


def small_tile(folder, **sections):
    """Configuration file of a tile of 120 x 160 pixels in two bands with nine stars in four patches; it runs in a second."""
    field = Field(folder)
    y, x = np.mgrid[:120, :160]
    places = [(px, py) for px in (30, 75, 130) for py in (20, 60, 100)]
    light = sum(3000 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.3**2)) / (2 * np.pi * 1.3**2) for px, py in places)
    for i, band in enumerate(field.bands):
        field.image(band, (light + np.random.default_rng(i).normal(0, 1, light.shape)).astype("f4"), SATURATE=1e6)
    field.catalog(rows_at(places).assign(TYPE="STAR"))
    cfg = field.cfg(**{name: QUICK.get(name, {}) | sections.get(name, {}) for name in QUICK | sections})
    (folder / "config.yaml").write_text(configfile.to_yaml(cfg))
    return folder / "config.yaml"


@pytest.fixture
def tile(tmp_path):
    return small_tile(tmp_path)


def leftovers(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(f"{TEMPORARY}*"))


# ---- two runs at once ---------------------------------------------------------------------------------------------

def sleeper(seconds=60):
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])


def test_a_second_run_is_sent_away_politely(program, tile):
    """Exit code 2 and one line: process, host, command, since when, the cure. The first run's log and files are untouched."""
    work = tile.parent / "work"
    work.mkdir()
    with work_lock(work / "run.lock", "run-epsf"):
        done = program("run", tile)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in (str(work), f"process {os.getpid()}", socket.gethostname(), "tract7dt run-epsf", "since 20", f"kill {os.getpid()}", "outputs.work_dir"):
        assert word in lines[0]
    assert list(work.iterdir()) == []


def test_looking_needs_no_lock(tile, capsys):
    (tile.parent / "work").mkdir()
    with work_lock(tile.parent / "work" / "run.lock", "run"):
        assert pipeline.check(tile).ok


@pytest.mark.parametrize("change, why", [(dict(), "no longer runs"), (dict(start="another boot 17"), "another process")])
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
    (tmp_path / "run.lock").write_text(json.dumps(asdict(replace(Owner.this("run"), pid=child.pid, start=""))))
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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_a_lock_that_names_nobody_is_taken_over(tmp_path, monkeypatch, text):
    monkeypatch.setattr("tract7dt.lock.PATIENCE", 0.1)
    (tmp_path / "run.lock").write_text(text)
    assert "names no process" in take(tmp_path / "run.lock", "run")


TAKERS = """
import sys, time
from pathlib import Path
from tract7dt import lock
from tract7dt.errors import UserError
path, won = Path(sys.argv[1]), Path(sys.argv[2])
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
    takers = [subprocess.Popen([sys.executable, "-c", TAKERS, tmp_path / "run.lock", tmp_path / "won"]) for _ in range(4)]
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
        from tract7dt import cli, pipeline
        def stop(cfg, layout):
            assert layout.lock.exists()
            os.kill(os.getpid(), signal.SIGTERM)
        pipeline.prepare_tile = stop
        sys.argv = ["tract7dt", "run", {str(tile)!r}]
        cli.main()""")
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True)
    assert done.returncode == 3 and "interrupted" in done.stderr, done.stderr
    assert not (tile.parent / "work" / "run.lock").exists()


# ---- kill -9 ------------------------------------------------------------------------------------------------------

KILLER = """
import json, os, random, signal, sys, time
from tract7dt import configfile, pipeline

config, first, resumed, moments, how = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")

def run(work, resume, die_at=None):
    "Run in a process of its own group; `die_at`: seconds, or the number of the file event before which the group is killed."
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
    cfg = configfile.load_config(config, {"outputs.work_dir": work, "patch_run.resume": resume, "patch_run.max_workers": 2 if how == "clock" else 1})
    ok = pipeline.run(cfg).ok
    open(config + ".events", "w").write(str(seen))
    os._exit(0 if ok else 1)

start = time.monotonic()
assert run(first, False) == 0
seconds, events = time.monotonic() - start, int(open(config + ".events").read())
rng, report = random.Random(7), []
for _ in range(moments):
    moment = rng.uniform(0, seconds) if how == "clock" else rng.randrange(1, events)
    os.system("rm -rf " + resumed)
    killed = run(resumed, True, moment)
    left = [str(p) for p in __import__("pathlib").Path(resumed).rglob(".part-*")]
    again = run(resumed, True)
    report.append(dict(moment=moment, killed=killed == signal.SIGKILL, left=len(left), again=again,
                       same=open(first + "/output_catalog.csv", "rb").read() == open(resumed + "/output_catalog.csv", "rb").read(),
                       after=[str(p) for p in __import__("pathlib").Path(resumed).rglob(".part-*")] + [p for p in (resumed + "/run.lock",) if os.path.exists(p)]))
print(json.dumps(report))
"""


def killed_runs(tile, moments, how):
    """What became of runs that were killed, each followed by one that resumes."""
    done = subprocess.run([sys.executable, "-c", KILLER, tile, tile.parent / "first", tile.parent / "resumed", str(moments), how],
                          capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_resumed(report, least_killed):
    assert sum(r["killed"] for r in report) >= least_killed, report
    for r in report:
        assert r["again"] == 0 and r["same"] and r["after"] == [], r


def test_a_killed_run_is_resumed_to_the_same_catalog(tile):
    """Killed before three of its file operations, at random among all."""
    check_resumed(killed_runs(tile, 3, "events"), 3)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("how", ["events", "clock"])
def test_a_run_killed_at_thirty_moments_is_resumed_to_the_same_catalog(tile, how):
    """By the clock with two workers, whose whole group is killed; a run may end before the clock does."""
    report = killed_runs(tile, 30, how)
    check_resumed(report, 30 if how == "events" else 15)
    assert how == "clock" or any(r["left"] for r in report)
