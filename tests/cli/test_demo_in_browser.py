"""``fastdiff demo`` as a visitor has it: a server, and a headless Chromium that clicks and paints.

``FASTDIFF_SCREENSHOTS=docs/img pytest --proofs tests/cli/test_demo_in_browser.py`` makes the pictures of docs/demo.md.
"""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DESKTOP, PHONE, chromium
from PIL import Image

import fastdiff

SECONDS = 120  # for anything to happen, on a busy machine
STEP = re.compile(r"step \d+ of 250")

pytestmark = [
    pytest.mark.proof,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the page with the bundled models; Ctrl-C ends its server."""
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "fastdiff", "demo", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = ""
            for line in server.stdout:
                said += line
                if line.startswith("page"):
                    break
            assert "models     " in said and "fashion-mnist" in said, said
            yield line.split()[1]
            server.send_signal(signal.SIGINT)
            rest, _ = server.communicate(timeout=SECONDS)
            assert server.returncode == 0 and "Traceback" not in rest, rest
        finally:
            server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class Visitor:
    """A window on the page, what it asked for and what its console said."""

    def __init__(self, browser: Any, address: str, viewport: dict[str, int]) -> None:
        self.page = browser.new_page(viewport=viewport, color_scheme="light")
        self.page.set_default_timeout(SECONDS * 1000)
        self.errors: list[str] = []
        self.asked: set[str] = set()
        self.page.on("request", lambda request: self.asked.add(request.url.partition("?")[0]))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.address = address
        self.page.goto(address)
        self.press("Sample", wait_only=True)

    def choose(self, model: str) -> None:
        self.page.get_by_label("Model").click()
        self.page.get_by_role("option", name=model, exact=True).click()

    def press(self, name: str, wait_only: bool = False) -> None:
        button = self.page.get_by_role("button", name=name, exact=True)
        button.wait_for() if wait_only else button.click()

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()

    def set(self, label: str, value: int) -> None:
        field = self.page.get_by_label(f"number input for {label}").locator("visible=true")
        field.fill(str(value))
        field.press("Tab")

    def status(self, containing: str | re.Pattern[str]) -> str:
        """What the visible line below the images says, once it contains this."""
        line = self.page.locator(".fd-status .fd-run", has_text=containing).locator("visible=true")
        line.wait_for()
        return line.inner_text()

    def press_until(self, name: str, containing: str) -> None:
        """Press again and again: nothing in the page says when a picture that was given has arrived at the server."""
        line = self.page.locator(".fd-status .fd-run", has_text=containing).locator("visible=true")
        for _ in range(SECONDS // 3):
            self.press(name)
            self.page.wait_for_timeout(3000)
            if line.count():
                return
        raise AssertionError(f"{name} never led to: {containing}")

    def images(self) -> np.ndarray:
        """[N,H,W], or in colour [N,H,W,3]: the images that are visible, as they were sent."""
        shown = self.page.locator(".fd-tiles img").locator("visible=true").all()
        urls = [image.get_attribute("src").partition(",")[2] for image in shown]
        return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(url)))) for url in urls])

    def give(self, picture: Path, place: int = 0) -> None:
        """Put a picture into one of the open tab's places for them."""
        self.page.locator("[role=tabpanel]:visible input[type=file]").nth(place).set_input_files(picture)

    def paint(self, drawn: Callable[[np.ndarray], bool]) -> None:
        """A stroke of the brush across the middle of the picture, once that is drawn, and until the stroke is."""
        self.page.locator("#editor canvas").first.wait_for()
        self._until(drawn, lambda: None)
        self.page.locator("#editor").get_by_role("button", name="Brush", exact=True).click()
        self._until(lambda seen: (seen[..., 0] - seen[..., 2] > 80).sum() > 500, self._stroke)  # orange

    def _stroke(self) -> None:
        box = self.page.locator("#editor canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 90, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 90, y + 30, steps=8)  # each is a frame that the processor draws
        self.page.mouse.up()

    def _until(self, holds: Callable[[np.ndarray], bool], act: Callable[[], None]) -> None:
        """Do it again and again until this holds of the canvas [H,W,3]: no event says what is drawn."""
        for _ in range(SECONDS // 2):
            act()
            self.page.wait_for_timeout(2000)
            shown = self.page.locator("#editor canvas").first.screenshot()
            if holds(np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(int)):
                return
        raise AssertionError("the editor's canvas never showed it")

    def keep(self, name: str) -> None:
        """A screenshot, if they are wanted."""
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"], "the page is wider than its window"
        if folder := os.environ.get("FASTDIFF_SCREENSHOTS"):
            self.page.mouse.move(0, 0)
            self.page.wait_for_timeout(500)  # for the button to fade
            taken = Image.open(io.BytesIO(self.page.screenshot(full_page=True)))
            taken.convert("RGB").save(Path(folder) / f"{name}.png", optimize=True)

    def leave(self) -> None:
        """Nothing went wrong, and nothing was asked of anyone but the server."""
        self.page.close()
        assert not self.errors
        outside = [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))]
        assert not outside


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def visitor(request: pytest.FixtureRequest, browser, address) -> Iterator[Visitor]:
    visitor = Visitor(browser, address, request.param)
    visitor.name = "" if request.param is DESKTOP else "_phone"  # pyright: ignore[reportAttributeAccessIssue]
    yield visitor
    visitor.leave()


def test_a_visit(visitor) -> None:
    """Sampled, filled in, interpolated; the pictures are those of the library, to the bit."""
    visitor.press("Sample")
    said = visitor.status("images/s")
    assert re.match(r"10 images in \d+\.\d\d s: \d+\.\d images/s", said)
    assert "fastdiff sample --checkpoint fashion-mnist --n 10 --sampler dpmpp --steps 20 --seed 0" in said
    model = fastdiff.load("fashion-mnist")
    expected = fastdiff.to_uint8(fastdiff.sample(model, 10, classes=list(range(10)), progress=False))
    assert np.abs(visitor.images().astype(int) - expected[..., 0].numpy()).max() <= 1  # other thread counts
    visitor.keep(f"demo_sample{visitor.name}")

    visitor.open("Inpaint")
    visitor.press("Take a sample")
    visitor.paint(lambda seen: (seen.max(-1) < 40).mean() > 0.05)  # garments are on black
    visitor.set("Steps", 25)
    visitor.press("Fill in")
    visitor.status("4 images in")
    taken = fastdiff.to_uint8(fastdiff.sample(model, 1, classes=0, progress=False))[0, ..., 0].numpy()
    changed = (np.abs(visitor.images().astype(int) - taken) > 1).any(0)
    rows = np.flatnonzero(changed.any(1))
    assert changed.any() and rows.min() >= 8 and rows.max() <= 24, "a band in the middle, and nothing else"
    visitor.keep(f"demo_inpaint{visitor.name}")

    visitor.open("Interpolate")
    visitor.press("Interpolate")
    assert "--seeds 0 1 --n 8 --steps 50 --class t-shirt" in visitor.status("images/s")
    row = fastdiff.to_uint8(fastdiff.interpolate(model, 0, 1, 8, classes=0, progress=False))[..., 0]
    assert np.abs(visitor.images().astype(int) - row.numpy()).max() <= 1
    visitor.keep(f"demo_interpolate{visitor.name}")


def test_steps_arrive_and_stop_stops(browser, address) -> None:
    visitor = Visitor(browser, address, DESKTOP)
    visitor.set("Images", 64)
    visitor.set("Steps", 250)
    visitor.press("Sample")
    said = visitor.status(STEP)
    first = visitor.images()
    while visitor.status(STEP) == said:
        visitor.page.wait_for_timeout(100)
    assert not np.array_equal(first, visitor.images()) and len(first) == 64
    visitor.press("Stop")
    visitor.status("stopped")
    last = visitor.images()
    visitor.page.wait_for_timeout(1500)
    assert np.array_equal(last, visitor.images())
    visitor.set("Images", 2)
    visitor.set("Steps", 3)
    visitor.press("Sample")  # the model is free again
    visitor.status("2 images in")
    visitor.leave()


def test_another_model_brings_its_own_choices(browser, address) -> None:
    visitor = Visitor(browser, address, DESKTOP)
    visitor.choose("fashion-mnist-few")
    steps = visitor.page.get_by_label("number input for Steps").locator("visible=true")
    visitor.page.wait_for_function("field => field.value === '2'", arg=steps.element_handle())
    visitor.press("Sample")
    said = visitor.status("images/s")
    assert "--checkpoint fashion-mnist-few --n 10 --sampler consistency --steps 2 --seed 0" in said
    few = fastdiff.load("fashion-mnist-few")
    expected = fastdiff.to_uint8(fastdiff.sample(few, 10, classes=list(range(10)), progress=False))
    assert np.abs(visitor.images().astype(int) - expected[..., 0].numpy()).max() <= 1
    visitor.leave()


def test_the_model_in_colour(browser, address) -> None:
    visitor, model = Visitor(browser, address, DESKTOP), fastdiff.load("emoji")
    visitor.choose("emoji")
    images = visitor.page.get_by_label("number input for Images").locator("visible=true")
    visitor.page.wait_for_function("field => field.value === '9'", arg=images.element_handle())
    visitor.set("Guidance scale", 2)
    visitor.press("Sample")
    assert "--checkpoint emoji --n 9" in visitor.status("images/s")
    expected = fastdiff.sample(model, 9, classes=list(range(9)), guidance_scale=2.0, progress=False)
    assert np.abs(visitor.images().astype(int) - fastdiff.to_uint8(expected).numpy()).max() <= 2
    visitor.keep("demo_emoji_sample")

    visitor.open("Inpaint")
    visitor.press("Take a sample")
    visitor.paint(lambda seen: (np.ptp(seen, axis=-1) > 60).mean() > 0.03)  # colours on white
    visitor.set("Steps", 20)
    visitor.press("Fill in")
    visitor.status("4 images in")
    assert visitor.images().shape == (4, 64, 64, 3)

    visitor.open("Interpolate")
    visitor.press("Interpolate")
    visitor.status("images/s")
    assert visitor.images().shape == (8, 64, 64, 3)
    visitor.leave()


def test_who_leaves_frees_the_model(browser, address) -> None:
    visitors = [Visitor(browser, address, DESKTOP) for _ in range(2)]
    for visitor in visitors:
        visitor.set("Images", 64)
        visitor.set("Steps", 250)
    visitors[0].press("Sample")
    visitors[0].status(STEP)
    visitors[0].page.close()
    visitors[1].press("Sample")
    visitors[1].status(STEP)
    visitors[1].leave()


def test_two_visitors_wait_for_each_other(browser, address) -> None:
    visitors = [Visitor(browser, address, DESKTOP) for _ in range(2)]
    for visitor, n in zip(visitors, (3, 5), strict=True):
        visitor.set("Images", n)
        visitor.press("Sample")
    for visitor, n in zip(visitors, (3, 5), strict=True):
        visitor.status(f"{n} images in")
        assert len(visitor.images()) == n
        visitor.leave()


def test_pictures_that_are_given(browser, address, tmp_path) -> None:
    """They are fitted to the model's size, in the editor and between two."""
    ramp = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(255 - ramp).save(tmp_path / "b.png")
    visitor = Visitor(browser, address, DESKTOP)
    visitor.open("Inpaint")
    visitor.press("Fill in")
    visitor.status("there is no picture to fill in")
    visitor.give(tmp_path / "a.png")
    visitor.press_until("Fill in", "nothing is hidden yet")

    visitor.open("Interpolate")
    visitor.page.get_by_label("two pictures").check()
    visitor.press("Interpolate")
    visitor.status("give two pictures")
    visitor.give(tmp_path / "a.png")
    visitor.give(tmp_path / "b.png", 1)
    visitor.set("Frames", 3)
    visitor.press_until("Interpolate", "3 images in")
    first, _, last = visitor.images().astype(int)
    assert first.shape == (32, 32)
    assert (first[:, -1] > first[:, 0]).all() and (last[:, -1] < last[:, 0]).all(), "the ramps, up and down"
    visitor.leave()
