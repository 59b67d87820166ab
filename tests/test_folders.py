"""Folders that appear whole, that know their own files, and that forget what killed runs left."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from ms_omni import files
from ms_omni.errors import CheckpointError
from ms_omni.files import OWN_FILES, new_folder, open_regular, own_files, read_text, saved_files, write_file


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def save(folder, **files):
    with saved_files(folder, replaces=("extra*",)) as fresh:
        for name, text in files.items():
            (fresh / name).write_text(text)


@pytest.mark.parametrize("place", ["new", "deep/new", "empty", "link", "dangling", "mounted"])
def test_a_new_folder_appears_whole(place, tmp_path, monkeypatch):
    target, there = tmp_path / place, tmp_path / place
    if place in ("empty", "mounted"):
        target.mkdir(mode=0o750)
    if place == "mounted":
        monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(target))
    if place in ("link", "dangling"):
        there = tmp_path / "behind"
        target.symlink_to("behind")
        if place == "link":
            there.mkdir()
    with new_folder(target) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "other").write_text("x")
        assert not there.is_dir() or not (there / "config.json").exists()
    assert names(there) == ["config.json", "other"]
    assert target.is_symlink() == (place in ("link", "dangling"))
    assert place != "empty" or there.stat().st_mode & 0o777 == 0o750
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("place", ["file", "full", "link to full", "loop"])
def test_a_folder_that_is_taken_is_left_alone(place, tmp_path):
    target = tmp_path / place
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    if place == "file":
        target.write_text("mine")
    elif place == "link to full":
        target.symlink_to("full")
    elif place == "loop":
        target.symlink_to("loop")
    before = names(tmp_path)
    with pytest.raises(CheckpointError), new_folder(target) as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path) == before and (tmp_path / "full" / "mine").read_text() == "x"


@pytest.mark.parametrize("make", [new_folder, saved_files])
def test_a_full_disk_leaves_nothing(make, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="No space left"), make(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not names(tmp_path)
    with pytest.raises(CheckpointError, match="bytes free, 1,000,000,000"), make(tmp_path / "out", 10**18):
        pass
    assert not names(tmp_path)
    monkeypatch.setattr("pathlib.Path.mkdir", lambda path, **_: os.mkdir("/proc/none"))
    with pytest.raises(CheckpointError, match="cannot be written"), make(tmp_path / "out"):
        pass


def test_what_a_killed_run_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    code = f"""
import sys, time
from ms_omni.files import new_folder
with new_folder({str(tmp_path / "out")!r}) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stdout.readline() == b"writing\n"
        with new_folder(tmp_path / "out") as folder:
            (folder / "whole").write_text("x")
        assert [name for name in names(tmp_path) if name.endswith("half")]
        run.send_signal(signal.SIGKILL)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / ".out.partial-1").mkdir()  # as earlier versions called theirs
    (tmp_path / ".out.partial-2").symlink_to(tmp_path)
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.partial-2", "out"]


def test_own_files_are_replaced_and_foreign_ones_are_not(tmp_path):
    out = tmp_path / "out"
    save(out, a="1", extra1="1")
    (out / "mine").write_text("mine")
    save(out, a="2", b="2", extra2="2")
    assert names(out) == [OWN_FILES, "a", "b", "extra2", "mine"]
    assert own_files(out) == {"a", "b", "extra2"} and (out / "a").read_text() == "2"
    for foreign in ("mine", "extra3"):
        (out / foreign).write_text("mine")
        with pytest.raises(CheckpointError, match=f"holds {foreign}, which ms_omni did not write"):
            save(out, a="3", mine="3")
        assert (out / "a").read_text() == "2" and (out / foreign).read_text() == "mine"
        (out / foreign).unlink()
    (out / "mine").write_text("3")
    save(out, a="3", mine="3")  # the same text is nobody's loss
    assert not list(out.glob(".*partial*"))


def test_several_save_into_one_folder_at_once(tmp_path):
    """As the ranks of a job do: all make it, and each one's files are known as ours."""
    out, together, failed = tmp_path / "out", threading.Barrier(8), []

    def one(number):
        try:
            with saved_files(out) as fresh:
                (fresh / "all").write_text("x")
                (fresh / str(number)).write_text("x")
                together.wait()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(out) == sorted([OWN_FILES, "all", *"01234567"])
    assert own_files(out) == {"all", *"01234567"} and names(tmp_path)[0] == "out"


def test_a_folder_that_is_just_made_is_no_killed_run_s(tmp_path, monkeypatch):
    """Whoever cleans up may lock a fresh folder before its owner does; the owner then takes another one."""
    out, taken, lock = tmp_path / "out", [], files._lock

    def late(folder, wait=False):
        if wait and not taken:  # the owner is about to lock: somebody who cleans up was faster, and is still at it
            taken.append(lock(folder))
            remove = threading.Timer(0.2, lambda: (folder.rmdir(), os.close(taken[0])))
            remove.start()
        return lock(folder, wait)

    monkeypatch.setattr(files, "_lock", late)
    save(out, a="1")
    assert taken and os.listdir(tmp_path) == ["out"] and (out / "a").read_text() == "1"


@pytest.mark.parametrize("text", ["mine", "{}", '{"model_type": "llama"}', '{"model_type": null}'])
def test_a_foreign_configuration_is_no_older_one(text, tmp_path):
    for own in ('{"model_type": "ours"}', "{}  "):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="holds config.json, which"):
            save(tmp_path, **{"config.json": own})
    (tmp_path / "config.json").write_text('{"model_type": "ours", "size": 3}')
    save(tmp_path, **{"config.json": '{"model_type": "ours"}'})
    assert (tmp_path / "config.json").read_text() == '{"model_type": "ours"}'


@pytest.mark.parametrize("listed", ["", "[]", '{"files": 3}', '{"files": [3, "../mine"]}', "[" * 100_000])
def test_a_list_of_own_files_that_is_damaged_lists_none(listed, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / OWN_FILES).write_text(listed)
    (out / "a").write_text("mine")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="holds a, which"):
        save(out, a="1")
    save(out, b="1")
    assert (tmp_path / "mine").exists() and (out / "a").read_text() == "mine"


def test_links_in_a_folder_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    out = tmp_path / "out"
    save(out, a="1")
    (out / "a").unlink()
    (out / "a").symlink_to(tmp_path / "secret")
    save(out, a="2")
    assert (out / "a").read_text() == "2" and (tmp_path / "secret").read_text() == "secret"
    (tmp_path / "elsewhere").mkdir()
    (out / "templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="holds templates, which"), saved_files(out) as fresh:
        (fresh / "templates").mkdir()
        (fresh / "templates" / "a").write_text("x")
    assert not names(tmp_path / "elsewhere")


def test_what_makes_the_others_valid_comes_last(tmp_path, monkeypatch):
    """A run that is killed in the middle of replacing leaves the old files, or new ones that are not yet used."""
    out = tmp_path / "out"
    files = {"config.json": "1", "model.safetensors.index.json": "1", "model-1.safetensors": "1", "notes": "1"}
    save(out, **files)
    moved, replace = [], os.replace
    monkeypatch.setattr(
        "os.replace", lambda source, target: (moved.append(os.path.basename(target)), replace(source, target))
    )
    save(out, **dict.fromkeys(files, "2"))
    moved = [name for name in moved if name != OWN_FILES]
    assert moved == ["model-1.safetensors", "notes", "model.safetensors.index.json", "config.json"]


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, complaint in (
        ("pipe", "regular"),
        ("link", "regular"),
        (".", "folder"),
        ("loop", "symbolic"),
        ("x" * 5000, "long"),
    ):
        with pytest.raises(OSError, match=complaint):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match="regular"):
        open_regular("/dev/zero")
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError):
        read_text(tmp_path / "text")


def test_a_file_appears_whole_and_a_link_is_replaced(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a.txt").symlink_to("secret")
    write_file(tmp_path / "a.txt", lambda path: path.write_text(path.suffix))
    assert (tmp_path / "a.txt").read_text() == ".txt" and (tmp_path / "secret").read_text() == "secret"
    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "a.txt", lambda path: path.write_text("x") / 0)
    assert names(tmp_path) == ["a.txt", "secret"]
