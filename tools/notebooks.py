"""Export all notebooks, run them, store their outputs and clean them: what to do before a commit.

    python tools/notebooks.py [NAME ...]     only these (part of a file name each), else all
"""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOT_RUN = re.compile(r"^#\|\s*(eval:\s*false|slow|notest)", re.M)


def run(path: Path) -> None:
    """Run a notebook from its folder and write its outputs into it; stops at the first error."""
    import os

    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell

    os.chdir(path.parent)
    notebook = read_nb(path)
    shell = CaptureShell(path, mpl_format="png")
    shell.run_all(notebook, exc_stop=True, preproc=lambda cell: bool(NOT_RUN.search(cell.source)))
    write_nb(notebook, path)


def main(names: list[str]) -> int:
    notebooks = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    wanted = [p for p in notebooks if not names or any(n in p.name for n in names)]
    subprocess.run([BIN / "nbdev_export"], cwd=ROOT, check=True)
    failed = []
    for path in wanted:
        job = multiprocessing.get_context("spawn").Process(target=run, args=(path,))
        job.start()
        job.join()
        print(f"{'ok    ' if job.exitcode == 0 else 'FAILED'} {path.relative_to(ROOT)} {path.stat().st_size // 1024} kB", flush=True)
        failed += [path] if job.exitcode else []
    subprocess.run([BIN / "nbdev_clean"], cwd=ROOT, check=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
