"""`download-sample` against a server on this machine: what arrives is checked, and a failure leaves nothing
behind.
"""

import functools
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tract7dt.core.errors import UserError
from tract7dt.inputs.fits import locate_image
from tract7dt.sample.download import download_sample

# The HTTP library leaves refused and broken connections to the garbage collector, which may find them during
# any test of this file.
pytestmark = [
    pytest.mark.usefixtures("own_garbage"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files; says longer than it sends for names with `cut` in them."""

    def log_message(self, *words):
        pass

    def do_GET(self):
        if "cut" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Folder whose files are served, and its address."""
    folder = tmp_path_factory.mktemp("served")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server, monkeypatch):
    """Offer a file to `download_sample`; returns its path."""
    folder, address = server
    monkeypatch.delenv("TRACT7DT_SAMPLE_SHA256", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)

    def offer(name):
        monkeypatch.setenv("TRACT7DT_SAMPLE_URL", f"{address}/{name}")
        return folder / name

    return offer


def image(compressed: bool) -> bytes:
    stream, data = io.BytesIO(), np.arange(100, dtype="f4").reshape(10, 10)
    hdu = fits.CompImageHDU(data) if compressed else fits.PrimaryHDU(data)
    hdu.writeto(stream)
    return stream.getvalue()


GOOD = {
    "uds/images/7DT_m850_coadd.fits.fz": image(True),
    "uds/images/7DT_m400_coadd.fits": image(False),
    "uds/catalog.csv": b"ID,RA,DEC\n",
}


def make_tar(path, members, links=()):
    with tarfile.open(path, "w:gz") as packed:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            packed.addfile(info)


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)


def leaves_nothing(tmp_path, words, **options):
    "The download fails with `words` in one line, and nothing is in the folder where it was to be made."
    with pytest.raises(UserError, match=words) as failure:
        download_sample(tmp_path / "new" / "tile", **options)
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make, name", [(make_tar, "uds.tar.gz"), (make_tar, "uds.tgz"), (make_zip, "uds.zip")]
)
def test_a_good_archive(served, tmp_path, make, name):
    make(served(name), GOOD)
    download_sample(tmp_path / "tile")
    listed = (tmp_path / "tile" / "image_list.txt").read_text().splitlines()
    assert listed == [
        str(tmp_path / "tile" / "images" / f"7DT_UDS_{n}") for n in ("m400.fits", "m850.fits.fz")
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tile"], "archive and scratch folder are gone"


def test_a_compressed_image_stays_what_it_is(served, tmp_path):
    make_tar(served("uds.tgz"), GOOD)
    download_sample(tmp_path / "tile")
    names = (tmp_path / "tile" / "image_list.txt").read_text().splitlines()
    found = [locate_image(Path(name))[0] for name in names]
    assert [(f.shape, f.tiled) for f in found] == [((10, 10), False), ((10, 10), True)]


def test_the_default_folder_is_named_after_the_archive(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_zip(served("deep_field.zip"), GOOD)
    download_sample()
    assert (tmp_path / "deep_field" / "image_list.txt").exists()


def test_checksum(served, tmp_path, monkeypatch):
    path = served("uds.tgz")
    make_tar(path, GOOD)
    monkeypatch.setenv("TRACT7DT_SAMPLE_SHA256", "0" * 64)
    leaves_nothing(
        tmp_path, f"SHA-256 of the archive is {hashlib.sha256(path.read_bytes()).hexdigest()}, expected 0000"
    )
    monkeypatch.setenv("TRACT7DT_SAMPLE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest().upper())
    download_sample(tmp_path / "tile")


def test_no_such_file(served, tmp_path):
    served("nothing.tgz")
    leaves_nothing(tmp_path, "nothing.tgz: the download failed \\(404 .*make-sample")


def test_no_network(tmp_path, monkeypatch):
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("TRACT7DT_SAMPLE_URL", "http://127.0.0.1:9/uds.tgz")
    leaves_nothing(tmp_path, "the download failed \\(ConnectionError.*make-sample")


def test_a_transfer_that_stops_half_way(served, tmp_path):
    served("cut.tgz")
    leaves_nothing(tmp_path, "the download failed")


@pytest.mark.parametrize("name", ["uds.tgz", "uds.zip"])
def test_a_truncated_archive(served, tmp_path, name):
    path = served(name)
    (make_zip if name.endswith("zip") else make_tar)(path, GOOD)
    path.write_bytes(path.read_bytes()[:-400])
    leaves_nothing(tmp_path, "not a whole zip or tar archive")


def test_something_else(served, tmp_path):
    served("uds.tgz").write_bytes(gzip.compress(b"<html>sign in first</html>"))
    leaves_nothing(tmp_path, "not a whole zip or tar archive")


@pytest.mark.parametrize("make, name", [(make_tar, "uds.tgz"), (make_zip, "uds.zip")])
@pytest.mark.parametrize(
    "evil", ["../evil", "/tmp/evil_7dt", "uds/../../evil", "../files-evil/x", "../files2"]
)
def test_members_outside_the_folder(served, tmp_path, make, name, evil):
    make(served(name), GOOD | {evil: b"gotcha"})
    leaves_nothing(tmp_path, "outside the folder")
    assert not Path("/tmp/evil_7dt").exists()


@pytest.mark.parametrize(
    "link", [("uds/away", "/etc"), ("uds/away", "../../.."), ("uds/images/m500.fits", "m400.fits")]
)
def test_links(served, tmp_path, link):
    make_tar(served("uds.tgz"), GOOD, [link])
    leaves_nothing(tmp_path, "links")


def test_two_images_of_one_band(served, tmp_path):
    make_tar(served("uds.tgz"), GOOD | {"uds/images/again_m400.fits.gz": b""})
    leaves_nothing(tmp_path, "several images of band m400")


def test_no_image(served, tmp_path):
    make_tar(served("uds.tgz"), {"uds/notes.txt": b"x", "uds/images/flat.fits": b""})
    leaves_nothing(tmp_path, "no FITS image with a band")


def test_images_elsewhere_are_found(served, tmp_path):
    make_zip(served("uds.zip"), {"a/x_m500_1.fits": image(False), "b/x_m425w_1.fits": image(False)})
    download_sample(tmp_path / "tile")
    assert [n.rsplit("_")[-1] for n in (tmp_path / "tile" / "image_list.txt").read_text().split()] == [
        "m425w.fits",
        "m500.fits",
    ]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_is_never_touched(served, tmp_path, force):
    make_tar(served("uds.tgz"), GOOD)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="not made by download-sample"):
        download_sample(tmp_path / "thesis", force=force)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_force_replaces_what_is_ours_and_nothing_else(served, tmp_path):
    make_tar(served("uds.tgz"), GOOD)
    tile = tmp_path / "tile"
    download_sample(tile)
    (tile / "work").mkdir()
    (tile / "work" / "output_catalog.csv").write_text("a night of computing")
    with pytest.raises(UserError, match="--force"):
        download_sample(tile)
    make_tar(
        served("uds.tgz"), {"uds/images/m500.fits": image(False), "uds/catalog.csv": b"ID,RA,DEC\nb,1,2\n"}
    )
    download_sample(tile, force=True)
    assert (tile / "work" / "output_catalog.csv").read_text() == "a night of computing"
    assert sorted(p.name for p in (tile / "images").iterdir()) == ["7DT_UDS_m500.fits"]
    assert "b,1,2" in (tile / "catalog.csv").read_text()


def test_force_does_not_overwrite_a_foreign_file(served, tmp_path):
    make_tar(served("uds.tgz"), GOOD)
    download_sample(tmp_path / "tile")
    (tmp_path / "tile" / "gaia.csv").write_text("mine")
    make_tar(served("uds.tgz"), GOOD | {"uds/gaia.csv": b"theirs"})
    with pytest.raises(UserError, match="gaia.csv would be overwritten"):
        download_sample(tmp_path / "tile", force=True)
    assert (tmp_path / "tile" / "gaia.csv").read_text() == "mine"


def test_a_failed_replacement_keeps_the_old_download(served, tmp_path):
    make_tar(served("uds.tgz"), GOOD)
    download_sample(tmp_path / "tile")
    before = sorted(p.read_bytes() for p in (tmp_path / "tile").rglob("*") if p.is_file())
    served("uds.tgz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a whole"):
        download_sample(tmp_path / "tile", force=True)
    assert before == sorted(p.read_bytes() for p in (tmp_path / "tile").rglob("*") if p.is_file())


def test_the_command(program, served, tmp_path, monkeypatch):
    make_tar(served("uds.tgz"), GOOD)
    done = program("download-sample", "--dir", tmp_path / "tile")
    assert done.returncode == 0 and "image_list.txt" in done.stdout, done.stderr
    done = program("download-sample", "--dir", tmp_path / "tile")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "--force" in done.stderr
