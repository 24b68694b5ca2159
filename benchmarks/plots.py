"""The pictures of docs/img, drawn from results files.

    python benchmarks/plots.py FILE [FOLDER]

FILE is a results file of suite.py, models.py, samplers.py or few_steps.py, or the log of a training run; what it is of
decides what is drawn: bars.png and roofline.png, engine.png, samplers.png, few_steps.png, or the loss, NAME_loss.png of
NAME_log.jsonl. FOLDER is docs/img if left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from parts.plots import few_steps, loss_curve, models, samplers, suite

DRAW = {"suite": suite.draw, "models": models.draw, "samplers": samplers.draw, "few_steps": few_steps.draw}


def main(file: Path, folder: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        target = folder / f"{file.stem.removesuffix('_log')}_loss.png"
        loss_curve.draw([json.loads(line) for line in text.splitlines()], target)
        return
    content = json.loads(text)
    DRAW[content["about"]["program"]](content, folder)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    images = Path(__file__).resolve().parent.parent / "docs" / "img"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else images)
