"""Running many patches: an interruption ends it soon, a dead worker is survived."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from tract7dt import run


def test_an_interruption_drops_the_patches_not_yet_begun(monkeypatch):
    begun = []

    def slow_patch(tag, layout, cfg):
        begun.append(tag)
        time.sleep(0.1)

    def interrupted(jobs, **_):
        yield next(iter(jobs))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_patch", slow_patch)
    monkeypatch.setattr(run, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.collect(ThreadPoolExecutor(1), range(50), None, None)
    assert len(begun) < 5


def die_on_the_third(tag, layout, cfg):
    """Stands in for run_patch: one patch kills its worker."""
    if tag == 3:
        os._exit(1)
    return tag


def test_the_patch_that_kills_its_worker_is_found_and_the_others_are_done(monkeypatch):
    cfg = SimpleNamespace(patch_run=SimpleNamespace(max_workers=2))
    monkeypatch.setattr(run, "run_patch", die_on_the_third)
    done, raised = run.collect(run.make_pool(2), range(6), None, cfg)
    assert raised
    more, raised = run.retry_lost(raised, None, cfg)
    assert set(done | more) == {0, 1, 2, 4, 5}
    assert list(raised) == [3] and isinstance(raised[3], BrokenProcessPool)
