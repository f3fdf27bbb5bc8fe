"""Download a data set of the registry: licence first, free space next, and a broken transfer goes on where it stopped."""

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
from medsynth_lib.files import DataError, atomic, cache_folder
from medsynth_lib.processes import headless

ATTEMPTS = 6  # without a new byte in between
WAIT_S = 1.0  # before the second attempt; doubles each time, to at most WAIT_LIMIT_S
WAIT_LIMIT_S = 60.0
TIMEOUT_S = (15, 60)  # to connect, between bytes
REDIRECTS = 5
INCOMING = ".incoming"  # sub-folder for what is not complete
BLOCK = 2**14  # bytes; of a transfer that breaks, at most this much is lost


def get(name: str, folder: Path | None = None, accept_license: bool = False) -> Path:
    """Download and unpack a data set and return its folder.

    What is complete is not fetched again, and a broken file goes on where it stopped. Of two calls at once the second refuses.

    Args:
        name: of the data set.
        folder: where to; None takes the cache.
        accept_license: the user has read the licence and accepts it.

    Raises:
        DataError: for a licence not accepted, a data set that cannot be downloaded directly, too little space, and everything
            a server can do wrong.
    """
    entry = registry.entry(name)
    require_licence(name, entry, accept_license)
    if entry["how"] == "registration":
        raise DataError(f"{name}: needs your own registration:\n" + steps(entry))
    folder = Path(folder or cache_folder("downloads") / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            clear(folder / INCOMING)
            require_space(entry, folder)
            if entry["how"] == "client":
                by_client(folder)
            else:
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


def steps(entry: dict) -> str:
    """Return the numbered steps to a data set that its publisher alone gives out."""
    return "\n".join(f"  {i}. {step}" for i, step in enumerate(entry["steps"], 1))


def require_licence(name: str, entry: dict, accepted: bool) -> None:
    """Raise DataError unless the licence is accepted."""
    if not accepted:
        raise DataError(
            f"{name}: licence not accepted. Read '{entry['licence']}' at {entry['licence_link']}, cite {entry['citation']}, "
            "and run again with --accept-license."
        )


def require_space(entry: dict, folder: Path) -> None:
    """Refuse before the first byte what cannot fit.

    Needed are the contents that are still to come, and with the last of them its archive. Archives are taken as of one size,
    since each is deleted before the next one comes. What an earlier run brought counts.
    """
    if entry["how"] == "client":  # which brings files, not archives
        needed = entry["size_gb"] * 1e9 - total_bytes(folder)
    else:
        left = [file for file in entry["files"] if file["name"] not in completed(folder)]
        shares = len(left) * entry["unpacked_gb"] + bool(left) * entry["size_gb"]
        needed = shares * 1e9 / len(entry["files"]) - total_bytes(folder / INCOMING)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {free / 1e9:.1f} GB are free, but {needed / 1e9:.1f} GB are needed for archive and contents; "
            "free space or choose another folder (--folder)."
        )


def total_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def by_client(folder: Path) -> None:
    """LIDC-IDRI by the client of the Imaging Data Commons. Not yet run: it needs its network."""
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise DataError(
            "lidc: needs the client of the Imaging Data Commons: .venv/bin/pip install -e '.[lidc]'"
        ) from error
    IDCClient().download_from_selection(collection_id="lidc_idri", downloadDir=str(folder))


def completed(folder: Path) -> dict[str, dict]:
    """Return which files were downloaded and unpacked: name -> its entry in download.json."""
    try:
        record = json.loads((folder / "download.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def fetch(file: dict, folder: Path, entry: dict) -> None:
    """Download one file, unpack it, and note it in download.json; the archive is deleted then."""
    if file["name"] in completed(folder):
        return
    path = folder / INCOMING / file["name"]
    if path.exists():  # from a run that was killed while it unpacked, or put there by hand
        require_whole(file, path)
    else:
        path.parent.mkdir(exist_ok=True)
        download(file, path)
    note = dict(url=file["url"], version=entry["version"], bytes=path.stat().st_size, sha256=digest(path, "sha256"))
    inside = unpack(path, path.with_name("unpacked"), limit_bytes=entry["unpacked_gb"] * 1.5e9)
    merge(inside, folder / file.get("into", "."))
    record = completed(folder) | {file["name"]: note | dict(date=time.strftime("%Y-%m-%d"))}
    with atomic(folder / "download.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.unlink()


def require_whole(file: dict, path: Path) -> None:
    """Raise DataError unless a file is as long as the registry says, and has its hash."""
    size, md5 = path.stat().st_size, digest(path, "md5")
    for what, found, known in (("bytes", size, file.get("bytes")), ("md5", md5, file.get("md5"))):
        if known and found != known:
            raise DataError(
                f"{path}: has {what} {found}, the registry says {known}; delete it, and download {file['url']} again."
            )


def download(file: dict, path: Path) -> None:
    """Bring one file of the registry to a path, by pooch.

    It gets that name when it is whole and its hash is right.
    """
    transfer = Resuming(path, file.get("bytes"))
    known = f"md5:{file['md5']}" if "md5" in file else None
    try:
        pooch.retrieve(file["url"], known, path.name, path.parent, downloader=transfer)
    except DataError:
        raise
    except requests.RequestException as error:
        raise DataError(f"{file['url']}: {error}; check the address in the registry.") from error
    except ValueError as error:  # pooch's report
        transfer.forget()
        raise DataError(f"{file['url']}: wrong hash, so nothing was kept ({error}); try again later.") from error
    transfer.forget()


def clear(incoming: Path) -> None:
    """Remove what a killed run left half unpacked or half written.

    Archives and parts of them stay.
    """
    for entry in incoming.iterdir() if incoming.exists() else []:
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name.startswith((".", "tmp")):  # pooch's names begin with tmp
            entry.unlink()


def digest(path: Path, algorithm: str) -> str:
    """Return the checksum of a file, read piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


class Resuming:
    """A downloader for pooch that keeps what came in NAME.part and asks for the rest."""

    def __init__(self, path: Path, expected: int | None = None):
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")  # of which version and length the whole file is
        self.expected = expected

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Give pooch the whole file under its name, too.

        Until the hash is known to be right, the part stays.
        """
        self.run(url)
        Path(output_file).unlink(missing_ok=True)
        try:
            os.link(self.part, output_file)
        except OSError:  # a file system without links
            shutil.copyfile(self.part, output_file)

    def run(self, url: str) -> None:
        """Return when the part is the whole file.

        Raises:
            DataError: where the server gives up, or its file is another one.
        """
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
                    if not self.size():
                        reason = unreachable(error, url)
                except Busy as error:
                    reason, wait = str(error), max(wait, error.seconds)
                attempt = 1 if self.size() > before else attempt + 1
                if attempt >= ATTEMPTS:
                    remedy = "it goes on from here" if self.size() else f"or by hand: {self.by_hand(url)}"
                    raise DataError(f"{url}: {reason}, {attempt} times; run the same command again later, {remedy}.")
                time.sleep(min(wait, WAIT_LIMIT_S))
                wait = min(2 * wait, WAIT_LIMIT_S) if attempt > 1 else WAIT_S
        if self.expected and self.size() != self.expected:
            size = self.size()
            self.forget()
            raise DataError(
                f"{url}: has {size} bytes, the registry says {self.expected}; the file changed, so nothing was kept."
            )

    def by_hand(self, url: str) -> str:
        """Say how to bring the file in another way."""
        name = self.part.name.removesuffix(".part")
        return f"download {url} with a browser, put it into {self.part.parent} as {name}, and run the same command"

    def size(self) -> int:
        """Return how many bytes came."""
        return self.part.stat().st_size if self.part.exists() else 0

    def forget(self) -> None:
        """Remove what came."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def transfer(self, session: requests.Session, url: str) -> int | None:
        """Make one request for what is missing, and append it.

        Returns:
            The whole file's length as the server states it.
        """
        have, validator = self.size(), self.known("validator")
        if have and have == self.known("total"):  # a run that was killed while it took the hash
            return have
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
            with (
                self.part.open("ab" if resumed else "wb") as sink,
                tqdm(total=total, initial=have if resumed else 0, unit="B", unit_scale=True, disable=headless()) as bar,
            ):
                self.note(response, total)  # after an older part was emptied, or it would pass as one of this version
                for block in response.iter_content(BLOCK):
                    sink.write(block)
                    bar.update(len(block))
        return total

    def known(self, what: str) -> str | int | None:
        """Return "validator" or "total" of the file that the part belongs to; None if unknown."""
        try:
            return json.loads(self.state.read_text(encoding="utf-8"))[what]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, response: requests.Response, total: int | None) -> None:
        """Write down which file the part belongs to."""
        etag = response.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        with atomic(self.state) as temporary:
            temporary.write_text(json.dumps({"validator": validator, "total": total}), encoding="utf-8")


def unreachable(error: Exception, url: str) -> str:
    """Return which host could not be reached, of a request that may have been redirected."""
    host = urlsplit(error.request.url if error.request else url).hostname
    return f"could not reach {host} ({type(error).__name__}): check the network, and the proxy (HTTPS_PROXY)"


class Busy(Exception):
    """The server asks to come back later."""

    def __init__(self, status: int, seconds: float):
        super().__init__(f"the server is busy (HTTP {status})")
        self.seconds = seconds


def open_url(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """Open a streaming response, over at most `REDIRECTS` redirects, none from https to http.

    Raises:
        DataError: for a refusal.
    """
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


def content_start(response: requests.Response) -> int:
    """Return the first byte of a partial response.

    It is read from "Content-Range: bytes 100-199/200"; -1 where it cannot be read.
    """
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdecimal() else -1
