"""Pictures and progress of ``fastdiff demo`` as HTML: each image once, at its own size, enlarged by the browser."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from fastdiff.cli.demo_run import Frame

# At most so many tiles are so wide: in pixels, or in the page's width where that is less.
_WIDTHS = ((4, "min(200px, 45%)"), (16, "min(108px, 28%)"), (64, "min(72px, 18%)"))
STYLE = """
.gradio-container { width: 100%; max-width: 1120px !important; margin: 0 auto !important; }
.fd-head h1 { margin: 0; font-size: 1.6rem; }
.fd-head p { margin: 0; opacity: .75; }
.fd-seed { align-items: end; }
.fd-seed button { margin-bottom: 14px; }
.fd-tiles { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(var(--tile), 1fr)); }
.fd-tiles.fd-one { grid-template-columns: minmax(0, 360px); }
.fd-tiles figure { margin: 0; }
.fd-tiles img { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; }
.fd-tiles figcaption { font-size: .75rem; line-height: 1.5; text-align: center; opacity: .8; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.fd-empty { display: grid; place-items: center; min-height: 200px; padding: 1rem; text-align: center; opacity: .6;
  border: 1px dashed var(--border-color-primary); border-radius: 8px; }
.fd-run { display: grid; gap: .35rem; font-size: .9rem; }
.fd-status .fd-run { min-height: 3.4rem; align-content: start; }
.fd-run progress { width: 100%; height: 6px; accent-color: var(--color-accent); }
.fd-run code { font-size: .8rem; overflow-wrap: anywhere; }
"""


def tiles(frame: Frame) -> str:
    """The images in a grid that fits the page's width, each with its caption."""
    width = next((w for most, w in _WIDTHS if len(frame.pixels) <= most), _WIDTHS[-1][1])
    one = " fd-one" if len(frame.pixels) == 1 else ""
    figures = "".join(map(_figure, frame.pixels, frame.captions))
    return f'<div class="fd-tiles{one}" style="--tile: {width}">{figures}</div>'


def _figure(pixels: np.ndarray, caption: str) -> str:
    said = escape(caption)
    below = f"<figcaption>{said}</figcaption>" if caption else ""
    return f'<figure><img alt="{said or "sample"}" src="{data_url(pixels)}">{below}</figure>'


def data_url(pixels: np.ndarray) -> str:
    """An image [H,W,C] uint8 as a PNG in a URL."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def progress(frame: Frame, command: str = "") -> str:
    """How far a run is, or how long it took and the command that makes the same images."""
    if not frame.done:
        bar = f'<progress value="{frame.step}" max="{frame.steps}"></progress>'
        return f'<div class="fd-run">{bar}<span>step {frame.step} of {frame.steps}</span></div>'
    n = len(frame.pixels)
    rate = f"{n} image{'s' * (n > 1)} in {frame.seconds:.2f} s: {n / frame.seconds:.1f} images/s"
    same = f"<code>{escape(command)}</code>" if command else ""
    return f'<div class="fd-run"><span>{rate}</span>{same}</div>'


def note(text: str) -> str:
    """A line in the place of the progress."""
    return f'<div class="fd-run"><span>{escape(text)}</span></div>'


def empty(text: str) -> str:
    """What stands in the place of images that are not there yet."""
    return f'<div class="fd-empty">{escape(text)}</div>'
