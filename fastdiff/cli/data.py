"""``fastdiff data check``: what a data set holds, and whether a model can be trained on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from fastdiff.cli.options import Progress
from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from fastdiff.data.readers import Arrays, EncodedImages

_LISTED = 12  # rows of sizes, classes, duplicates and broken images; --json has all


@dataclass(frozen=True)
class Check:
    """Check images before training: counts, classes, sizes, colours, duplicates by content, broken files.

    Decodes every image. Exits with code 0 if fastdiff train can use all of DATA, else with 2.
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Images in any form that fastdiff train takes: a folder, .zip, shards, an IDX file, an .npz."""
    labels: Path | None = None
    """Labels file of an IDX images file. Default: found by its name beside the images."""
    json: bool = False
    """Print one JSON object, with all names, instead of a table."""
    progress: Progress = True

    def run(self) -> int:
        from fastdiff.data.images import whole_labels
        from fastdiff.data.readers import LeftOut, find_images
        from fastdiff.data.survey import count_classes, survey

        left_out = LeftOut(skip_broken=True)
        images = find_images(self.data, self.labels, left_out, progress=self.progress)
        labels = None if images.labels is None else whole_labels(images, self.data)
        found = survey(images, duplicates=True, progress=self.progress)
        broken = left_out.broken + found.broken
        doubles = [[images.name(i) for i in group] for group in found.duplicates]
        several = [labels is not None and len(set(labels[group].tolist())) > 1 for group in found.duplicates]
        about = {
            "data": str(self.data),
            "images": len(images),
            "classes": count_classes(labels, images.class_names),
            "sizes": [{"size": list(size), "images": count} for size, count in found.sizes.most_common()],
            "modes": dict(found.modes.most_common()),
            "left_out": dict(left_out.kinds.most_common()),
            "duplicates": doubles,
            "duplicates_in_several_classes": sum(several),
            "broken": broken,
        }
        trained = self._as_trained(images, found) if len(found.broken) < len(images) else {}
        about |= {"trained": trained, "ok": not broken}
        print(json.dumps(about, ensure_ascii=False) if self.json else "\n".join(_in_words(about)), flush=True)
        if broken:
            raise FastdiffError(
                f"{len(broken)} {'image' if len(broken) == 1 else 'images'} of {self.data} cannot be read: "
                "training would stop; mend or remove them, or give --skip-broken to fastdiff train"
            )
        return 0

    def _as_trained(self, images: Arrays | EncodedImages, found: Any) -> dict[str, int]:
        """What fastdiff train would choose without options.

        Raises:
            FastdiffError: it would not train.
        """
        from fastdiff.training.config import TrainConfig
        from fastdiff.training.setup import follow

        chosen, _ = follow(TrainConfig(self.data, Path(), labels=self.labels), images, found)
        return {name: getattr(chosen, name) for name in ("image_size", "channels", "num_classes")}


def _in_words(about: dict[str, Any]) -> list[str]:
    sizes = [f"{s['size'][0]}x{s['size'][1]} ({s['images']})" for s in about["sizes"]]
    doubles = [" = ".join(group) for group in about["duplicates"]]
    crossing = about["duplicates_in_several_classes"]
    lines = [
        ("images", f"{about['images']} in {about['data']}"),
        ("classes", _few([f"{name} {n}" for name, n in about["classes"].items()]) or "none"),
        ("sizes", _few(sizes)),
        ("modes", _few([f"{mode} ({n})" for mode, n in about["modes"].items()])),
        ("left out", _few([f"{n} {kind}" for kind, n in about["left_out"].items()]) or "nothing"),
        (
            "duplicates",
            f"{len(doubles)} pictures are there more than once, {crossing} of them in several classes"
            if doubles
            else "none",
        ),
        *(("", line) for line in _rows(doubles)),
        ("broken", str(len(about["broken"])) if about["broken"] else "none"),
        *(("", line) for line in _rows(about["broken"])),
    ]
    if about["trained"]:
        size, channels, classes = (about["trained"][k] for k in ("image_size", "channels", "num_classes"))
        kinds = f"{classes} classes" if classes else "no classes"
        colours = "grey" if channels == 1 else "RGB"
        lines.append(("training", f"{size}x{size}, {colours}, {kinds}, where no option says otherwise"))
    return [f"{name:<11}{text}" for name, text in lines]


def _few(items: list[str]) -> str:
    more = [f"... ({len(items) - _LISTED} more)"] if len(items) > _LISTED else []
    return ", ".join([*items[:_LISTED], *more])


def _rows(items: list[str]) -> list[str]:
    more = [f"... ({len(items) - _LISTED} more, which --json names)"] if len(items) > _LISTED else []
    return [*items[:_LISTED], *more]
