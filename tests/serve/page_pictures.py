"""Makes the pictures of the page in docs/pictures, with the miniature behind it: `python -m tests.serve.page_pictures`."""

import tempfile
from pathlib import Path

from PIL import Image

from .browser import Browser
from .conftest import ROOT, start
from .test_page import DONE, SAMPLES, SPOKEN, STATE, ask, microphone

PICTURES = ROOT / "docs/pictures"
COLOURS, LARGEST = 128, (1120, 990)
DESKTOP = {"width": 1120, "height": 850}
PHONE = {"width": 360, "height": 740, "phone": True}


def save(page, name):
    """With a palette of its own, which these few colours need no more than."""
    file = PICTURES / f"{name}.png"
    page.screenshot(file)
    with Image.open(file) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail(LARGEST)
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, optimize=True)
    print(file, file.stat().st_size)


def chat(page, name):
    page.wait("document.querySelector('#ideas button')")
    page.drop("main", SAMPLES / "star.jpg")
    page.wait("document.querySelector('#attached li')")
    ask(page, "What do you see?")
    ask(page, "What is 4 + 5?", f"document.querySelectorAll('.turn.answer').length == 2 && {DONE}")
    page.wait("document.querySelector('.turn.answer:last-child .sound') && document.querySelector('#stop').hidden")
    page.type("Say a yellow square and 806.")
    save(page, name)


def call(page, name):
    page.click("#start-call")
    page.wait(f"{STATE} == 'listening'")
    loud = "Number(document.querySelector('#orb').style.getPropertyValue('--level')) > 0.5"
    page.wait(f"{STATE} == 'speaking' && document.querySelectorAll('.transcript .assistant').length > 1 && {loud}")
    save(page, name)


def main():
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        server = start(folder, key=None)
        browser = None
        try:
            server.wait()
            browser = Browser(folder / "profile", microphone(folder, 1.0, SPOKEN, 5.0))
            looks = {
                "light": (DESKTOP, [chat]),
                "dark": ({**DESKTOP, "dark": True}, [call]),
                "phone": ({**PHONE, "language": "zh-CN", "dark": True}, [chat, call]),
            }
            for name, (look, shown) in looks.items():
                for show in shown:
                    page = browser.open(server.url + "/", **look)
                    show(page, f"{show.__name__}_{name}")
                    assert not page.problems
                    page.close()
        finally:
            if browser:
                browser.close()
            server.process.terminate()
            server.process.wait(60)


if __name__ == "__main__":
    main()
