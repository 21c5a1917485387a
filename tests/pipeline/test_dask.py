"""Patches on a Dask cluster: the same bytes as on processes of this machine, whatever
happens to the workers.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import PROGRAM

from tract7dt.core.errors import UserError
from tract7dt.pipeline import commands as pipeline
from tract7dt.pipeline import executors
from tract7dt.pipeline import run_patches as run
from tract7dt.workdir.layout import Layout

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.xdist_group("middle_run"), pytest.mark.usefixtures("own_garbage")]


def moved(middle_run, middle_config, **changes):
    """A copy of the work directory of a finished run, of which nothing is fitted yet: its configuration and
    layout.
    """
    cfg, _ = middle_run
    again = middle_config(**{f"patch_run.{key}": value for key, value in changes.items()})
    shutil.copytree(cfg.outputs.work_dir, again.outputs.work_dir, dirs_exist_ok=True)
    layout = Layout.of(again.outputs)
    shutil.rmtree(layout.tractor_out_dir)
    layout.final_catalog.unlink()
    return again, layout


def bytes_below(folder, pattern):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).rglob(pattern))}


def kill_a_busy_worker(client, killed):
    """Wait until some worker has a patch, and kill its process; gives up where none ever has one."""
    deadline = time.monotonic() + 120
    while not any(client.processing().values()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
    busy = next(worker for worker, tasks in client.processing().items() if tasks)
    pid = client.run(os.getpid, workers=[busy])[busy]
    os.kill(pid, signal.SIGKILL)
    killed.append(pid)


def test_a_worker_killed_in_the_middle_changes_nothing(middle_run, middle_config):
    with ExitStack() as stack:
        client = executors.own_cluster(2, stack)
        again, layout = moved(
            middle_run, middle_config, executor="dask", dask_address=client.scheduler.address
        )
        killed = []
        killer = threading.Thread(target=kill_a_busy_worker, args=(client, killed))
        killer.start()
        summary = run.run_patches(layout, again)
        killer.join()
    assert killed and summary.ok
    pipeline.merge(again)
    pipeline.compute_zp(again)
    theirs = Layout.of(middle_run[0].outputs)
    assert len(summary.done) == len(bytes_below(layout.tractor_out_dir, "*_cat_fit.csv")) > 2
    assert bytes_below(layout.tractor_out_dir, "*_cat_fit.csv") == bytes_below(
        theirs.tractor_out_dir, "*_cat_fit.csv"
    )
    assert layout.final_catalog.read_bytes() == theirs.final_catalog.read_bytes()


def command(cfg, folder, name, **environment):
    """Run a command of the program with a configuration; the finished process."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    return subprocess.run(
        [PROGRAM, name, "--config", path],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


def test_a_cluster_of_its_own_says_nothing_of_its_own(middle_run, middle_config, tmp_path):
    again, layout = moved(middle_run, middle_config, executor="dask", max_workers=2)
    done = command(again, tmp_path, "run-patches")
    assert done.returncode == 0, done.stderr
    theirs = Layout.of(middle_run[0].outputs)
    assert bytes_below(layout.tractor_out_dir, "*_cat_fit.csv") == bytes_below(
        theirs.tractor_out_dir, "*_cat_fit.csv"
    )
    lines = done.stderr.splitlines()
    assert any("Dask scheduler" in line for line in lines)
    assert all("| tract7dt" in line for line in lines), [line for line in lines if "| tract7dt" not in line]


def test_without_dask_there_is_one_line(middle_config, tmp_path):
    (tmp_path / "distributed.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'distributed'\", name='distributed')"
    )
    done = command(middle_config(**{"patch_run.executor": "dask"}), tmp_path, "run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert (
        "patch_run.executor: dask needs the package distributed; install it (pip install 'tract7dt[dask]')"
        in done.stderr
    )


def test_an_address_without_a_scheduler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(executors, "ANSWER_SECONDS", 1)
    settings = SimpleNamespace(executor="dask", dask_address="tcp://127.0.0.1:9")
    with pytest.raises(
        UserError,
        match="patch_run.dask_address: no Dask scheduler answers at tcp://127.0.0.1:9 .*; start one",
    ):
        executors.make_executor(settings, 1, Layout(*[tmp_path] * 8))


@pytest.fixture(scope="module")
def cluster():
    with ExitStack() as stack:
        yield executors.own_cluster(1, stack)


def on(cluster):
    return SimpleNamespace(executor="dask", dask_address=cluster.scheduler.address)


def test_a_work_directory_that_workers_do_not_see_is_refused(cluster, tmp_path):
    with pytest.raises(
        UserError, match="manifest.json: Dask workers do not see this file .*; put outputs.work_dir on a disk"
    ):
        executors.make_executor(on(cluster), 1, Layout(*[tmp_path] * 8))


def test_a_worker_of_another_version_is_refused(cluster, tmp_path, monkeypatch):
    (tmp_path / "manifest.json").touch()
    monkeypatch.setattr(executors, "__version__", "0.0.1")
    with pytest.raises(UserError, match="has tract7dt .*, the run 0.0.1; install the same everywhere"):
        executors.make_executor(on(cluster), 1, Layout(*[tmp_path] * 8))


def test_an_interruption_drops_what_has_not_begun_and_ends_what_has(tmp_path, monkeypatch):
    """The patch under way writes its file; no worker is left."""
    (tmp_path / "manifest.json").touch()

    def slow(tag, layout, cfg):
        (tmp_path / f"begun{tag}").touch()
        time.sleep(1)
        (tmp_path / f"ended{tag}").touch()

    def interrupted(jobs, **_):
        while not list(tmp_path.glob("begun*")):
            time.sleep(0.02)
        raise KeyboardInterrupt
        yield jobs

    monkeypatch.setattr(run, "progress", interrupted)
    executor = executors.make_executor(
        SimpleNamespace(executor="dask", dask_address=None, max_workers=1), 1, Layout(*[tmp_path] * 8)
    )
    pids = executor.client.run(os.getpid).values()
    with pytest.raises(KeyboardInterrupt):
        run.collect(executor, range(20), None, None, slow)
    assert 1 <= len(list(tmp_path.glob("begun*"))) < 4
    assert len(list(tmp_path.glob("ended*"))) == len(list(tmp_path.glob("begun*")))
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_a_lost_scheduler_leaves_is_a_failure_of_the_patch(tmp_path):
    """Not a traceback: the futures that it cancels become outcomes."""
    (tmp_path / "manifest.json").touch()
    executor = executors.make_executor(
        SimpleNamespace(executor="dask", dask_address=None, max_workers=1), 1, Layout(*[tmp_path] * 8)
    )
    job = executor.submit(time.sleep, 60)
    executor.client.cancel(list(executor.inner._futures))
    assert "scheduler dropped the patch" in str(executors.outcome(job))
    executor.shutdown(cancel_futures=True)
