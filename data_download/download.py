"""Download a data set of the registry: licence first, free space next, and a broken transfer goes on where it stopped.

pooch keeps the protocol (a temporary name, the hash, the rename); `Resuming` is its transfer.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pooch
import requests
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from data_download import registry
from data_download.archive import merge, unpack
from medsynth_lib.display.headless import headless
from medsynth_lib.files import DataError, atomic, cache_folder

ATTEMPTS = 6  # without a new byte in between
WAIT_S = 1.0  # before the second attempt; doubles each time, to at most WAIT_LIMIT_S
WAIT_LIMIT_S = 60.0
TIMEOUT_S = (15, 60)  # to connect, between bytes
REDIRECTS = 5
INCOMING = ".incoming"  # sub-folder for what is not complete
BLOCK = 2**14  # bytes; of a transfer that breaks, at most this much is lost


def get(name, folder=None, accept_license=False):
    """Download and unpack a data set into ``folder`` (default: the cache) and return the folder.

    What is complete is not fetched again, a broken file goes on where it stopped, and two calls at once wait for each other's
    end by refusing. Raises DataError for a licence not accepted, a set that cannot be downloaded directly, too little space,
    and everything a server can do wrong.
    """
    entry = registry.entry(name)
    folder = Path(folder or cache_folder("downloads") / name)
    require_licence(name, entry, accept_license)
    if entry["how"] == "registration":
        raise DataError(f"{name}: needs your own registration:\n" + steps(entry))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            if entry["how"] == "client":
                by_client(folder)
            else:
                require_space(entry, folder)
                for file in entry["files"]:
                    fetch(file, folder, entry)
                shutil.rmtree(folder / INCOMING, ignore_errors=True)
    except Timeout as error:
        raise DataError(
            f"{folder}: another download is writing here; wait for its end, then run this again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or choose another folder."
        ) from error
    return folder


def steps(entry):
    return "\n".join(f"  {i}. {step}" for i, step in enumerate(entry["steps"], 1))


def require_licence(name, entry, accepted):
    if not accepted:
        raise DataError(
            f"{name}: licence not accepted. Read '{entry['licence']}' at {entry['licence_link']}, cite {entry['citation']}, "
            "and run again with --accept-license."
        )


def require_space(entry, folder):
    """Refuse before the first byte if archive and contents cannot both fit."""
    done = completed(folder)
    left = [file for file in entry["files"] if file["name"] not in done]
    there = sum(
        (folder / f"{file['name']}.part").stat().st_size for file in left if (folder / f"{file['name']}.part").exists()
    )
    share = len(left) / len(entry["files"])
    needed = share * (entry["size_gb"] + entry["unpacked_gb"]) * 1e9 - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {free / 1e9:.1f} GB are free, but {needed / 1e9:.1f} GB are needed for archive and contents; "
            "free space or choose another folder (--folder)."
        )


def by_client(folder):
    """LIDC-IDRI by the client of the Imaging Data Commons. Not yet run: it needs its network."""
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise DataError(
            "lidc: needs the client of the Imaging Data Commons: .venv/bin/pip install -e '.[lidc]'"
        ) from error
    IDCClient().download_from_selection(collection_id="lidc_idri", downloadDir=str(folder))


def completed(folder):
    """Files that were downloaded and unpacked: name -> what download.json says of them."""
    try:
        record = json.loads((folder / "download.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def fetch(file, folder, entry):
    """Download one file, unpack it, and note it in download.json; the archive is deleted then."""
    if file["name"] in completed(folder):
        return
    path = folder / INCOMING / file["name"]
    clear(path)
    known = f"md5:{file['md5']}" if "md5" in file else None
    if not path.exists():
        try:
            pooch.retrieve(file["url"], known, path.name, path.parent, downloader=Resuming(path, file.get("bytes")))
        except DataError:
            raise
        except ValueError as error:  # pooch's report of a wrong hash
            raise DataError(f"{file['url']}: wrong hash, the download was deleted ({error}); try again later.") from error
    note = dict(url=file["url"], version=entry["version"], bytes=path.stat().st_size, sha256=sha256(path))
    inside = unpack(path, path.with_name("unpacked"), limit_bytes=entry["unpacked_gb"] * 1.5e9)
    merge(inside, folder / file.get("into", "."))
    record = completed(folder) | {file["name"]: note | dict(date=time.strftime("%Y-%m-%d"))}
    with atomic(folder / "download.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.unlink()


def clear(path):
    """Remove what a killed run left beside a download, all but the parts of files and the whole ones."""
    for entry in path.parent.glob("*") if path.parent.exists() else []:
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != path.name and not entry.name.endswith((".part", ".part.json")):
            entry.unlink()
    for entry in path.parent.glob(".*"):  # unfinished unpackings
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def sha256(path):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Resuming:
    """A downloader for pooch that keeps what came in NAME.part and asks for the rest, also after a crash."""

    def __init__(self, path, expected=None):
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")  # which version of the file the part belongs to
        self.expected = expected

    def __call__(self, url, output_file, _pooch):
        attempt, wait = 0, WAIT_S
        with requests.Session() as session:
            while True:
                before = self.size()
                try:
                    total = self.transfer(session, url)
                    if self.size() == total:
                        break
                    reason = f"the server promised {total} bytes and sent {self.size()}"
                except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                    reason = f"{type(error).__name__}: the connection broke after {self.size()} bytes"
                except Busy as error:
                    reason, wait = str(error), max(wait, error.seconds)
                attempt = 1 if self.size() > before else attempt + 1
                if attempt >= ATTEMPTS:
                    raise DataError(
                        f"{url}: {reason}, {attempt} times; run the same command again later, it goes on from here."
                    )
                time.sleep(min(wait, WAIT_LIMIT_S))
                wait = min(2 * wait, WAIT_LIMIT_S) if attempt > 1 else WAIT_S
        if self.expected and self.size() != self.expected:
            size = self.size()
            self.forget()
            raise DataError(
                f"{url}: has {size} bytes, the registry says {self.expected}; the file changed, so nothing was kept."
            )
        os.replace(self.part, output_file)
        self.state.unlink(missing_ok=True)

    def size(self):
        return self.part.stat().st_size if self.part.exists() else 0

    def forget(self):
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def transfer(self, session, url):
        """One request for what is missing; appends it, and returns the whole file's length as the server states it."""
        have, validator = self.size(), self.validator()
        headers = {"Accept-Encoding": "identity"}
        if have and validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        elif have:
            self.forget()  # no way to know that the rest belongs to the same file
            have = 0
        with open_url(session, url, headers) as response:
            if response.status_code == 416 or (response.status_code == 206 and content_start(response) != have):
                self.forget()
                raise requests.ConnectionError("the server no longer offers the rest")
            resumed = response.status_code == 206
            length = response.headers.get("Content-Length")
            if length is None or not length.isdecimal():
                raise DataError(f"{url}: the server does not state the file's length; download it by hand.")
            total = int(length) + (have if resumed else 0)
            self.note(response)
            with (
                self.part.open("ab" if resumed else "wb") as sink,
                tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, disable=headless()) as bar,
            ):
                for block in response.iter_content(BLOCK):
                    sink.write(block)
                    bar.update(len(block))
        return total

    def validator(self):
        try:
            return json.loads(self.state.read_text(encoding="utf-8"))["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, response):
        etag = response.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        with atomic(self.state) as temporary:
            temporary.write_text(json.dumps({"validator": validator}), encoding="utf-8")


class Busy(Exception):
    """The server asks to come back later."""

    def __init__(self, status, seconds):
        super().__init__(f"the server is busy (HTTP {status})")
        self.seconds = seconds


def open_url(session, url, headers):
    """A streaming response; follows at most REDIRECTS redirects, none from https to http. DataError for a refusal."""
    for _ in range(REDIRECTS + 1):
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S, allow_redirects=False)
        status = response.status_code
        if response.is_redirect:
            target = urljoin(url, response.headers["Location"])
            response.close()
            if urlsplit(target).scheme not in ("http", "https") or (
                url.startswith("https:") and target.startswith("http:")
            ):
                raise DataError(f"{url}: redirects to {target}, which is less safe; download the file by hand.")
            url = target
            continue
        if status in (200, 206, 416):
            return response
        later = response.headers.get("Retry-After", "")
        response.close()
        if status in (429, 500, 502, 503, 504):
            raise Busy(status, float(later) if later.isdecimal() else 0.0)
        hint = "it may need registration, or be blocked here" if status in (401, 403) else "the link is out of date"
        raise DataError(
            f"{url}: the server refuses it (HTTP {status}); {hint}: see python -m data_download describe NAME."
        )
    raise DataError(f"{url}: more than {REDIRECTS} redirects; download the file by hand.")


def content_start(response):
    """First byte of a partial response, from "Content-Range: bytes 100-199/200"; -1 where it cannot be read."""
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdecimal() else -1
