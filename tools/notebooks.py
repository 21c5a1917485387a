"""Export all notebooks, run them, store their outputs and clean them: what to do before a commit.

python tools/notebooks.py [NAME ...]     only these (part of a path below nbs each), else all
python tools/notebooks.py --paths        only tidy stored outputs: no folders of this machine, light pictures
"""

import base64
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOT_RUN = re.compile(r"^#\|\s*(eval:\s*false|slow|notest)", re.M)


TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/tmp[a-z0-9_]{{8}}(?![a-z0-9_])")


def neutral(text: str) -> str:
    """A stored text without the folders of this machine: the repository becomes `..`, a temporary folder
    `/tmp/work`.
    """
    return TEMPORARY.sub("/tmp/work", text.replace(str(ROOT), ".."))


def light(picture: str) -> str:
    """A stored PNG (base64) with a palette of 256 colours: a third of the size for noisy images, no
    difference to the eye.
    """
    image = Image.open(BytesIO(base64.b64decode(picture)))
    if image.mode == "P" or len(picture) < 20_000:
        return picture
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    stream = BytesIO()
    page.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    smaller = base64.b64encode(stream.getvalue()).decode()
    return smaller if len(smaller) < len(picture) else picture


def neutral_output(output: dict) -> None:
    """Make a stored output neutral, in place: its texts know no folders, its pictures are light."""
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = light("".join(data["image/png"]))
    for holder, name in [
        (output, "text"),
        *((data, kind) for kind in data if not kind.startswith(("image/p", "image/j"))),
    ]:
        if isinstance(holder.get(name), list):
            holder[name] = [neutral(line) for line in holder[name]]
        elif isinstance(holder.get(name), str):
            holder[name] = neutral(holder[name])


def neutral_file(path: Path) -> None:
    """Make the stored outputs of a notebook neutral."""
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            neutral_output(output)
    after = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")


def run(path: Path) -> None:
    """Run a notebook from its folder and write its outputs into it, in place of all earlier ones; stops at
    the first error.
    """
    import os

    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell

    os.chdir(path.parent)
    notebook = read_nb(path)
    for cell in notebook.cells:
        if cell.cell_type == "code" and not NOT_RUN.search(cell.source):
            cell.outputs = []
    shell = CaptureShell(path, mpl_format="png")
    shell.run_all(notebook, exc_stop=True, preproc=lambda cell: bool(NOT_RUN.search(cell.source)))
    write_nb(notebook, path)
    neutral_file(path)


def main(names: list[str]) -> int:
    notebooks = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    wanted = [p for p in notebooks if not names or any(n in str(p.relative_to(ROOT / "nbs")) for n in names)]
    if names == ["--paths"]:
        for path in notebooks:
            neutral_file(path)
        return 0
    subprocess.run([BIN / "nbdev_export"], cwd=ROOT, check=True)
    failed = []
    for path in wanted:
        job = multiprocessing.get_context("spawn").Process(target=run, args=(path,))
        job.start()
        job.join()
        print(
            f"{'ok    ' if job.exitcode == 0 else 'FAILED'} {path.relative_to(ROOT)} "
            f"{path.stat().st_size // 1024} kB",
            flush=True,
        )
        failed += [path] if job.exitcode else []
    subprocess.run([BIN / "nbdev_clean"], cwd=ROOT, check=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
