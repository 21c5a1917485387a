"""Write the last cell of each numbered notebook, which points to the next one; `--check` only lists those
that do not.
"""

import json
import os
import re
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"
BEGINS = "Next: ["


def numbered(folder: Path = NBS) -> list[Path]:
    """The numbered notebooks in reading order."""
    return sorted(folder.glob("[0-9]*_*/[0-9]*_*.ipynb"))


def introduced(path: Path) -> tuple[str, str]:
    """Title and line below the title of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.search(r"^# (.+)", text, re.M)[1], re.search(r"^> (.+)", text, re.M)[1]


def pointer(path: Path, following: Path | None) -> str:
    """The text that leads from a notebook to the next one, from the last one back to the beginning."""
    if following is None:
        return f"{BEGINS}back to the beginning](../index.ipynb)."
    title, line = introduced(following)
    return f"{BEGINS}{title}]({os.path.relpath(following, path.parent)}). {line}"


def pointed(notebook: dict, text: str) -> bool:
    """Give a notebook its last cell; whether that changed it."""
    last = notebook["cells"][-1]
    if not (last["cell_type"] == "markdown" and "".join(last["source"]).startswith(BEGINS)):
        notebook["cells"].append({"cell_type": "markdown", "id": "next", "metadata": {}, "source": [text]})
        return True
    changed = "".join(last["source"]) != text
    last["source"] = [text]
    return changed


def main(check: bool) -> int:
    paths, wrong = numbered(), 0
    for path, following in zip(paths, [*paths[1:], None]):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if pointed(notebook, pointer(path, following)):
            wrong += 1
            print(path.name)
            if not check:
                path.write_text(
                    json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n",
                    encoding="utf-8",
                )
    return int(check and wrong > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
