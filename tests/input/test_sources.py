"""Paths, addresses, data URIs, bytes."""

import base64
import http.server
import os
import re
import threading
import urllib.parse

import pytest
from PIL import Image

from ms_omni.errors import MediaError
from ms_omni.input import sources
from ms_omni.media import load_image


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "a picture.png"
    Image.new("RGB", (8, 6), (1, 2, 3)).save(path)
    return path


@pytest.fixture
def server(png):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing.png":
                self.send_error(404)
                return
            body = png.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (10 if self.path == "/cut.png" else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_spelling(png, server):
    encoded = base64.b64encode(png.read_bytes()).decode()
    spellings = [
        png,
        str(png),
        png.read_bytes(),
        bytearray(png.read_bytes()),
        f"file://{png}",
        png.as_uri(),
        f"data:image/png;base64,{encoded}",
        f"data:image/png;base64,{encoded.rstrip('=')}",
        f"DATA:image/png;BASE64,{encoded}",
        f"data:image/png;charset=utf-8; base64, {encoded}",
        f"data:;base64,{encoded[:40]}\n{encoded[40:]}\n",
        f"data:base64,{encoded}",
        f"data:image/png,{encoded}",
        f"data:image/png;base64,{urllib.parse.quote(encoded, safe='')}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(png.read_bytes()).decode()}",
        "data:image/png," + urllib.parse.quote(png.read_bytes()),
        encoded,
        f"{server}/a.png",
        f"{server}/a.png#there",
        f"{server.replace('//', '//me:pw@')}/a.png",
        f"file://localhost{png}",
        f"{png.as_uri()}?size=large",
    ]
    assert [load_image(spelling).size for spelling in spellings] == [(8, 6)] * len(spellings)
    with open(png, "rb") as file:
        assert load_image(file).size == (8, 6)


def test_as_people_paste_them(png, server, monkeypatch):
    monkeypatch.chdir(png.parent.parent)
    pasted = [
        f" {png}\n",
        f'"{png}"',
        f"'{png}'",
        f"{png.parent.name}\\{png.name}",
        f"file:{png}",
        f" {png.as_uri()}",
        f"<{server}/a.png>",
        f"{server}/a picture.png?name=\u732b b&n=1#top".replace("http", "HTTP"),
        f"{server}/\u732b%20a.png\n",
    ]
    assert [load_image(text).size for text in pasted] == [(8, 6)] * len(pasted)
    quoted = png.with_name("'quoted'")
    Image.new("RGB", (3, 3)).save(quoted, "PNG")
    assert load_image(str(quoted)).size == (3, 3)


def test_user_folder_is_expanded(png, monkeypatch):
    monkeypatch.setenv("HOME", str(png.parent))
    assert load_image(f"~/{png.name}").size == (8, 6)


def test_downloads_that_fail(server):
    with pytest.raises(MediaError, match="HTTP 404"):
        load_image(f"{server}/missing.png")
    with pytest.raises(MediaError, match="cut|cannot be downloaded"):
        load_image(f"{server}/cut.png")
    with pytest.raises(MediaError, match="cannot be downloaded"):
        load_image("http://127.0.0.1:1/a.png")


@pytest.mark.parametrize(
    "value, complaint",
    [
        ("no such file.jpg", "does not exist"),
        ("", "cannot name a file"),
        ("a\0b", "cannot name a file"),
        (b"", "empty"),
        ("x" * 5000, "cannot be read"),
        ("ftp://host/a.png", "starts with ftp"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@@", "base64"),
        ("data:image/png;base64,", "empty"),
        ("http://", "cannot be downloaded"),
        ("~nosuchuser/x.png", "does not exist .looked in"),
        ("\ud800.png", "cannot be read"),
        ("~", "is a folder"),
        ("a.png/b.png", "does not exist"),
        ("file:///no/such/file.png", "does not exist"),
        ("file://", "cannot name a file"),
        ("file:///a%00b", "cannot name a file"),
        ("https//example.com/a.png", "does not exist"),
        ("data:,", "empty"),
        ("://", "starts with ://"),
    ],
)
def test_values_that_name_nothing(value, complaint):
    with pytest.raises(MediaError, match=complaint):
        load_image(value)


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(MediaError, match="does not exist"):
        load_image("a.png")


def test_folders_pipes_and_text_files(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="not a regular file"):
        load_image(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    with open(tmp_path / "text") as file, pytest.raises(MediaError, match="binary mode"):
        load_image(file)


@pytest.mark.parametrize("piece", [64, 100, 1 << 20])
def test_texts_are_read_in_pieces(monkeypatch, piece):
    """So that other threads run meanwhile; pieces end within white space, padding and escapes too."""
    monkeypatch.setattr(sources, "_PIECE", piece)
    for count in range(150, 300):
        data = bytes(range(256))[-count % 7 :] * 2 + bytes(count)
        text = base64.b64encode(data).decode()
        for one in (
            text,
            text.rstrip("="),
            text.replace("+", "-").replace("/", "_"),
            "\n".join(re.findall(".{1,76}", text)),
        ):
            assert sources.is_base64(one) and sources.decode_base64(one, "x") == data
        for bad in (text[:70] + "=" + text[70:], text[:-9] + "." + text[-9:], text + "AAAA=" + text):
            assert not sources.is_base64(bad)
            with pytest.raises(MediaError, match="not valid base64"):
                sources.decode_base64(bad, "x")
        assert sources.from_data_uri("data:a/b," + urllib.parse.quote(data), "x", 1000) == data
