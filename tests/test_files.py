"""Folders and terminals: ~, relative paths and no home folder; a folder for one process at a time; letters it cannot print."""

import getpass
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsynth_lib import files
from medsynth_lib.files import DataError, cache_folder, full_path, provide_home, reserved, say_once


@pytest.fixture
def homeless(monkeypatch):
    """A container whose user has no entry and no HOME."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )


def test_the_cache_is_below_home_or_where_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given, folder in {"": "home/.cache/medsynth", "~/x": "home/x", "x#y": "x#y", "a{b}'$c": "a{b}'$c"}.items():
        monkeypatch.setenv("MEDSYNTH_CACHE", given)
        assert cache_folder("atlas") == tmp_path / folder / "atlas" and (tmp_path / folder / "atlas").is_dir()
    assert not (tmp_path / "~").exists()


def test_without_a_home_the_cache_must_be_named(homeless, monkeypatch, tmp_path):
    for given in ("", "~/x", "~nobody-of-this-name/x"):
        monkeypatch.setenv("MEDSYNTH_CACHE", given)
        with pytest.raises(DataError, match="home folder is not known.*set MEDSYNTH_CACHE to"):
            cache_folder("atlas")
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    assert cache_folder("atlas") == tmp_path / "atlas"


def test_a_user_without_a_home_gets_one_in_the_cache(homeless, monkeypatch, tmp_path):
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MEDSYNTH_CACHE", raising=False)
    with pytest.raises(DataError, match="set HOME. Or set MEDSYNTH_CACHE to"):
        provide_home()
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    provide_home()
    assert Path.home() == tmp_path / "home" and getpass.getuser() == "medsynth"
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("HOME", "/home/me")
    provide_home()
    assert Path.home() == Path("/home/me") and getpass.getuser() == "me"


def test_a_full_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert [full_path(p) for p in ("~", "~/a", "a~", "/b")] == [
        Path(p) for p in ("/home/me", "/home/me/a", tmp_path / "a~", "/b")
    ]


HOLD = """
import sys, time
from medsynth_lib.files import reserved
with reserved(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_serves_one_process_and_is_free_after_it_was_killed(tmp_path):
    folder = tmp_path / "out"
    holder = python(HOLD, folder)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match=f"{folder}: is in use by another run; wait"), reserved(folder):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with reserved(folder):
        pass
    with reserved(folder):  # and again in the same process
        pass


def test_a_folder_that_is_a_file_or_closed_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=f"{path}: is no folder that can be written"), reserved(path):
            pass
    assert (tmp_path / "file").read_text() == "kept"


def test_an_error_inside_a_reserved_folder_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="its own"), reserved(tmp_path):
        raise OSError("its own")
    with reserved(tmp_path):
        pass


def test_a_kind_of_word_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(files, "SAID", set())
    for kind, line in [("a", "first"), ("a", "second"), ("b", "third")]:
        say_once(kind, line)
    assert capsys.readouterr().out == "first\nthird\n"


ODD = "import sys; from medsynth_lib.files import print_anywhere; print_anywhere(); print('±é–', file=getattr(sys, sys.argv[1]))"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_ascii_terminal_gets_escapes(stream):
    done = subprocess.run(
        [sys.executable, "-c", ODD, stream],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
    )
    assert getattr(done, stream) == b"\\xb1\\xe9\\u2013\n" and done.returncode == 0


CHILD = """
import sys, time
from medsynth_lib.processes import end_with
end_with(int(sys.argv[1]))
print("started", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
child = [sys.executable, "-c", {CHILD!r}, str(os.getpid())]
print(subprocess.Popen(child, start_new_session=True).pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_the_process_that_it_was_told():
    parent = python(PARENT)
    (child,) = {parent.stdout.readline().strip() for _ in range(2)} - {"started"}
    parent.kill()
    end, stat = time.monotonic() + 20, Path(f"/proc/{child}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < end, "the child goes on"
        time.sleep(0.05)
    parent.communicate()
