"""Write README.md from nbs/index.ipynb, its twin; `--check` only says whether they agree."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def readme() -> str:
    """The text of README.md: the prose cells of index.ipynb, with paths of pictures and notebooks seen from
    the top folder.
    """
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return (
        re.sub(
            r"\]\((?=images/|tutorials/|reference/|explanations/|\d\d_|\w+\.ipynb)",
            "](nbs/",
            "\n\n".join(prose),
        )
        + "\n"
    )


def main(check: bool) -> int:
    path = ROOT / "README.md"
    if check:
        return int(path.read_text(encoding="utf-8") != readme())
    path.write_text(readme(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
