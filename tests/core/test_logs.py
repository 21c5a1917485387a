"""Messages reach console and file, bars survive them, and nothing is left behind."""

import io
import logging
import sys
import warnings

import pytest

from tract7dt.config.schema import Logging
from tract7dt.core.errors import UserError
from tract7dt.core.logs import log_run, progress, stage
from tract7dt.core.resources import available_cpus, available_memory_gb, cgroup_folders, worker_count

log = logging.getLogger("tract7dt.test")
PLAIN = "%(name)s|%(levelname)s|%(message)s"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def state():
    "Everything that a run must leave as it was."
    loggers = [logging.getLogger(name) for name in ("tract7dt", "py.warnings", "")]
    return ([(lg.level, list(lg.handlers)) for lg in loggers], warnings.showwarning, list(warnings.filters))


class TestRun:
    def test_nothing_is_left_behind(self, tmp_path):
        before = state()
        with pytest.raises(RuntimeError), log_run(Logging(), tmp_path, "run"):
            raise RuntimeError
        with log_run(Logging(ignore_warnings=False), tmp_path, "run"):
            pass
        after = state()
        assert before[0] == after[0] and before[1:] == after[1:]

    def test_console_and_file_and_default_format(self, tmp_path, capsys):
        with log_run(Logging(), tmp_path / "new", "run-epsf") as path:
            log.info("hello")
        assert path == tmp_path / "new" / "run-epsf.log"
        line = path.read_text()
        assert line == capsys.readouterr().err and line.endswith(" | tract7dt.test | INFO | hello\n")

    def test_file_is_appended(self, tmp_path):
        for text in ("one", "two"):
            with log_run(Logging(file=tmp_path / "a.log", format="%(message)s"), tmp_path, "run"):
                log.info(text)
        assert (tmp_path / "a.log").read_text() == "one\ntwo\n"

    def test_null_is_console_only(self, tmp_path, capsys):
        with log_run(Logging(file=None), tmp_path, "run") as path:
            log.info("hello")
        assert path is None and list(tmp_path.iterdir()) == [] and "hello" in capsys.readouterr().err

    def test_level(self, tmp_path, capsys):
        with log_run(Logging(file=None, level="warning", format=PLAIN), tmp_path, "run"):
            log.info("quiet")
            log.warning("loud")
            logging.getLogger("other").warning("not ours")
        assert capsys.readouterr().err == "tract7dt.test|WARNING|loud\n"

    def test_warnings_are_logged_or_dropped(self, tmp_path):
        for ignore in (True, False):
            with log_run(Logging(ignore_warnings=ignore), tmp_path, f"run-{ignore}"):
                with warnings.catch_warnings():
                    if not ignore:
                        warnings.simplefilter("always")
                    warnings.warn("odd header", stacklevel=1)
        assert "odd header" not in (tmp_path / "run-True.log").read_text()
        assert "py.warnings | WARNING" in (tmp_path / "run-False.log").read_text()

    def test_error_filters_stay_in_force(self, tmp_path):
        with warnings.catch_warnings(), log_run(Logging(ignore_warnings=False), tmp_path, "run"):
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="odd"):
                warnings.warn("odd", stacklevel=1)

    def test_unwritable_log_names_the_key(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="logging.file"), log_run(Logging(), tmp_path / "file", "run"):
            pass


class TestStage:
    def test_failure_is_timed_too(self, caplog):
        caplog.set_level("INFO", "tract7dt")
        with pytest.raises(KeyError), stage("fit", log):
            raise KeyError
        assert [r.message.split(" 0")[0] for r in caplog.records] == ["fit: started", "fit: stopped after"]


class TestProgress:
    def test_lines_elsewhere(self, caplog):
        caplog.set_level("INFO", "tract7dt")
        assert list(progress(range(5), name="fit", unit="patches", logger=log)) == list(range(5))
        assert [r.message[:16] for r in caplog.records] == ["fit: 5/5 patches"]
        assert caplog.records[0].name == "tract7dt.test"

    def test_time_left_now_and_then(self, caplog):
        caplog.set_level("INFO", "tract7dt")
        with progress(name="fit", total=4, unit="patches", every=0) as bar:
            bar.update()
            bar.update(2)
        counts = [r.message.split()[1] for r in caplog.records]
        assert counts == ["1/4", "3/4"] and all(r.message.endswith("left") for r in caplog.records)

    def test_nothing_to_do(self, caplog):
        caplog.set_level("INFO", "tract7dt")
        assert list(progress([], name="fit")) == [] and caplog.records == []

    def test_bar_on_a_terminal_and_messages_above_it(self, monkeypatch, tmp_path):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with (
            log_run(Logging(format=PLAIN), tmp_path, "run"),
            progress(name="fit", total=2, unit="patches") as bar,
        ):
            log.info("patch r00_c00 done")
            bar.update(2)
            bar.refresh()
        text = terminal.getvalue()
        assert "2/2" in text and "\ntract7dt.test|INFO" not in text
        assert "\rtract7dt.test|INFO|patch r00_c00 done\n" in text


class TestMachine:
    def test_workers(self):
        assert worker_count("auto") == available_cpus() >= 1
        assert [worker_count(32), worker_count(32, 4), worker_count("auto", 0)] == [32, 4, 1]

    def test_affinity_counts(self, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(7)), raising=False)
        assert available_cpus([]) == 7

    def test_limits_of_both_kinds_of_groups(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
        new, old = tmp_path / "new", tmp_path / "old"
        new.mkdir(), old.mkdir()
        (new / "cpu.max").write_text("450000 100000\n")
        (new / "memory.max").write_text("max\n")
        (old / "cpu.cfs_quota_us").write_text("200000\n")
        (old / "cpu.cfs_period_us").write_text("100000\n")
        (old / "memory.limit_in_bytes").write_text("3000000\n")
        assert available_cpus([new]) == 5 and available_cpus([new, old]) == 2
        assert available_memory_gb([new, old]) == 0.003
        (old / "cpu.cfs_quota_us").write_text("-1\n")
        assert available_cpus([old]) == 64

    def test_groups_above_count(self, tmp_path):
        (tmp_path / "self").write_text("0::/slurm/job/step\n")
        folders = cgroup_folders(tmp_path, tmp_path / "self")
        assert folders == [tmp_path / "slurm/job/step", tmp_path / "slurm/job", tmp_path / "slurm", tmp_path]
