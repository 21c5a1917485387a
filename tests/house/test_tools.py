"""What maintainers look after: the browser of the tests is optional, the changelog names all that is new."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tract7dt.cli.commands import commands
from tract7dt.config.keys import describe_keys
from tract7dt.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def browser(tmp_path):
    """tools/browser.sh on a computer that has only the given programs beside the shell; what it says."""
    for name in ("sh", "timeout", "sleep"):
        (tmp_path / name).symlink_to(shutil.which(name))

    def call(**programs):
        for name, script in programs.items():
            path = tmp_path / name.replace("_", "-")
            path.write_text(f"#!{shutil.which('sh')}\n{script}\n")
            path.chmod(0o755)
        done = subprocess.run(
            [ROOT / "tools" / "browser.sh"],
            env={"PATH": str(tmp_path), "BROWSER_SECONDS": "1"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return call


def test_a_browser_that_is_there_is_used(browser):
    assert (
        browser(google_chrome="exit 1", id="echo 0", apt_get="exit 1") == "browser: google-chrome is there\n"
    )


def test_chromium_is_installed_by_root(browser, tmp_path):
    said = browser(id="echo 0", apt_get=f'echo "$@" >> {tmp_path}/asked')
    assert said.endswith("browser: done\n")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].endswith("update") and "install" in asked[1] and " chromium " in asked[1]


@pytest.mark.parametrize(
    "programs",
    [
        {"id": "echo 1000", "apt_get": "exit 0"},
        {"id": "echo 0"},
        {"id": "echo 0", "apt_get": "exit 100"},
        {"id": "echo 0", "apt_get": "sleep 20"},
    ],
    ids=["no root", "no apt", "apt fails", "apt hangs"],
)
def test_tests_go_on_without_a_browser(browser, programs):
    assert "the tests that need one are skipped" in browser(**programs)


def test_ci_calls_what_the_readme_says():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert lines == ["make browser", "make test"] and "make test" in (ROOT / "README.md").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK) and os.access(ROOT / "tools" / "browser.sh", os.X_OK)


def test_changelog_names_all_keys_and_commands_that_are_new():
    """Users of 0.7.0 read there what they do not know yet."""
    text, old = (
        (ROOT / "CHANGELOG.md").read_text(),
        yaml.safe_load((ROOT / "tests" / "data" / "config_070.yaml").read_text()),
    )
    sections = {info.key.partition(".")[0] for info in describe_keys(Config)}
    known = {f"{section}.{key}" for section in sections for key in old.get(section, {})}
    new = [
        info.key
        for info in describe_keys(Config)
        if info.key not in known and not info.key.startswith("checks.wcs_tolerance.")
    ]
    assert 10 < len(new) < 40 and [key for key in new if f"`{key}`" not in text] == []
    earlier = (
        "run run-epsf build-patches build-patch-inputs run-patches merge compute-zp dump-config "
        "download-sample"
    ).split()
    assert [name for name in commands() if name not in earlier and f"`{name}`" not in text] == []


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
@pytest.mark.xdist_group("a_group")
def test_groups_of_tests_stay_together(request):
    """pytest 9.2 with pytest-xdist 3.8 forgets the groups: every process then makes every shared run anew."""
    assert request.node.nodeid.endswith("@a_group")
