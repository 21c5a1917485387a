"""The documentation site from the notebooks: python tools/docs.py [--check]

nbdev turns the notebooks into pages, smalldocs renders them; formulas become MathML and fonts are those of
the computer,
so that the pages need no network. The site is `_proc/_docs/index.html`. With `--check` broken links, unknown
syntax,
and whatever is exported but not on its page are errors.
"""

import argparse
import html
import json
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
    """Give a processed notebook the name that links to it use, 00_core.ipynb becoming core.ipynb, and make
    its links relative.
    """
    config, text = get_config(), notebook.read_text()
    name = re.search(r"output-file: (\S+?)\.html", text)
    text = re.sub(r'output-file: [^"\n]*?\\n', "", text).replace(
        f"({config.doc_host}{config.doc_baseurl}/", "(/"
    )
    new = notebook.with_name(f"{name[1] if name else notebook.stem}.ipynb")
    notebook.unlink()
    if new.exists():
        raise FileExistsError(
            f"two notebooks would become the page {new.name}: rename one of them ({notebook.name})"
        )
    new.write_text(text)
    return new


def rename_all(folder: Path) -> None:
    "Name all notebooks as links want them, in the sidebar and in links from one to another too."
    sidebar, renamed = folder / "sidebar.yml", {}
    for notebook in sorted(folder.rglob("*.ipynb")):
        new = named_for_links(notebook)
        renamed[notebook.name] = new.name
        sidebar.write_text(
            sidebar.read_text().replace(str(notebook.relative_to(folder)), str(new.relative_to(folder)))
        )
    for notebook in folder.rglob("*.ipynb"):
        notebook.write_text(
            re.sub(
                r"(?<=[(/])[\w.-]+\.ipynb(?=\))",
                lambda link: renamed.get(link[0], link[0]),
                notebook.read_text(),
            )
        )


def formula(found: re.Match) -> str:
    "A formula as MathML."
    return convert(html.unescape(found[2]), display="block" if found[1] == "display" else "inline")


def offline(site: Path) -> None:
    "Formulas as MathML, fonts of the computer; nothing that is loaded from elsewhere."
    for page in site.rglob("*.html"):
        page.write_text(FROM_NETWORK.sub("", FORMULA.sub(formula, page.read_text())))
    for style in site.rglob("*.css"):
        style.write_text(FONT_FROM_NETWORK.sub("", style.read_text()))


def keys_and_columns() -> list[dict]:
    "Search entries for each key and column, which lead to the section of the reference that has it."
    from tract7dt.config.keys import describe_keys
    from tract7dt.config.schema import Config
    from tract7dt.core.columns import all_columns

    keys = [
        (info.key, f"reference/configuration.html#{info.key.partition('.')[0]}", info.help)
        for info in describe_keys(Config)
    ]
    columns = [(c.name, "reference/columns.html", c.description) for c in all_columns(["{band}"])]
    return [
        {"objectID": f"{href}:{name}", "href": href, "title": name, "section": kind, "text": text}
        for kind, rows in (("key of the configuration", keys), ("column of the catalog", columns))
        for name, href, text in rows
    ]


USERS_FIRST = """fuse.search(q).map((h) => h.item).map((e, i) => {
          const t = e.title + " " + e.section + " " + e.text;
          const as = t.includes(q) ? 0 : t.toLowerCase().includes(q.toLowerCase()) ? 1 : 2;
          return [as, e.inside ? 1 : 0, i, e];
        }).sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]).map((a) => a[3]).slice(0, limit)"""


def search_for_users_first(site: Path) -> None:
    """Let the search find what has the words as they are typed first, and of that what is written for users.

    Tutorials, reference and explanations come before pages about the inside, which are those of numbered
    folders.
    """
    index, script = site / "search.json", site / "site_libs" / "smalldocs.js"
    entries = json.loads(index.read_text()) + keys_and_columns()
    for entry in entries:
        entry["inside"] = bool(re.match(r"\d", entry["href"]))
    index.write_text(json.dumps(entries, ensure_ascii=False))
    text, found = script.read_text(), "fuse.search(q, { limit }).map((h) => h.item)"
    if found not in text:
        sys.exit(f"{script}: the search has changed; adapt search_for_users_first")
    script.write_text(text.replace(found, USERS_FIRST))


def build(check: bool) -> Path:
    "Make the site; returns its home page. With `check`, ends with what is wrong."
    folder = processed_notebooks()
    rename_all(folder)
    if check:
        subprocess.run([SMALLDOCS, "check", folder], check=True)
    subprocess.run([SMALLDOCS, "render", folder], check=True)
    site = folder / get_config().doc_path.name
    offline(site)
    search_for_users_first(site)
    found = complaints(get_config().nbs_path, site) if check else []
    if found:
        sys.exit("\n".join(found))
    return site / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail at broken links and missing entries")
    print(build(parser.parse_args().check))
