"""The downloader against a server that does everything wrong, and archives that want out."""

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml

from data_download import archive, download, registry
from data_download.__main__ import main
from data_download.verify import verify
from medsynth_lib.data.files.nifti import write_volume
from medsynth_lib.data.files.published import FEWEST, ROLES, refusal
from medsynth_lib.data.files.selection import fewest_subjects, needs
from medsynth_lib.files import DataError

pytestmark = pytest.mark.slow  # by their number


def tarball(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


BODY = tarball({"set/a.txt": b"first", "set/b.bin": np.random.default_rng(0).bytes(300_000)})
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves BODY as the path says; ``server.log`` keeps (path, Range header)."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        visits = sum(path == self.path for path, _ in self.server.log)
        self.server.log.append((self.path, self.headers.get("Range")))
        getattr(self, self.path.strip("/").split("/")[0])(visits)

    def send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self, visits, chunk=None, etag='"v1"'):
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.headers.get("If-Range") == etag else 0
        body = BODY[start:]
        status, more = (206, {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"}) if start else (200, {})
        self.send(body[:chunk] if chunk else body, status, len(body), ETag=etag, **more)
        if chunk:
            self.close_connection = True

    def cut(self, visits):
        self.good(visits, chunk=100_000 if visits < 3 else None)

    def cut_then_changed(self, visits):
        self.good(visits, chunk=100_000 if visits == 0 else None, etag=f'"v{visits}"')

    def no_range(self, visits):
        self.send(BODY[:100_000] if visits == 0 else BODY, length=len(BODY), ETag='"v1"')

    def promises_more(self, visits):
        self.send(BODY, length=len(BODY) + 5)

    def promises_less(self, visits):
        self.send(BODY, length=len(BODY) - 512)

    def wrong(self, visits):
        self.send(BODY[:-1] + b"x")

    def unmeasured(self, visits):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY)

    def forbidden(self, visits):
        self.send(b"no", 403)

    def missing(self, visits):
        self.send(b"no", 404)

    def busy(self, visits):
        self.send(b"later", 503, Retry_After="0") if visits < 2 else self.good(visits)

    def always_busy(self, visits):
        self.send(b"later", 503)

    def moved(self, visits):
        self.send(b"", 302, Location="/good")

    def loop(self, visits):
        self.send(b"", 302, Location="/loop")

    def to_file(self, visits):
        self.send(b"", 302, Location="file:///etc/hostname")

    def slow(self, visits):
        """A first transfer that takes seconds, then a fast one."""
        asked = self.headers.get("Range")
        if asked:
            return self.good(visits)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        for start in range(0, len(BODY), 2**14):
            self.wfile.write(BODY[start : start + 2**14])
            self.wfile.flush()
            time.sleep(0.3)


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.log = []
    httpd.handle_error = lambda *_: None  # clients that hang up are what is tested
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


@pytest.fixture
def site(server, tmp_path, monkeypatch):
    """``get(path, **file)`` downloads a data set of one file from the server into tmp_path/data."""
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.log.clear()
    url = f"http://127.0.0.1:{server.server_port}"

    def get(path, accept=True, unpacked_gb=0.001, folder=tmp_path / "data", **file):
        file = dict(url=url + path, name="set.tar") | file
        entry = dict(licence="CC0", licence_link="link", citation="nobody", how="direct", version="1", size_gb=0.0004)
        entry |= dict(unpacked_gb=unpacked_gb, files=[file])
        monkeypatch.setattr(registry, "entry", lambda name: entry)
        return download.get("set", folder, accept)

    return SimpleNamespace(get=get, url=url, folder=tmp_path / "data", log=server.log)


def require_complete(folder):
    assert (folder / "set" / "a.txt").read_bytes() == b"first" and (folder / "set" / "b.bin").stat().st_size == 300_000
    record = json.loads((folder / "download.json").read_text())["set.tar"]
    assert record["bytes"] == len(BODY) and record["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == ["download.json", "set"]


def require_nothing_unpacked(folder):
    assert not (folder / "set").exists() and not (folder / "download.json").exists()
    assert not any(p.is_dir() for p in (folder / ".incoming").iterdir())


def test_a_good_server_once(site):
    require_complete(site.get("/good", md5=MD5))
    site.get("/good", md5=MD5)
    assert len(site.log) == 1  # what is complete is not fetched again


def test_cut_connections_go_on_where_they_stopped(site):
    require_complete(site.get("/cut", md5=MD5))
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for _, r in site.log[1:]]
    assert len(starts) == 3 and all(
        have + 100_000 - download.BLOCK <= then <= have + 100_000
        for have, then in zip([0, *starts[:2]], starts, strict=True)
    )


def test_a_file_that_changed_meanwhile_is_fetched_anew(site):
    require_complete(site.get("/cut_then_changed", md5=MD5))
    assert site.log[1][1].startswith("bytes=")


def test_a_server_without_ranges_sends_all_again(site):
    require_complete(site.get("/no_range", md5=MD5))


def test_more_promised_than_sent(site):
    with pytest.raises(DataError, match=r"connection broke|promised"):
        site.get("/promises_more", md5=MD5)
    require_nothing_unpacked(site.folder)


def test_less_promised_than_sent_is_found_by_hash_or_by_length(site):
    with pytest.raises(DataError, match="wrong hash"):
        site.get("/promises_less", md5=MD5)
    with pytest.raises(DataError, match=f"the registry says {len(BODY)}"):
        site.get("/promises_less", bytes=len(BODY))
    require_nothing_unpacked(site.folder)


def test_wrong_hash_names_both_and_keeps_nothing(site):
    with pytest.raises(DataError, match=MD5):
        site.get("/wrong", md5=MD5)
    require_nothing_unpacked(site.folder)
    assert not list((site.folder / ".incoming").iterdir())
    require_complete(site.get("/good", md5=MD5))


def test_unknown_length_is_refused(site):
    with pytest.raises(DataError, match="does not state the file's length"):
        site.get("/unmeasured", md5=MD5)


@pytest.mark.parametrize("path, status", [("/forbidden", 403), ("/missing", 404)])
def test_refusals_are_not_repeated(site, path, status):
    with pytest.raises(DataError, match=f"HTTP {status}"):
        site.get(path)
    assert len(site.log) == 1


def test_busy_servers_are_asked_again(site):
    require_complete(site.get("/busy", md5=MD5))
    with pytest.raises(DataError, match="already|HTTP 503"):
        shutil.rmtree(site.folder)
        site.get("/always_busy")
    assert sum(path == "/always_busy" for path, _ in site.log) == download.ATTEMPTS


def test_a_host_that_cannot_be_reached_and_the_way_by_hand(site):
    url = "http://127.0.0.1:9/set.tar"  # where nobody listens
    with pytest.raises(DataError) as caught:
        site.get("", url=url, md5=MD5)
    incoming = site.folder / ".incoming"
    for words in (
        f"{url}: could not reach 127.0.0.1 (",
        "6 times",
        "proxy",
        f"download {url} with",
        f"{incoming} as set.tar,",
    ):
        assert words in str(caught.value)
    assert "goes on from here" not in str(caught.value)
    (incoming / "set.tar").write_bytes(BODY[:1000])
    with pytest.raises(DataError, match=f"set.tar: has md5 .*, the registry says {MD5}; delete it"):
        site.get("", url=url, md5=MD5)
    with pytest.raises(DataError, match=f"set.tar: has bytes 1000, the registry says {len(BODY)}; delete it"):
        site.get("", url=url, bytes=len(BODY))
    (incoming / "set.tar").write_bytes(BODY)
    require_complete(site.get("", url=url, md5=MD5, bytes=len(BODY)))
    assert not site.log  # all without the server


def test_redirects(site):
    require_complete(site.get("/moved", md5=MD5))
    shutil.rmtree(site.folder)
    with pytest.raises(DataError, match="more than 5 redirects"):
        site.get("/loop")
    with pytest.raises(DataError, match="less safe"):
        site.get("/to_file")


def test_https_is_not_left_for_http():
    class Session:
        def get(self, url, **options):
            return SimpleNamespace(
                status_code=302, is_redirect=True, headers={"Location": "http://elsewhere/x"}, close=lambda: None
            )

    with pytest.raises(DataError, match="less safe"):
        download.open_url(Session(), "https://somewhere/x", {})


def test_licence_first(site):
    with pytest.raises(DataError, match="CC0.*--accept-license"):
        site.get("/good", accept=False)
    assert not site.log and not site.folder.exists()


def test_too_little_space_is_said_before_the_first_byte(site, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="GB are free, but 0.0 GB are needed"):
        site.get("/good")
    assert not site.log


@pytest.mark.parametrize(
    "there, needed",  # what an earlier run left, and the GB still to come: 3 archives of 2 GB, 3 GB of contents each
    [
        ({}, 3 * 3 + 2),
        ({".incoming/a.tar.part": 10**9}, 3 * 3 + 2 - 1),
        ({".incoming/a.tar": 2 * 10**9}, 3 * 3),
        ({"download.json": '{"a.tar": {}}'}, 2 * 3 + 2),
    ],
)
def test_needed_space_counts_what_is_there_and_one_archive_at_a_time(tmp_path, monkeypatch, there, needed):
    for name, content in there.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content) if isinstance(content, str) else os.truncate(path.open("w").name, content)
    entry = dict(how="direct", size_gb=6, unpacked_gb=9, files=[dict(name=f"{c}.tar") for c in "abc"])
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed * 10**9))
    download.require_space(entry, tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed * 10**9 - 1))
    with pytest.raises(DataError, match=f"but {needed}.0 GB are needed"):
        download.require_space(entry, tmp_path)


def test_a_client_is_not_started_without_space(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "by_client", lambda folder: pytest.fail("started"))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(DataError, match="1.0 GB are free, but 125.0 GB are needed"):
        download.get("lidc", tmp_path, accept_license=True)


@pytest.mark.slow
def test_disk_full_in_the_middle_then_the_rest(site):
    error = child(site, "/good", limit=150_000).communicate(timeout=300)[1]
    assert "DataError" in error and "cannot be written (File too large)" in error
    require_nothing_unpacked(site.folder)
    have = (site.folder / ".incoming" / "set.tar.part").stat().st_size
    assert 100_000 < have <= 150_000
    require_complete(site.get("/good", md5=MD5))
    assert site.log[1:] == [("/good", f"bytes={have}-")]


@pytest.mark.parametrize("at", ["data", ""])
def test_output_that_cannot_be_written(site, tmp_path, monkeypatch, at):
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written.*choose another folder"):
        site.get("/good", folder=tmp_path / "file" / at)
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "file" / at))
    with pytest.raises(DataError, match="set MEDSYNTH_CACHE"):
        site.get("/good", folder="")


def test_an_archive_larger_than_stated_is_refused(site):
    with pytest.raises(DataError, match="unpacks to more than"):
        site.get("/good", unpacked_gb=0.0001, md5=MD5)
    require_nothing_unpacked(site.folder)


SCRIPT = """
import pathlib, resource, sys, time
import pooch.core
from data_download import download, registry
url, folder, md5, limit, marker = sys.argv[1:]
def stuck(*arguments, **options):
    pathlib.Path(marker).touch()
    time.sleep(600)
if marker:
    pooch.core.hash_matches = stuck
if int(limit):  # no file may grow beyond it, as if the disk ended there
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
entry = dict(licence="x", licence_link="x", citation="x", how="direct", version="1", size_gb=0, unpacked_gb=0.001,
             files=[dict(url=url, name="set.tar", md5=md5)])
registry.entry = lambda name: entry
download.get("set", folder, True)
"""


def child(site, path, limit=0, marker=""):
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "MEDSYNTH_HEADLESS": "1"}
    command = [sys.executable, "-c", SCRIPT, site.url + path, str(site.folder), MD5, str(limit), str(marker)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_kill_9_while_the_hash_is_taken_loses_nothing(site, tmp_path):
    process = child(site, "/good", marker=tmp_path / "hashing")
    try:
        wait_for((tmp_path / "hashing").exists)
    finally:
        process.kill()  # SIGKILL
        process.wait()
    kept = {p.name: p.stat().st_size for p in (site.folder / ".incoming").iterdir()}
    assert kept["set.tar.part"] == len(BODY) and "set.tar" not in kept  # unproven
    require_complete(site.get("/good", md5=MD5))
    assert len(site.log) == 1  # nothing was sent twice


def test_a_whole_part_with_a_wrong_hash_is_not_kept(site):
    incoming = site.folder / ".incoming"
    incoming.mkdir(parents=True)
    (incoming / "set.tar.part").write_bytes(BODY[:-1] + b"x")
    (incoming / "set.tar.part.json").write_text(json.dumps(dict(validator='"v1"', total=len(BODY))))
    with pytest.raises(DataError, match=f"wrong hash.*{MD5}"):
        site.get("/good", md5=MD5)
    require_complete(site.get("/good", md5=MD5))


@pytest.mark.slow
def test_kill_9_and_go_on_while_a_second_call_is_refused(site):
    process = child(site, "/slow")
    part = site.folder / ".incoming" / "set.tar.part"
    try:
        wait_for(lambda: part.exists() and part.stat().st_size > 2**14)
        with pytest.raises(DataError, match="another download is writing here"):
            site.get("/slow", md5=MD5)
    finally:
        process.kill()  # SIGKILL
        process.wait()
    have = part.stat().st_size
    require_complete(site.get("/slow", md5=MD5))
    assert site.log[-1] == ("/slow", f"bytes={have}-")


# archives -----------------------------------------------------------------------------------------------------------------


def hostile_tar(path, kind):
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("innocent.txt"))
        names = dict(absolute="/evil", parent="../evil", deep="a/../../evil", backslash="..\\evil", drive="C:evil")
        info = tarfile.TarInfo(names.get(kind, "evil"))
        if kind == "symlink":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif kind == "hardlink":
            info.type, info.linkname = tarfile.LNKTYPE, "innocent.txt"
        elif kind == "device":
            info.type = tarfile.CHRTYPE
        elif kind == "case":
            info.name = "INNOCENT.txt"
        elif kind == "long":
            info.name = "x" * 300
        elif kind == "bomb":
            info.size = 10**7
            tar.addfile(info, io.BytesIO(bytes(10**7)))
            return
        tar.addfile(info)


REASONS = dict(
    absolute="has an absolute path", drive="has an absolute path", parent="points outside", deep="points outside",
    backslash="control characters or backslashes", symlink="is a link", hardlink="is a link", device="or a device",
    case="differ in case alone", long="more than 255 bytes", bomb="unpacks to more than", lying="damaged .Bad CRC",
)  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in REASONS if kind != "lying"])
def test_hostile_tar(tmp_path, kind):
    hostile_tar(tmp_path / "bad.tar", kind)
    with pytest.raises(DataError, match=f"bad.tar: .*{REASONS[kind]}"):
        archive.unpack(tmp_path / "bad.tar", tmp_path / "out", limit_bytes=10**6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar"]


@pytest.mark.parametrize("kind", ["absolute", "parent", "symlink", "case", "bomb", "lying"])
def test_hostile_zip(tmp_path, kind):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("innocent.txt", b"")
        info = zipfile.ZipInfo(dict(absolute="/evil", parent="../evil", case="Innocent.TXT").get(kind, "evil"))
        if kind == "symlink":
            info.external_attr = 0o120777 << 16
        bundle.writestr(info, bytes(10**7) if kind in ("bomb", "lying") else b"/etc/passwd", zipfile.ZIP_DEFLATED)
    if kind == "lying":  # about its size
        raw = path.read_bytes()
        path.write_bytes(raw.replace((10**7).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(DataError, match=f"bad.zip: .*{REASONS[kind]}"):
        archive.unpack(path, tmp_path / "out", limit_bytes=10**6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip"]


def test_a_zip_member_with_a_second_name_is_refused(tmp_path, monkeypatch):
    """Newer Pythons take a member's name from the extra field 0x7075 (Unicode Path); here, all do."""
    info = zipfile.ZipInfo("evil")
    info.extra = struct.pack("<HHBL", 0x7075, 5 + len(b"../evil"), 1, zlib.crc32(b"evil")) + b"../evil"
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bundle:
        bundle.writestr(info, "x")
    plain = zipfile.ZipFile.infolist

    def infolist(self):
        for member in plain(self):
            member.filename = "../evil"
        return plain(self)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", infolist)
    with pytest.raises(DataError, match="bad.zip: member 'evil' has a second name, '../evil'"):
        archive.unpack(tmp_path / "bad.zip", tmp_path / "out", limit_bytes=10**6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip"]


@pytest.mark.parametrize("name", ["plain.tar", "packed.tar.gz", "set.zip"])
def test_good_archives(tmp_path, name):
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as bundle:
            bundle.writestr("a/b.txt", "x")
    else:
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tar:
            info = tarfile.TarInfo("a/b.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    archive.unpack(path, tmp_path / "out", limit_bytes=10)
    assert (tmp_path / "out" / "a" / "b.txt").read_text() == "x"


@pytest.mark.parametrize(
    "name", ["cut.tar.gz", "cut.tar.bz2", "cut.tar.xz", "wrong.tar.gz", "wrong.tar.bz2", "wrong.tar.xz"]
)
def test_damaged_packed_archives(tmp_path, name):
    path = tmp_path / name
    with tarfile.open(path, f"w:{name.rpartition('.')[2]}") as tar:
        info = tarfile.TarInfo("a.bin")
        info.size = 50_000
        tar.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(50_000)))
    data = path.read_bytes()
    path.write_bytes(data[:30_000] + (b"" if name.startswith("cut") else bytes(1000) + data[31_000:]))
    with pytest.raises(DataError, match=f"{name}: the archive is damaged.*download it again"):
        archive.unpack(path, tmp_path / "out", limit_bytes=10**9)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_damaged_zip_packed_by_lzma(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_LZMA) as bundle:
        bundle.writestr("a.bin", np.random.default_rng(0).bytes(50_000))
    data = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(data[:100] + b"\xff" * 1000 + data[1100:])
    with pytest.raises(DataError, match="bad.zip: the archive is damaged"):
        archive.unpack(tmp_path / "bad.zip", tmp_path / "out", limit_bytes=10**9)


def test_truncated_archives(tmp_path):
    for name, content in {"cut.tar": BODY[:200_000], "text.tar": b"no archive at all", "empty.tar": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            archive.unpack(tmp_path / name, tmp_path / "out", limit_bytes=10**9)
    assert not (tmp_path / "out").exists()


# registry, verification, command line -------------------------------------------------------------------------------------


def test_registry_holds_what_the_course_promises():
    entries = registry.load()
    assert list(entries) == "brats2019 brats2020 msd_task01 ixi upenn_gbm ucsf_pdgm gsp copdgene lidc".split()
    assert {n for n, e in entries.items() if e["how"] == "direct"} == {"msd_task01", "ixi"}
    assert all(e["licence_link"].startswith("https://") for e in entries.values())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.pop("licence"), "lacks licence"),
        (lambda e: e.update(extra=1), "unknown keys extra"),
        (lambda e: e.update(how="magic"), "'magic' is not one of"),
        (lambda e: e.pop("files"), "needs files and unpacked_gb"),
        (lambda e: e["files"][0].pop("hash_source"), "who publishes it"),
        (lambda e: e["files"][0].update(sha1="x"), "keys other than"),
        (lambda e: e.update(roles={}), "unknown keys roles"),  # they stand in the library
    ],
)
def test_a_broken_registry_names_entry_and_key(tmp_path, change, message):
    entries = yaml.safe_load(registry.PATH.read_text())
    change(entries["ixi"])
    path = tmp_path / f"{abs(hash(message))}.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(DataError, match=f"ixi: .*{message}"):
        registry.load(path)


def test_registry_and_roles_know_the_same_sets(tmp_path):
    assert list(registry.load()) == list(ROLES) and all(set(roles) == {"pairs", "volumes"} for roles in ROLES.values())
    assert (
        refusal("gsp", "pairs").startswith("T1 alone") and refusal("gsp", "volumes") is refusal("own", "pairs") is None
    )
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump({"other": registry.entry("ixi")}))
    with pytest.raises(DataError, match="other: is not in the table ROLES"):
        registry.load(path)


def test_matrix_states_inputs_targets_and_reasons():
    matrix = registry.matrix()
    assert matrix.loc["ixi", "02 and 03"].startswith("T2 + PD → T1")
    assert matrix.loc["brats2019", "02 and 03"].startswith("FLAIR + T2 → T1; shift: two centres")
    assert "simulated" in matrix.loc["msd_task01", "02 and 03"]
    assert matrix.loc["copdgene", "02 and 03"].startswith("– CT alone") and matrix.loc["copdgene", "01"].startswith(
        "CT thorax"
    )
    assert matrix["04"].str.startswith("– simulated only").all() and matrix["08"].str.startswith("– no data").all()
    assert matrix.loc["gsp", "05 to 07"].startswith("T1 brain")
    assert matrix.map(len).gt(5).all().all()


def test_commands(capsys, tmp_path):
    assert main(["list"]) == 0 and "LIDC-IDRI" in capsys.readouterr().out
    assert main(["matrix"]) == 0 and "02 and 03" in capsys.readouterr().out
    for name in ("ixi", "IXI"):
        assert main(["describe", name]) == 0 and "CC BY-SA 3.0" in capsys.readouterr().out
    assert main(["get", "gsp"]) == 2 and "1. Register" in capsys.readouterr().out
    assert (
        main(["get", "ixi", "--folder", str(tmp_path / "ixi")]) == 1 and "--accept-license" in capsys.readouterr().err
    )
    assert not (tmp_path / "ixi").exists()
    assert main(["describe", "nothing"]) == 1 and "no such data set; there are brats2019" in capsys.readouterr().err
    assert main(["verify", "ixi", str(tmp_path / "nowhere")]) == 1 and "no such folder" in capsys.readouterr().err
    assert main(["lookalike", "nothing", str(tmp_path / "x")]) == 1


def test_verify_counts_sites_and_reads_headers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for person, site, modalities in (("001", "HH", ("T1", "T2", "PD")), ("002", "Guys", ("T1", "T2"))):
        for m in modalities:
            path = tmp_path / f"IXI-{m}" / f"IXI{person}-{site}-0700-{m}.nii.gz"
            write_volume(path, rng.uniform(1, 9, (4, 5, 6)), np.diag([1.0, 1, 2, 1]))
    report = verify("ixi", tmp_path)
    assert not report.usable and report.sites == {"Guys": 1, "HH": 1} and report.missing == ["IXI002 (Guys) lacks pd"]
    assert dict(report.headers) == {"4 x 5 x 6, 1 x 1 x 2 mm, RAS, int16": 5}
    assert report.lessons["02"] == (False, f"{tmp_path}: ixi: only site HH; a domain shift needs two sites")
    assert "T1 has 1 subject(s), but lesson 05 needs at least 6 (3 train, 1 tune, 2 test)" in report.lessons["05"][1]
    broken = tmp_path / "IXI-T1" / "IXI001-HH-0700-T1.nii.gz"
    broken.write_bytes(b"no image")
    assert main(["verify", "ixi", str(tmp_path)]) == 1
    assert f"bad: {broken}: " in capsys.readouterr().out


@pytest.fixture
def own(tmp_path):
    """``own(sites, header, **changes)``: a folder with a manifest, one subject a letter of sites; what `verify` says of it.

    A change ``p1_t1=function(array, affine)`` makes that subject's T1 another one.
    """
    ball = np.linalg.norm(np.indices((20, 20, 16)) - np.reshape([9.5, 9.5, 7.5], (3, 1, 1, 1)), axis=0) < 7
    rng = np.random.default_rng(0)

    def make(sites, modalities=("flair", "t2", "t1"), splits=None, **changes):
        lines = [",".join(["subject", "site", "split", *modalities])]
        for i, site in enumerate(sites):
            for m in modalities:
                change = changes.get(f"p{i}_{m}", lambda array, affine: (array, affine))
                image = np.where(ball, rng.uniform(50, 90, ball.shape), 0).astype(np.float32)
                array, affine = change(image, np.diag([8.0, 8, 8, 1]))
                nib.save(nib.Nifti1Image(array, affine), tmp_path / f"p{i}_{m}.nii.gz")
            lines.append(
                ",".join([f"p{i}", site, splits[i] if splits else "", *(f"p{i}_{m}.nii.gz" for m in modalities)])
            )
        (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
        return verify("own", tmp_path, jobs=1)

    return make


def verdicts(report):
    return [line for line in report.lines() if line.startswith("usable as")]


@pytest.mark.slow
def test_verify_your_own_pairs(own, tmp_path, capsys):
    assert verdicts(own("AAABBB")) == ["usable as pairs: yes", "usable as volumes: yes"]
    assert main(["verify", "OWN", str(tmp_path)]) == 0 and "18 x 20 x 20 x 16, 8 x 8 x 8 mm" in capsys.readouterr().out
    (tmp_path / "p0_t1.nii.gz").write_bytes((tmp_path / "p0_t1.nii.gz").read_bytes()[:2000])
    assert main(["verify", "own", str(tmp_path)]) == 1
    pairs, volumes = (line for line in capsys.readouterr().out.splitlines() if line.startswith("usable as"))
    assert pairs.startswith("usable as pairs: no, because") and volumes.startswith("usable as volumes: no, because")
    assert "p0_t1.nii.gz: the file is truncated" in pairs and "p0_t1.nii.gz: the file is truncated" in volumes


def shifted(array, affine):
    affine[0, 3] += 10
    return array, affine


@pytest.mark.parametrize(
    "sites, options, pairs, volumes",
    [
        ("AAABBB", dict(p1_t1=lambda v, a: (v * np.nan, a)), "p1_t1.nii.gz: 6400 of 6400 voxels are NaN", "p1_t1.nii.gz: "),
        ("AAABBB", dict(p4_t2=shifted), "p4_flair.nii.gz and .*p4_t2.nii.gz: affines .* by up to 10 mm; resample", None),
        ("AAABBB", dict(p2_t2=lambda v, a: (v[:-1], a)), "p2_t2.nii.gz: shapes .* differ; resample", None),
        ("AAABBB", dict(p3_flair=lambda v, a: (v + 20, a)), "p3_flair.nii.gz: 100% of the voxels are not 0.* is 20", None),
        ("AAABBB", dict(p3_t1=lambda v, a: (v + 20, a)), "p3_t1.nii.gz: 100% of the voxels", "p3_t1.nii.gz: 100%"),
        ("AAAAAA", {}, "only site A; a domain shift needs two sites", None),
        ("AABB", {}, "site A has 2 subject.*at least 3", None),
        ("AB", {}, "site A has 1 subject.*at least 3", "T1 has 2 subject.*lesson 01 needs at least 3"),
        ("AAABBB", dict(modalities=["t1"]), "no scan has FLAIR and T2", None),
        ("AAABBB", dict(modalities=["flair"]), "no scan has FLAIR and T2", "no scan has CT or T1"),
        ("AAABBB", dict(modalities=["ct", "t1"]), "no scan has FLAIR and T2", None),  # the T1 will do
        ("AAA", dict(modalities=["ct"]), "no scan has FLAIR and T2", "p0_ct.nii.gz: values 0 to .* not a chest CT"),
        ("AAABBB", dict(splits=["train", "tune", "test"] * 2), None, None),
        ("AAABBB", dict(splits=["train", "train", "test"] * 2), "site A has 0 subject.s. in split tune, but lesson 02", None),
    ],
)  # fmt: skip
def test_verify_says_what_the_lessons_would_refuse(own, tmp_path, sites, options, pairs, volumes):
    report = own(sites, **options)
    for line, role, reason in zip(verdicts(report), ("pairs", "volumes"), (pairs, volumes), strict=True):
        expected = f"usable as {role}: no, because .*{reason}" if reason else f"usable as {role}: yes$"
        assert re.match(expected, line)
        assert str(tmp_path) in line or not reason or reason.startswith("no scan")
    assert report.usable == (None in (pairs, volumes))


def test_verify_names_every_scan_that_is_refused_and_what_is_left_out(own, tmp_path):
    report = own("AAABBB", p1_t2=shifted, p4_t2=shifted)
    lines = list(report.lines())
    pairs, another, volumes = lines[(at := lines.index(verdicts(report)[0])) : at + 3]
    assert "p1_t2" in pairs and another.startswith("  and ") and "p4_t2" in another and volumes.endswith("yes")
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(text + "p6,A,,p0_flair.nii.gz,p0_t2.nii.gz,\n")
    assert verify("own", tmp_path).missing == ["p6 (A) lacks t1"]


def test_own_is_not_for_a_set_that_the_lessons_make_ready(tmp_path):
    for m in ("T1", "T2", "PD"):
        write_volume(tmp_path / f"IXI001-HH-0700-{m}.nii.gz", np.ones((4, 4, 4)), np.eye(4))
    with pytest.raises(DataError, match="holds ixi; verify it by that name"):
        verify("own", tmp_path)


def test_verify_says_how_many_subjects_of_the_published_number_are_there(tmp_path):
    for m in ("T1", "T2", "PD"):
        write_volume(tmp_path / f"IXI001-HH-0700-{m}.nii.gz", np.ones((4, 4, 4)), np.eye(4))
    (tmp_path / "IXI002-HH-0800-T1.nii.gz").write_bytes((tmp_path / "IXI001-HH-0700-T1.nii.gz").read_bytes())
    assert "complete: 1 of the 578 subjects that its publisher counts" in list(verify("ixi", tmp_path).lines())


def test_verify_finds_two_grids_in_a_published_scan(tmp_path):
    moved, rng = np.eye(4), np.random.default_rng(0)
    moved[0, 3] = 0.5
    for m, shape, affine in (("FLAIR", (4, 4, 4), np.eye(4)), ("T1", (4, 4, 5), np.eye(4)), ("T2", (4, 4, 4), moved)):
        write_volume(
            tmp_path / f"UCSF-PDGM-0004_{m}.nii.gz", np.pad(rng.uniform(1, 9, [n - 2 for n in shape]), 1), affine
        )
    report = verify("ucsf_pdgm", tmp_path)
    assert not report.usable and len(report.bad) == 2
    shapes, affines = report.bad
    assert "_FLAIR.nii.gz and" in shapes and "_T1.nii.gz: shapes (4, 4, 4) and (4, 4, 5) differ; resample" in shapes
    assert "_T2.nii.gz" in affines and "differ by up to 0.5 mm; resample" in affines


@pytest.mark.slow
def test_verify_finds_a_leak(own, tmp_path):
    own("AAABBB", splits=["train", "tune", "test"] * 2)
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(text.replace("p0,A,train", "p5,A,train"))  # p5 is a test subject at B
    for line in verdicts(verify("own", tmp_path)):
        assert "no, because" in line and "1 subject(s) in more than one split (p5)" in line


def test_verify_reads_every_voxel(tmp_path):
    """A 4D file that is cut in half has a sound header: only reading it to its end can tell."""
    (tmp_path / "imagesTr").mkdir()
    path = tmp_path / "imagesTr" / "BRATS_001.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((9, 9, 9, 4), np.float32), np.eye(4)), path)
    report = verify("msd_task01", tmp_path)
    assert not report.bad and dict(report.headers) == {"9 x 9 x 9, 1 x 1 x 1 mm, RAS, float32": 4}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report = verify("msd_task01", tmp_path)
    assert not report.usable and "BRATS_001.nii.gz#0: the file is truncated" in report.bad[0]


def test_verify_says_beforehand_how_long_it_takes_and_counts_scans(own, capsys, monkeypatch):
    monkeypatch.delenv("MEDSYNTH_HEADLESS", raising=False)
    own("AAABBB")
    seen = capsys.readouterr()
    assert re.search(r"reading 6 scans, .* GB, in \d+ process.*: about \d+.\d min", seen.out) and "5/5" in seen.err


@pytest.mark.parametrize(
    "sites, runs, lesson, reason",
    [
        ("AAABB", "01", "02", "site B has 2 subject(s), but lesson 02 needs at least 3 (1 train, 1 tune, 1 test)"),
        ("AAABBB", "01 02 05 06", "03", "site A has 3 subject(s), but lesson 03 needs at least 4 (2 train, 1 tune)"),
        ("AAAABBB", "01 02 03 05 06 07", "", ""),
        ("AAABBBB", "01 02 05 06 07", "03", "site A has 3 subject(s)"),
        (
            "AAABBB",
            "01 02 05 06",
            "07",
            "T1 has 6 subject(s), but lesson 07 needs at least 7 (4 train, 1 tune, 2 test)",
        ),
    ],
)
def test_verify_promises_each_lesson_what_it_needs(own, sites, runs, lesson, reason):
    report = own(sites)
    assert " ".join(name for name, (usable, _) in report.lessons.items() if usable) == runs
    if lesson:
        assert reason in report.lessons[lesson][1]


def test_the_readme_has_the_minima_of_the_lessons():
    text = registry.PATH.with_name("README.md").read_text()
    for lesson in FEWEST:
        (row,) = re.findall(rf"\| {lesson} \| (.*) \| (.*) \|", text)
        assert f"{fewest_subjects(lesson)} " in row[0] and row[1] == needs(lesson)


def test_verify_looks_for_images_that_are_not_what_they_are_called(own):
    """Numbers that ran over the end of their type: the lesson would refuse them, so `verify` does."""
    report = own("AAABBB", p1_t1=lambda v, a: (np.where(v > 75, v - 128, v), a))
    assert not report.usable or "p1_t1.nii.gz" in " ".join(report.roles["pairs"])
    assert any("p1_t1.nii.gz" in text for text in report.bad)
