"""Fields of the page of ``fastdiff demo`` that follow the chosen model, and the buttons that start and stop runs."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any, get_args

from fastdiff.choices import SamplerName, Usual
from fastdiff.cli import demo_html as html
from fastdiff.cli.demo_run import Frames, Shown
from fastdiff.errors import FastdiffError

Run = tuple[Frames, str]  # frames, and the command that makes the same images
Work = Callable[..., Run]

MOST_SEED = 2**32 - 1
ONE_RUN = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}  # at a time
QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def gradio() -> Any:
    """The package, which is told to report nothing to its makers.

    Raises:
        FastdiffError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise FastdiffError("the demo needs Gradio: pip install 'fastdiff[demo]'") from None


class Fields:
    """Fields with properties that depend on the model: made for one, and set anew for another."""

    def __init__(self, gr: Any, models: Mapping[str, Shown]) -> None:
        self.gr, self.models = gr, models
        self.first = next(iter(models.values()))
        self._running: dict[tuple[str | None, Any], Frames] = {}  # by visitor and button
        self._updates: list[tuple[Any, Callable[[Shown], Any]]] = []
        self.model = self.add(
            gr.Dropdown,
            lambda shown: {"info": shown.about},
            choices=list(models),
            value=self.first.name,
            label="Model",
            elem_id="model",
        )

    def add(self, kind: Any, varying: Callable[[Shown], dict[str, Any]], **fixed: Any) -> Any:
        """A component of a kind with these properties, of which ``varying`` gives those that depend on the model."""
        component = kind(**fixed, **varying(self.first))
        self._updates.append((component, varying))
        return component

    def connect(self, page: Any) -> None:
        """Let the choice of a model set the fields, and a visitor's leaving end what runs for him."""

        def updated(name: str) -> list[Any]:
            return [self.gr.update(**varying(self.models[name])) for _, varying in self._updates]

        def left(request: Any) -> None:
            self._stop(request)

        left.__annotations__["request"] = self.gr.Request
        page.unload(left)
        self.model.change(updated, self.model, [component for component, _ in self._updates], **QUICK)

    def _stop(self, request: Any, start: Any = None) -> None:
        """End what runs for a visitor: what this button has started, or all."""
        for (visitor, button), frames in list(self._running.items()):
            if visitor == request.session_hash and start in (None, button):
                frames.stop()

    def classes(self, *before: str) -> Any:
        return self.add(
            self.gr.Dropdown,
            lambda shown: {
                "choices": [*before, *shown.classes],
                "value": next(iter([*before, *shown.class_names]), None),
                "visible": bool(shown.class_names),
            },
            label="Class",
        )

    def count(self, label: str, wanted: Callable[[Shown], int]) -> Any:
        """A number of images, 1 to what the model can make at a time."""
        return self.add(
            self.gr.Slider,
            lambda shown: {"maximum": shown.most, "value": min(wanted(shown), shown.most)},
            label=label,
            minimum=1,
            step=1,
        )

    def method(self, usual: Usual | None = None, choose: bool = True) -> tuple[Any, Any]:
        """Sampler (if it is to be chosen) and number of steps, which are the model's usual ones at first."""
        sampler = self.add(
            self.gr.Dropdown,
            lambda shown: {"value": shown.usual(usual)[0]},
            choices=list(get_args(SamplerName)),
            label="Sampler",
            visible=choose,
        )
        steps = self.add(
            self.gr.Slider,
            lambda shown: {"value": shown.usual(usual)[1]},
            label="Steps",
            minimum=1,
            maximum=250,
            step=1,
        )
        return sampler, steps

    def seed(self, label: str = "Seed", value: int = 0) -> Any:
        """A seed, and a button that draws another."""
        gr = self.gr
        with gr.Row(elem_classes="fd-seed"):
            seed = gr.Number(value, label=label, precision=0, minimum=0, maximum=MOST_SEED, min_width=80)
            new = gr.Button("New seed", size="sm", min_width=90, scale=0)
        new.click(lambda: random.randint(0, MOST_SEED), None, seed, **QUICK)
        return seed

    def results(self, hint: str) -> tuple[Any, Any]:
        """Where a run's images and its progress are shown."""
        pictures = self.gr.HTML(html.empty(hint), elem_classes="fd-pictures")
        return pictures, self.gr.HTML(html.note(""), elem_classes="fd-status")

    def started(self, start: Any, stop: Any, work: Work, inputs: list[Any], results: tuple[Any, Any]) -> None:
        """Let one button start ``work`` with the model and the inputs, and the other stop it."""
        gr, running = self.gr, self._running

        def shown(request: Any, name: str, *values: Any) -> Iterator[tuple[Any, str]]:
            key = request.session_hash, start
            try:
                running[key], command = work(self.models[name], *values)
                for frame in running[key]:
                    yield html.tiles(frame), html.progress(frame, command)
                if running[key].stopped:
                    yield gr.skip(), html.note("stopped")
            except FastdiffError as error:
                yield gr.skip(), html.note(str(error))
                raise message(gr, error) from None
            finally:
                if key in running:
                    running.pop(key).stop()

        def stopped(request: Any) -> None:
            self._stop(request, start)

        for function in (shown, stopped):
            function.__annotations__["request"] = gr.Request  # Gradio looks for the class, not for its name
        start.click(
            shown,
            [self.model, *inputs],
            list(results),
            show_progress="minimal",
            show_progress_on=results[1],
            **ONE_RUN,
        )
        stop.click(stopped, None, None, **QUICK)


def message(gr: Any, error: FastdiffError) -> Exception:
    """What Gradio shows over the page."""
    return gr.Error(escape(str(error)), title="Not possible", print_exception=False)


def told(gr: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose FastdiffError becomes a message in the page."""

    def telling(*values: Any) -> Any:
        try:
            return function(*values)
        except FastdiffError as error:
            raise message(gr, error) from None

    return telling
