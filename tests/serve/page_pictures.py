"""Makes the pictures of the page in docs/pictures, with the miniature behind it: `python -m tests.serve.page_pictures`."""

import tempfile
from pathlib import Path

from PIL import Image

from .browser import Browser
from .conftest import ROOT, start
from .test_page import DONE, SAMPLES, SPOKEN, STATE, ask, microphone

PICTURES = ROOT / "docs/pictures"
<<<<<<< HEAD
COLOURS = 256
=======
>>>>>>> 281e2aa (Pictures of the page without bands in their colours: a palette of each one's own)
DESKTOP = {"width": 1120, "height": 850}
PHONE = {"width": 360, "height": 740, "phone": True}


def save(page, name):
<<<<<<< HEAD
    """With a palette, which takes a third of the bytes."""
=======
    """With a palette of its own, which these few colours need no more than."""
>>>>>>> 281e2aa (Pictures of the page without bands in their colours: a palette of each one's own)
    file = PICTURES / f"{name}.png"
    page.screenshot(file)
    with Image.open(file) as picture:
        picture = picture.convert("RGB")
<<<<<<< HEAD
    palette = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
=======
    picture.quantize(256, Image.Quantize.MEDIANCUT, kmeans=3).save(file, optimize=True)
>>>>>>> 281e2aa (Pictures of the page without bands in their colours: a palette of each one's own)
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
<<<<<<< HEAD
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
=======
            phone = {**PHONE, "dark": True, "language": "zh-CN"}
            for show, name, look in (
                (chat, "light", DESKTOP),
                (call, "dark", {**DESKTOP, "dark": True}),
                (chat, "phone", phone),
                (call, "phone", phone),
            ):
                page = browser.open(server.url + "/", **look)
                show(page, f"{show.__name__}_{name}")
                assert not page.problems
                page.close()
>>>>>>> 281e2aa (Pictures of the page without bands in their colours: a palette of each one's own)
        finally:
            if browser:
                browser.close()
            server.process.terminate()
            server.process.wait(60)


if __name__ == "__main__":
    main()
