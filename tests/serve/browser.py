"""Drives a headless Chromium over its DevTools protocol: what a user does, by mouse, keys and dropped files."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--remote-debugging-port=0",
]
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), " ": (32, " ")}


class Browser:
    """A process of its own. `folder`: empty, for its profile; `flags`: more than the usual ones."""

    def __init__(self, folder: Path, *flags: str):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", *flags, "about:blank"]
        self.process = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self.socket = connect(self.address(folder / "DevToolsActivePort"), max_size=None)
        except BaseException:
            self.process.kill()
            raise
        self.sent, self.pages = 0, {}

    def address(self, file, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            lines = file.read_text().split() if file.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.1)
        raise RuntimeError(f"{CHROMIUM} did not start in {seconds} s")

    def call(self, method, session=None, **params):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        self.socket.send(json.dumps({**message, "sessionId": session} if session else message))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get("id") == self.sent:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if answer.get("sessionId") in self.pages:
                self.pages[answer["sessionId"]].hear(answer["method"], answer["params"])

    def open(self, url, *, script="", ready=True, **look):
        """A new page in a profile of its own; see `Page.look`. `script` runs before the page's own; ready: waits for a model."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.look(**look)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        page.call("Page.navigate", url=url)
        page.wait("document.readyState == 'complete' && document.querySelector('#send')")
        if ready:
            page.wait("document.querySelector('#model').textContent")
        return page

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


class Page:
    """`problems`: what the page threw, and what the browser refused it."""

    def __init__(self, browser, session, context):
        self.browser, self.session, self.context, self.problems = browser, session, context, []

    def hear(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        if method == "Log.entryAdded" and params["entry"]["level"] == "error" and params["entry"]["source"] != "network":
            self.problems.append(params["entry"]["text"])

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def look(self, *, width=1280, height=800, dark=False, language="en-US", phone=False, still=False):
        """Size in CSS pixels, colours, language; `still`: as users who want no motion."""
        scale = 2 if phone else 1
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" if still else ""}
        features = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        agent = self.browser.call("Browser.getVersion")["userAgent"]
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)

    def js(self, expression):
        """Its value; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression, seconds=60):
        """Until an expression is true; its value."""
        return self.wait_for(
            lambda: self.js(f"(value => value instanceof Element || value)({expression})"), seconds, expression
        )

    def wait_for(self, ask, seconds=60, what=""):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = ask()
            if value:
                return value
            time.sleep(0.05)
        shown = self.js("document.body.innerText")
        raise AssertionError(f"not in {seconds} s: {what or ask}\nproblems: {self.problems}\nthe page shows:\n{shown}")

    def middle(self, selector):
        place = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{place}.scrollIntoView({{block: 'nearest'}})")
        x, y = self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({place}.getBoundingClientRect())")
        return {"x": x, "y": y}

    def press(self, selector):
        """The mouse goes down, and stays so until `release`."""
        self.at = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self.at)
        self.call("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **self.at)

    def release(self):
        self.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **self.at)

    def click(self, selector):
        self.press(selector)
        self.release()

    def type(self, text):
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def key(self, name, kinds=("keyDown", "keyUp"), shift=False):
        code, text = KEYS[name]
        for kind in kinds:
            fields = {"text": text} if text and kind == "keyDown" else {}
            code_name = "Space" if name == " " else name
            fields |= {"key": name, "code": code_name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
            self.call("Input.dispatchKeyEvent", type=kind, **fields)

    def drop(self, selector, *files):
        """Files from outside of the browser, as from a folder's window."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, data=data, **self.middle(selector))

    def screenshot(self, file):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        Path(file).write_bytes(base64.b64decode(data))

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
        del self.browser.pages[self.session]
