"""Package metadata comes from settings.ini, which nbdev reads too: one place for each."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
meta = cfg["DEFAULT"]

setup(
    name=meta["lib_name"],
    version=meta["version"],
    description=meta["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=meta["author"],
    url=meta["git_url"],
    license="BSD-3-Clause",
    keywords=meta["keywords"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Astronomy",
    ],
    packages=find_packages(include=["tract7dt", "tract7dt.*"]),
    include_package_data=True,
    python_requires=f">={meta['min_python']}",
    install_requires=meta["requirements"].split(),
    extras_require={extra: meta[f"{extra}_requirements"].split() for extra in ("dev", "dask", "parquet")},
    entry_points={
        "console_scripts": meta["console_scripts"].split(),
        "nbdev": [f"{meta['lib_name']}={meta['lib_path']}._modidx:d"],
    },
)
