"""``fastdiff demo``: a page in the browser to sample, inpaint and interpolate."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from fastdiff.cli.options import Device
from fastdiff.errors import FastdiffError


@dataclass(frozen=True)
class Demo:
    """Open a page in the browser: sample and watch the steps arrive, fill in what a brush hides, interpolate.

    The page is served by this computer, to this computer alone unless HOST says otherwise, and loads nothing from the
    network. Ctrl-C ends it. Needs Gradio: pip install 'fastdiff[demo]'.
    """

    checkpoint: Annotated[tuple[str, ...], arg(aliases=["-c"])] = ()
    """Models to choose from: checkpoints, or names of bundled or fetched models. Default: the bundled ones."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other computers in."""
    port: int | None = None
    """Port to serve on. Default: the first free one from 7860."""
    browser: bool = True
    """Open the page in a browser."""
    device: Device = "auto"

    def run(self) -> int:
        from fastdiff.bench.machine import device_name
        from fastdiff.cli.demo_fields import gradio
        from fastdiff.cli.demo_page import launch, make_page
        from fastdiff.cli.demo_run import load_models

        gradio()  # before the models, in case it is missing
        models = load_models(self.checkpoint, self.device)
        page = make_page(models)
        try:
            address = launch(page, self.host, self.port, self.browser)
        except OSError as error:
            where = f"{self.host}:{self.port or '7860 to 7959'}"
            raise FastdiffError(f"cannot serve on {where}: give another --host or --port ({error})") from None
        print(f"device     {device_name(self.device)}")
        print(f"models     {', '.join(models)}")
        print(f"page       {address}    (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        page.close(verbose=False)
        return 0
