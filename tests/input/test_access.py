"""Who is asked for media and which files are opened: policies, redirects, lookups, and what servers do to those who ask."""

import functools
import http.server
import io
import os
import socket
import threading
import time

import pytest
from PIL import Image

from ms_omni.errors import InputError, MediaError
from ms_omni.files import spooled
from ms_omni.input import access, sources
from ms_omni.input import load as loading
from ms_omni.input.access import AccessPolicy, is_local_name, is_public
from ms_omni.input.load import open_source
from ms_omni.media import load_audio, load_image, load_video, process_mm_info
from tests.input import make_files

OUTSIDE = "127.0.0.2"  # counts as public in these tests


@functools.cache
def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


class Server:
    """Answers `/name` with `answers["/name"]`: raw bytes, or a function of the connection; keeps what it was asked."""

    def __init__(self, address):
        self.asked, self.answers, outer = [], {}, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.path, dict(self.headers)))
                answer = outer.answers.get(self.path, ok(png()))
                if callable(answer):
                    answer(self.connection)
                else:
                    self.wfile.write(answer)
                self.close_connection = True

            def do_CONNECT(self):
                outer.asked.append((self.path, dict(self.headers)))
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.port = self.server.server_port
        self.address = f"http://{address}:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def ok(body, headers=""):
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def moved(to, status=302):
    return f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\n\r\n".encode()


@pytest.fixture
def inside():
    server = Server("127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def outside():
    server = Server(OUTSIDE)
    yield server
    server.close()


@pytest.fixture
def names(monkeypatch):
    """Where names lead; 127.0.0.2 is a public address. Each lookup takes the next of a name's places."""
    table = {"pictures.example.com": [OUTSIDE], "evil.example.com": ["127.0.0.1"], "other.example.com": [OUTSIDE]}
    asked = []

    def lookup(host, port):
        asked.append(host)
        places = table.get(host, [host])
        place = places.pop(0) if len(places) > 1 else places[0]
        return socket.getaddrinfo(place, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(sources, "lookup", lookup)
    monkeypatch.setattr(access, "is_public", lambda address: address == OUTSIDE)
    monkeypatch.setattr(sources, "is_public", lambda address: address == OUTSIDE)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    table["asked"] = asked
    return table


def fetch(address, policy=None):
    return open_source(address, "picture", policy or AccessPolicy()).open().read()


def at(server, host):
    return f"http://{host}:{server.port}"


def test_an_address_that_the_caller_names_is_fetched(inside, outside, names):
    for address in (inside.address, at(inside, "0.0.0.0"), at(outside, "pictures.example.com"), outside.address):
        assert fetch(f"{address}/a.png") == png()
    outside.answers["/a"] = moved("/b.png", 301)
    outside.answers["/b.png"] = moved(f"{at(outside, 'other.example.com')}/c.png", 307)
    assert fetch(f"{at(outside, 'pictures.example.com')}/a") == png()
    inside.answers["/a"] = moved(f"//127.0.0.1:{inside.port}/b.png")
    assert fetch(f"{inside.address}/a") == png()
    assert len(inside.asked) == 4 and [path for path, _ in outside.asked] == ["/a.png", "/a.png", "/a", "/b.png", "/c.png"]


@pytest.mark.parametrize("first", ["pictures.example.com", OUTSIDE])
@pytest.mark.parametrize(
    "then", ["127.0.0.1", "localhost", "evil.example.com", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"]
)
def test_a_redirect_never_leads_from_outside_to_inside(first, then, inside, outside, names):
    names["localhost"] = names["2130706433"] = ["127.0.0.1"]
    outside.answers["/a"] = moved(f"{at(inside, then)}/secret")
    with pytest.raises(MediaError, match="not a public address|not public"):
        fetch(f"{at(outside, first)}/a")
    assert not inside.asked


def test_a_redirect_stays_on_a_local_host(inside, names):
    """Nor does it lead from there to another one; outside is allowed, but there is no way back."""
    names["nas"], names["printer"] = ["127.0.0.1"], ["127.0.0.3"]
    inside.answers["/a"] = moved(f"{at(inside, 'printer')}/b")
    with pytest.raises(MediaError, match="nas redirects to printer"):
        fetch(f"{at(inside, 'nas')}/a")
    assert [path for path, _ in inside.asked] == ["/a"]


def test_a_public_name_that_leads_inside_is_refused(inside, outside, names):
    with pytest.raises(MediaError, match="public name evil.example.com .127.0.0.1. leads to"):
        fetch(f"{at(inside, 'evil.example.com')}/secret")
    assert not inside.asked
    assert fetch(f"{at(inside, 'evil.example.com')}/a", AccessPolicy(hosts=["evil.example.com"])) == png()


def test_a_name_is_looked_up_once(inside, outside, names):
    """The address that was checked is the one that is asked: a second lookup could say something else."""
    names["rebinding.example.com"] = [OUTSIDE, "127.0.0.1"]
    assert fetch(f"{at(outside, 'rebinding.example.com')}/a") == png()
    assert names["asked"] == ["rebinding.example.com"] and outside.asked[0][1]["Host"].startswith("rebinding.example.com:")
    with pytest.raises(MediaError, match="leads to"):
        fetch(f"{at(inside, 'rebinding.example.com')}/a")


def test_public_hosts_only(inside, outside, names, tmp_path):
    policy, names["localhost"] = AccessPolicy.public(), ["127.0.0.1"]
    assert fetch(f"{at(outside, 'pictures.example.com')}/a", policy) == png()
    (tmp_path / "a.png").write_bytes(png())
    refused = (f"{inside.address}/a", f"{at(inside, 'localhost')}/a", str(tmp_path / "a.png"), tmp_path / "a.png")
    for value in (
        *refused,
        (tmp_path / "a.png").as_uri(),
        f"'{tmp_path / 'a.png'}'",
        "/etc/passwd",
        "~/.bashrc",
        "no such file",
    ):
        with pytest.raises(MediaError, match="only those may be asked|not opened here"):
            open_source(value, "picture", policy)
    assert not inside.asked
    assert open_source(png(), "picture", policy).data == png()


def test_a_list_of_hosts(inside, outside, names):
    policy = AccessPolicy(hosts=("pictures.example.com", ".wiki.example.org"))
    names["en.wiki.example.org"] = ["127.0.0.1"]
    assert fetch(f"{at(outside, 'PICTURES.example.com')}/a", policy) == png()
    assert fetch(f"{at(inside, 'en.wiki.example.org')}/a", policy) == png()
    outside.answers["/a"] = moved(f"{at(outside, 'other.example.com')}/b")
    for host in ("other.example.com", "wiki.example.org.evil.example.com", "pictures.example.com"):
        with pytest.raises(MediaError, match="is not among the hosts that may be asked"):
            fetch(f"{at(outside, host)}/a", policy)
    assert not any("evil" in name or "other" in name for name in names["asked"])  # a lookup tells something too


@pytest.mark.parametrize(
    "to",
    [
        "file:///etc/passwd",
        "ftp://pictures.example.com/a",
        "data:image/png;base64,AAAA",
        "gopher://x/",
        "http://:80/",
    ],
)
def test_a_redirect_leads_to_http_only(to, outside, names):
    outside.answers["/a"] = moved(to)
    with pytest.raises(MediaError, match="only http:// and https:// are followed|names no host"):
        fetch(f"{outside.address}/a")


def test_redirects_are_counted(outside, names):
    outside.answers["/a"] = moved("/a")
    with pytest.raises(MediaError, match="redirected over 5 times"):
        fetch(f"{outside.address}/a")
    assert len(outside.asked) == 6
    with pytest.raises(MediaError, match="redirected over 0 times"):
        fetch(f"{outside.address}/a", AccessPolicy(redirects=0))


def test_passwords_go_to_their_host_only(outside, names):
    outside.answers["/a"] = moved("/b")
    outside.answers["/b"] = moved(f"{at(outside, 'other.example.com')}/c")
    fetch(f"http://me:se%20cret@pictures.example.com:{outside.port}/a")
    sent = [headers.get("Authorization") for _, headers in outside.asked]
    assert sent == ["Basic bWU6c2UgY3JldA=="] * 2 + [None]
    outside.answers["/b"] = b"HTTP/1.1 404 Not Found\r\n\r\n"
    with pytest.raises(MediaError, match="HTTP 404 Not Found") as caught:
        fetch(f"http://me:se%20cret@pictures.example.com:{outside.port}/a")
    assert "cret" not in str(caught.value)


def trickle(content, pause_s, connection):
    for byte in content:
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(pause_s)


@pytest.mark.parametrize(
    "content",
    [b"H" * 10**6, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**6, ok(b"x" * 10**6), b"HTTP/1.1 100 Continue\r\n\r\n" * 10**6],
)
def test_a_trickle_ends_in_time(content, inside):
    inside.answers["/a"] = functools.partial(trickle, content, 0.01)
    with pytest.raises(MediaError, match="it took over 0.3 s"):
        fetch(f"{inside.address}/a", AccessPolicy(total_s=0.3))


def test_silence_ends_in_time(inside):
    inside.answers["/a"] = lambda connection: time.sleep(1)
    with pytest.raises(MediaError, match="nothing came for 0.1 s"):
        fetch(f"{inside.address}/a", AccessPolicy(silence_s=0.1))


def endless(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        try:
            connection.sendall(b"x" * 65536)
        except OSError:
            return


@pytest.mark.parametrize(
    "answer, complaint",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "it has 10,000,000,000 bytes, and 1,000,000 are taken"),
        (endless, "it has over 1,000,000 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nF4241\r\n" + b"x" * 1_000_001 + b"\r\n0\r\n\r\n",
            "over 1,000,000",
        ),
        (ok(b"x" * 99, "Content-Encoding: gzip\r\n"), "packed it .gzip."),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "it was cut: 3 of 10 bytes came"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "cannot be downloaded: IncompleteRead"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "HTTP 204"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", "HTTP 206"),
        (b"HTTP/1.1 302 Moved\r\n\r\n", "HTTP 302"),
        (ok(b""), "is empty"),
        (b"", "cannot be downloaded"),
        (b"\0\xff garbage\r\n\r\n", "cannot be downloaded"),
        (b"HTTP/1.1 404 \x1b[2J\x07\r\n\r\n", r"HTTP 404 \?\[2J\?\.$"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "cannot be downloaded"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "cannot be downloaded"),
    ],
)
def test_what_servers_answer(answer, complaint, inside):
    inside.answers["/a"] = answer
    with pytest.raises(MediaError, match=complaint):
        fetch(f"{inside.address}/a", AccessPolicy(image_bytes=1_000_000))


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1/x",
        "http://[zz]/x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:port/x",
        "http://user:pw@/x",
        "http://:80/x",
        "https://",
        "http://a b/x",
        "http://" + "a" * 300 + ".example.com/x",
        "http://.example.com/x",
        "http://\u00e4..com/x",
        "http://127.0.0.1%0d%0aX:1/x",
        "http://exa\x00mple.com/x",
        "http://\ud800.com/",
    ],
)
def test_addresses_that_name_no_host(address, monkeypatch):
    def lookup(host, port):
        host.encode("idna")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(sources, "lookup", lookup)
    with pytest.raises(MediaError, match="cannot be downloaded"):
        fetch(address)


def test_a_large_body_is_kept_in_a_file_that_goes(inside, monkeypatch):
    monkeypatch.setattr("ms_omni.files.SPOOLED_BYTES", 10)
    monkeypatch.setattr(sources, "_READ_BYTES", 16)
    source = open_source(f"{inside.address}/a", "picture")
    path = source.path
    assert (
        path is not None
        and path.read_bytes() == png()
        and source.size_bytes() == len(png())
        and load_image(source).size == (8, 6)
    )
    del source
    assert not path.exists()
    assert spooled(iter([b"ab", b"cd"]), 4) == b"abcd"


def test_proxies_are_asked_for_what_is_public(inside, outside, names, monkeypatch):
    monkeypatch.setenv("http_proxy", f"me:pw@127.0.0.1:{inside.port}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{inside.port}")
    assert fetch("http://pictures.example.com/a") == png()
    path, headers = inside.asked.pop()
    assert path == "http://pictures.example.com/a" and headers["Host"] == "pictures.example.com"
    assert headers["Proxy-Authorization"] == "Basic bWU6cHc=" and "Authorization" not in headers
    with pytest.raises(MediaError, match="the proxy 127.0.0.1 answers HTTP 403"):
        fetch("https://pictures.example.com/a")
    assert inside.asked.pop()[0] == "pictures.example.com:443"
    with pytest.raises(MediaError, match="leads to an address that is not public"):
        fetch("http://evil.example.com/a")
    assert fetch(f"{inside.address}/b") == png() and inside.asked.pop()[0] == "/b"
    assert fetch(f"{at(outside, 'pictures.example.com')}/a", AccessPolicy.public()) == png() and outside.asked
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(MediaError, match="a proxy of the kind socks5://|only http"):
        fetch("http://pictures.example.com/a")


SPECIAL = (
    "127.0.0.1 127.8.8.8 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 192.0.0.192 192.0.2.1 "
    "198.18.0.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16 192.88.99.1 :: ::1 ::127.0.0.1 "
    "::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::808:808 2002:7f00:1:: "
    "2002:808:808:: 2001::1 2001:db8::1 2001:4860::5efe:127.0.0.1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 100::1"
)


def test_public_addresses():
    assert not [address for address in SPECIAL.split() if is_public(address)]
    for address in ("8.8.8.8", "93.184.216.34", "1.1.1.1", "2001:4860:4860::8888", "2606:4700::1111", "64:ff9b::808:808"):
        assert is_public(address)
    for name in ("localhost", "nas", "a.local", "a.LAN.", "127.0.0.1", "::1", "0x7f.1", "1.2.3", "printer.home.arpa"):
        assert is_local_name(name)
    for name in ("example.com", "local.example.com", "a.b.de."):
        assert not is_local_name(name)


def test_files_below_folders(tmp_path, monkeypatch):
    folder, secret = tmp_path / "pictures", tmp_path / "secret.png"
    (folder / "in").mkdir(parents=True)
    for path in (folder / "a.png", folder / "in" / "b.png", secret):
        path.write_bytes(png())
    (folder / "link.png").symlink_to("a.png")
    (folder / "out.png").symlink_to(secret)
    (folder / "up").symlink_to("..")
    (tmp_path / "pictures2").mkdir()
    (tmp_path / "pictures2" / "a.png").write_bytes(png())
    policy = AccessPolicy(files=[folder], hosts="public")
    for path in ("a.png", "in/b.png", "link.png", "in/../a.png", "up/pictures/a.png"):
        for value in (folder / path, str(folder / path), f"file://{folder / path}", f' "{folder / path}"'):
            assert fetch(value, policy) == png()
    for path in (
        "out.png",
        "up/secret.png",
        "../secret.png",
        "../pictures2/a.png",
        "up/none.png",
        "/etc/passwd",
        "%2e%2e/secret.png",
    ):
        for value in (folder / path, f"file://{folder / path}"):
            with pytest.raises(MediaError, match="is not below the folders|does not exist"):
                open_source(value, "picture", policy)
    with pytest.raises(MediaError, match="file:, which is not opened here"):
        open_source(secret.as_uri(), "picture", AccessPolicy(schemes=["http"]))
    source = open_source(folder / "a.png", "picture", policy)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(secret)  # exchanged after it was checked
    with pytest.raises(MediaError, match="can be read no more: is not below the folders"):
        source.open()
    regular = loading.open_regular

    def exchanging(path):  # between the check and the opening
        os.rename(folder / "in", folder / "was")
        (folder / "in").symlink_to(tmp_path / "pictures2")
        (tmp_path / "pictures2" / "b.png").write_bytes(b"secret")
        return regular(path)

    monkeypatch.setattr(loading, "open_regular", exchanging)
    with pytest.raises(MediaError, match="exchanged while it was opened"):
        open_source(folder / "in" / "b.png", "picture", policy)


@pytest.mark.parametrize(
    "kind", ["fifo", "link to fifo", "socket", "folder", "/dev/zero", "/dev/stdin", "/dev/tty", "/proc/self/environ", "loop"]
)
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind.startswith("/"):
        path.symlink_to(kind)
    else:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe" if kind == "fifo" else path
        if kind != "fifo":
            path.symlink_to("pipe")
    for value in (path, str(path), path.as_uri()):
        with pytest.raises(MediaError, match="is a folder|cannot be read|is empty"):
            open_source(value, "picture")


def test_limits_of_what_is_given(tmp_path):
    small = AccessPolicy(image_bytes=300)
    file = io.BytesIO(b"x" * 301)
    with pytest.raises(MediaError, match="over 300 bytes"):
        open_source(file, "picture", small)
    with open("/dev/zero", "rb") as zero, pytest.raises(MediaError, match="over 1,048,576 bytes"):
        open_source(zero, "sound", AccessPolicy(audio_bytes=1 << 20))
    for text in ("QUFB" * 200, "data:image/png;base64," + "QUFB" * 200, "data:image/png," + "%FF" * 400):
        with pytest.raises(MediaError, match="over 300 bytes"):
            open_source(text, "picture", small)
        assert open_source(text, "video", small).size_bytes() >= 400
    with pytest.raises(MediaError, match="data:, which is not opened here"):
        open_source("data:image/png,abc", "picture", AccessPolicy(schemes=["http"]))
    with pytest.raises(MediaError):
        open_source("A" * 64 + " " * 200_000 + "!", "picture")  # told in one pass


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A video that nobody names as one."""
    return make_files.write_video(tmp_path_factory.mktemp("other") / "other.mp4", frames=5)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.mp4", "ffconcat version 1.0\nfile {other}\n"),
        ("a.txt", "ffconcat version 1.0\nfile 'file:{other}'\n"),
        ("a.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nconcat:{other}|{url}\n"),
        (
            "a.mpd",
            '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{url}'
            "</BaseURL></Representation></AdaptationSet></Period></MPD>",
        ),
        (
            "a.sdp",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        ),
        ("a.asx", '<ASX version="3.0"><ENTRY><REF HREF="{url}"/></ENTRY></ASX>'),
        ("a.ram", "rtsp://127.0.0.1/x\n{url}\n"),
        ("a.pls", "[playlist]\nFile1={other}\n"),
        ("a.idx", "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n"),
        ("frame%03d.png", ""),
    ],
)
def test_containers_that_name_other_files_are_refused(name, text, other, tmp_path, inside):
    inside.answers["/b.mp4"] = ok(other.read_bytes())
    path = tmp_path / name
    path.write_text(text.format(other=other, url=f"{inside.address}/b.mp4"))
    if not text:
        path.write_bytes(png())
        (tmp_path / "frame001.png").write_bytes(png())
    for value in (path, path.read_bytes()):
        for load in (load_video, load_audio):
            with pytest.raises(MediaError, match="cannot be read as|is a picture"):
                load(value)
    assert not inside.asked


@pytest.mark.parametrize(
    "text", ["concat:{other}", "subfile,,start,0,end,0,,:{other}", "-", "pipe:", "pipe:0", "file:{other}.no", "fd:0"]
)
def test_names_that_ffmpeg_knows_are_names_of_files(text, other):
    for load in (load_video, load_audio):
        with pytest.raises(MediaError, match="does not exist"):
            load(text.format(other=other))


def test_no_program_is_run_on_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    for value in (path, Image.open(path)):
        with pytest.raises(MediaError, match="is PostScript"):
            load_image(value)


def test_a_policy_holds_in_a_block_and_through_calls(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    conversation = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "a.png")}]}]
    assert process_mm_info(conversation)[1]
    with pytest.raises(MediaError, match="not opened here"):
        process_mm_info(conversation, policy=AccessPolicy.public())
    with AccessPolicy.public().in_force():
        with pytest.raises(MediaError, match="not opened here"):
            load_image(tmp_path / "a.png")
        with AccessPolicy(files=[tmp_path]).in_force():
            assert load_image(tmp_path / "a.png").size == (8, 6)
    assert load_image(tmp_path / "a.png").size == (8, 6)


@pytest.mark.parametrize(
    "words",
    [
        {"hosts": "all"},
        {"hosts": [1]},
        {"files": "/srv"},
        {"schemes": "http"},
        {"schemes": ["gopher"]},
        {"redirects": -1},
        {"redirects": 1.5},
        {"total_s": float("inf")},
        {"image_bytes": True},
    ],
)
def test_policies_that_mean_nothing(words):
    with pytest.raises(InputError, match=f"AccessPolicy: {next(iter(words))}"):
        AccessPolicy(**words)
