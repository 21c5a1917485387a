"""A ratchet for the type checker: its complaints may only become fewer. `--write` notes the present number.

The number is in tests/data/type_complaints.txt. Whoever removes complaints lowers it with `python
tools/type_check.py --write`.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTED = ROOT / "tests" / "data" / "type_complaints.txt"


def complaints() -> list[str]:
    """What mypy says about the package, a line each."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1 or not re.search(r"^(Found|Success)", done.stdout, re.MULTILINE):
        sys.exit(f"mypy failed: {done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if re.search(r": error: ", line)]


def main(write: bool) -> int:
    found, most = complaints(), int(NOTED.read_text())
    if write:
        NOTED.write_text(f"{len(found)}\n")
        return 0
    if len(found) > most:
        print("\n".join(found))
        print(f"{len(found)} complaints of the type checker, {most} are allowed; mend those of your change")
    elif len(found) < most:
        print(f"{len(found)} complaints, {most} were noted: python tools/type_check.py --write")
    return int(len(found) > most)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
