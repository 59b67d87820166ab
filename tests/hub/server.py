"""A hub on loopback: the few addresses that `huggingface_hub` asks for, with files from a folder, and faults on demand."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """models: {OWNER/NAME: folder}; drops: {file: [bytes, ...]} after which an answer is cut off; asked: (method, path, range)."""

    def __init__(self, models):
        self.models, self.drops, self.asked = models, {}, []
        self.free = {}  # {file: size} to claim in the list of files
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def files(self, name):
        folder = Path(self.models[name])
        return {item.relative_to(folder).as_posix(): item for item in sorted(folder.rglob("*")) if item.is_file()}

    def downloaded(self):
        """Names of the files whose content was asked for."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers for `hub`."""

    hub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        revision, known = (parts[5:] or ["main"])[0] if parts[0] == "api" else parts[3], (COMMIT, "main", "v1")
        if name not in self.hub.models:
            return self.refuse(404, "RepoNotFound", body)
        if revision not in known:
            return self.refuse(404, "RevisionNotFound", body)
        files = self.hub.files(name)
        if parts[0] == "api":
            sizes = {file: self.hub.free.get(file, item.stat().st_size) for file, item in files.items()}
            if "tree" in parts:
                tree = [{"type": "file", "path": file, "size": size, "oid": "0" * 40} for file, size in sizes.items()]
                return self.send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            siblings = [{"rfilename": file, "size": size, "blobId": "0" * 40} for file, size in sizes.items()]
            info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self.send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        file = "/".join(parts[4:])
        if file not in files:
            return self.refuse(404, "EntryNotFound", body)
        content = files[file].read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self.send(content, headers, body, self.hub.drops.get(file) if body else None)

    def refuse(self, code, reason, body):
        self.send(b"{}", {"X-Error-Code": reason, "X-Error-Message": reason}, body, code=code)

    def send(self, content, headers, body, drops=None, code=200):
        wanted, whole = self.headers.get("Range"), len(content)
        if wanted and code == 200:
            begin = int(wanted.split("=")[1].split("-")[0])
            code, content = 206, content[begin:]
            headers["Content-Range"] = f"bytes {begin}-{whole - 1}/{whole}"
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and drops:
            self.wfile.write(content[: drops.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        elif body:
            self.wfile.write(content)
