"""The page of ``fastdiff demo`` in Gradio: its fields, and which of ``demo_run``'s runs each button starts."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from fastdiff.choices import INPAINTING, INVERSION
from fastdiff.cli import demo_html as html
from fastdiff.cli import demo_run as run
from fastdiff.cli.demo_fields import ONE_RUN, QUICK, Fields, Run, gradio, told
from fastdiff.cli.demo_run import EACH, NO_CLASS, Shown
from fastdiff.cli.inpaint import UNKNOWN_COLOUR
from fastdiff.errors import FastdiffError

CANVAS = 512  # pixels of the picture that is painted on
SEEDS, PICTURES = "two seeds", "two pictures"
_BRUSH = "#{:02x}{:02x}{:02x}".format(*UNKNOWN_COLOUR)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def launch(page: Any, host: str, port: int | None, browser: bool) -> str:
    """Serve the page, in threads of its own; returns its address.

    Raises:
        OSError: there is no such address, or the port is taken.
    """
    gr = gradio()
    theme = gr.themes.Soft(primary_hue="indigo", font=_FONTS, font_mono=_MONO).set(
        block_title_background_fill="none",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
        block_label_background_fill="*block_background_fill",
        block_label_text_color="*body_text_color",
    )
    _, address, _ = page.queue(default_concurrency_limit=4).launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        theme=theme,
        css=html.STYLE,
    )
    # A tab that is closed while it loads is a page of traceback in the terminal otherwise. What the functions of this
    # page raise is printed all the same.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return address


def make_page(models: Mapping[str, Shown]) -> Any:
    """The page, not yet served."""
    gr = gradio()
    with gr.Blocks(title="fastdiff", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML('<div class="fd-head"><h1>fastdiff</h1><p>Images from noise, step by step.</p></div>')
        fields = Fields(gr, models)
        with gr.Tab("Sample"):
            _sample_tab(gr, fields)
        with gr.Tab("Inpaint"):
            _inpaint_tab(gr, fields)
        with gr.Tab("Interpolate"):
            _interpolate_tab(gr, fields)
        fields.connect(page)
    return page


def _buttons(gr: Any, name: str) -> tuple[Any, Any]:
    with gr.Row():
        return gr.Button(name, variant="primary", min_width=120), gr.Button("Stop", min_width=80, scale=0)


def _sample_tab(gr: Any, fields: Fields) -> None:
    def usual_count(shown: Shown) -> int:
        kinds = len(shown.class_names)
        return kinds if 0 < kinds <= 16 else 9

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = fields.classes(EACH)
            n = fields.count("Images", usual_count)
            sampler, steps = fields.method()
            guidance = fields.add(
                gr.Slider,
                lambda shown: {"visible": shown.guidable},
                label="Guidance scale",
                info="1: none; above 1: more typical of its class, for twice the work",
                value=1,
                minimum=1,
                maximum=8,
                step=0.5,
            )
            seed = fields.seed()
            start, stop = _buttons(gr, "Sample")
        with gr.Column(scale=3, min_width=320):
            results = fields.results("The images appear here, while they are made.")
    fields.started(start, stop, _sampled, [chosen, n, sampler, steps, guidance, seed], results)


def _sampled(
    shown: Shown, chosen: str | None, n: int, sampler: str, steps: int, guidance: float, seed: int | None
) -> Run:
    frames = run.sample(shown, chosen, n, sampler, steps, guidance, seed)
    words = ["--n", n, "--sampler", sampler, "--steps", steps, "--seed", seed]
    if chosen == NO_CLASS:
        return frames, ""  # which the command line does not offer
    if shown.class_names and chosen != EACH:
        words += ["--classes", chosen]
    return frames, _command(
        "sample", shown, *words, *(["--guidance-scale", guidance] if guidance != 1 else [])
    )


def _command(name: str, shown: Shown, *words: Any) -> str:
    return shlex.join(["fastdiff", name, "--checkpoint", shown.name, *map(str, words)])


def _inpaint_tab(gr: Any, fields: Fields) -> None:
    with gr.Row():
        chosen, n = fields.classes(), fields.count("Completions", lambda shown: 4)
        sampler, steps = fields.method(INPAINTING)
        seed = fields.seed()
    with gr.Row():
        with gr.Column(min_width=320):
            gr.HTML(html.note("Take a sample or put in a picture; paint over what to fill in."))
            known = fields.add(gr.State, lambda shown: {"value": None})
            editor = fields.add(
                gr.ImageEditor,
                lambda shown: {"value": None},
                label="Picture and mask",
                show_label=False,  # it would lie over the tools
                placeholder="Take a sample, or put a picture here",
                image_mode="RGBA",
                format="png",
                type="pil",
                sources=("upload", "clipboard"),
                buttons=[],
                transforms=(),
                layers=False,
                brush=gr.Brush(CANVAS // 16, [_BRUSH], color_mode="fixed"),
                canvas_size=(CANVAS, CANVAS),
                height=CANVAS,
                elem_id="editor",
            )
            take = gr.Button("Take a sample")
        with gr.Column(min_width=320):
            start, stop = _buttons(gr, "Fill in")
            results = fields.results("The picture, filled in, appears here.")
    taken = told(gr, lambda name, *of: _painted(_one_sample(fields.models[name], *of)))
    take.click(taken, [fields.model, chosen, seed], [known, editor], show_progress_on=editor, **ONE_RUN)
    fitted = told(gr, lambda name, painted: _painted(fields.models[name].fitted(painted["background"])))
    editor.upload(fitted, [fields.model, editor], [known, editor], **QUICK)
    editor.clear(lambda: None, None, known, **QUICK)
    fields.started(start, stop, _filled, [known, editor, chosen, n, sampler, steps, seed], results)


def _one_sample(shown: Shown, chosen: str | None, seed: int | None) -> np.ndarray:
    *_, last = run.sample(shown, chosen, 1, *shown.usual(), 1, seed)
    return last.pixels[0]


def _painted(pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """A picture of the model's size, and what the editor shows of it: enlarged, nothing painted yet."""
    zoom = max(1, CANVAS // len(pixels))
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    large = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    return pixels, {"background": large, "layers": [], "composite": None}


def hidden(layers: list[Image.Image], size: int) -> np.ndarray:
    """[size,size] bool: where a quarter of a pixel or more is painted over, on any layer."""
    mask = np.zeros((size, size), bool)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        mask |= np.asarray(alpha.resize((size, size), Image.Resampling.BOX)) >= 64
    return mask


def _filled(
    shown: Shown,
    known: np.ndarray | None,
    painted: dict[str, Any] | None,
    chosen: str | None,
    n: int,
    sampler: str,
    steps: int,
    seed: int | None,
) -> Run:
    mask = None if painted is None else hidden(painted["layers"], shown.size)
    return run.inpaint(shown, known, mask, chosen, n, sampler, steps, seed), ""


def _interpolate_tab(gr: Any, fields: Fields) -> None:
    with gr.Row():
        with gr.Column(min_width=300):
            between = gr.Radio([SEEDS, PICTURES], value=SEEDS, label="Between")
            with gr.Column() as seeds:
                first, last = fields.seed("First seed", 0), fields.seed("Last seed", 1)
            with gr.Row(visible=False) as pictures:
                ends = [
                    gr.Image(label=name, type="pil", sources=["upload", "clipboard"], buttons=[], height=200)
                    for name in ("First picture", "Last picture")
                ]
        with gr.Column(min_width=300):
            chosen, n = fields.classes(), fields.count("Frames", lambda shown: 8)
            _, steps = fields.method(INVERSION, choose=False)
    start, stop = _buttons(gr, "Interpolate")
    results = fields.results("The images between the two appear here.")
    between.change(
        lambda kind: [gr.update(visible=kind == SEEDS), gr.update(visible=kind == PICTURES)],
        between,
        [seeds, pictures],
        **QUICK,
    )
    fields.started(start, stop, _between, [between, first, last, *ends, chosen, n, steps], results)


def _between(
    shown: Shown,
    kind: str,
    first: int | None,
    last: int | None,
    picture: Image.Image | None,
    last_picture: Image.Image | None,
    chosen: str | None,
    n: int,
    steps: int,
) -> Run:
    if kind == SEEDS:
        seeds = run.whole(first), run.whole(last)
        words = ["--seeds", *seeds, "--n", n, "--steps", steps]
        if shown.label(chosen) is not None:
            words += ["--class", chosen]
        return run.interpolate(shown, *seeds, n, chosen, steps), _command("interpolate", shown, *words)
    if picture is None or last_picture is None:
        raise FastdiffError("give two pictures to interpolate between")
    ends = shown.fitted(picture), shown.fitted(last_picture)
    return run.interpolate(shown, *ends, n, chosen, steps), ""
