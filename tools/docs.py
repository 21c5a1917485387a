"""The documentation site from the notebooks: python tools/docs.py [--check]

nbdev turns the notebooks into pages, smalldocs renders them; formulas become MathML and fonts are those of the computer,
so that the pages need no network. The site is `_proc/_docs/index.html`. With `--check` broken links, unknown syntax,
and whatever is exported but not on its page are errors.
"""

import argparse
import html
import re
import subprocess
import sys
from pathlib import Path

from check_site import complaints
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

SMALLDOCS = Path(sys.executable).with_name("smalldocs")
FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
FROM_NETWORK = re.compile(r'<(?:link|script)[^>]*"https://[^>]*katex[^>]*>(?:</script>)?')
FONT_FROM_NETWORK = re.compile(r"@import url\(https:[^)]*\);?")


def processed_notebooks() -> Path:
    "Let nbdev process all notebooks; returns their folder."
    refresh_quarto_yml()
    _build_modidx()
    return proc_nbs(n_workers=2, force=True)


def named_for_links(notebook: Path) -> Path:
    "Give a processed notebook the name that links to it use, 00_core.ipynb becoming core.ipynb, and make its links relative."
    config, text = get_config(), notebook.read_text()
    name = re.search(r"output-file: (\S+?)\.html", text)
    text = re.sub(r'output-file: [^"\n]*?\\n', "", text).replace(f"({config.doc_host}{config.doc_baseurl}/", "(/")
    new = notebook.with_name(f"{name[1] if name else notebook.stem}.ipynb")
    notebook.unlink()
    if new.exists():
        raise FileExistsError(f"two notebooks would become the page {new.name}: rename one of them ({notebook.name})")
    new.write_text(text)
    return new


def rename_all(folder: Path) -> None:
    "Name all notebooks as links want them, in the sidebar and in links from one to another too."
    sidebar, renamed = folder / "sidebar.yml", {}
    for notebook in sorted(folder.rglob("*.ipynb")):
        new = named_for_links(notebook)
        renamed[notebook.name] = new.name
        sidebar.write_text(sidebar.read_text().replace(str(notebook.relative_to(folder)), str(new.relative_to(folder))))
    for notebook in folder.rglob("*.ipynb"):
        notebook.write_text(re.sub(r"(?<=[(/])[\w.-]+\.ipynb(?=\))", lambda link: renamed.get(link[0], link[0]), notebook.read_text()))


def formula(found: re.Match) -> str:
    "A formula as MathML."
    return convert(html.unescape(found[2]), display="block" if found[1] == "display" else "inline")


def offline(site: Path) -> None:
    "Formulas as MathML, fonts of the computer; nothing that is loaded from elsewhere."
    for page in site.rglob("*.html"):
        page.write_text(FROM_NETWORK.sub("", FORMULA.sub(formula, page.read_text())))
    for style in site.rglob("*.css"):
        style.write_text(FONT_FROM_NETWORK.sub("", style.read_text()))


def build(check: bool) -> Path:
    "Make the site; returns its home page. With `check`, ends with what is wrong."
    folder = processed_notebooks()
    rename_all(folder)
    if check:
        subprocess.run([SMALLDOCS, "check", folder], check=True)
    subprocess.run([SMALLDOCS, "render", folder], check=True)
    site = folder / get_config().doc_path.name
    offline(site)
    found = complaints(get_config().nbs_path, site) if check else []
    if found:
        sys.exit("\n".join(found))
    return site / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail at broken links and missing entries")
    print(build(parser.parse_args().check))
