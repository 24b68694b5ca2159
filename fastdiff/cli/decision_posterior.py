"""``fastdiff decision posterior``: the full posterior of the decision model, with trials in a CSV file."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from fastdiff.choices import SHARED
from fastdiff.cli.decision_data import Data, Parameter
from fastdiff.cli.shared import check_folder
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path


@dataclass(frozen=True)
class SamplePosterior(Data):
    """Draw from the posterior of the decision model, given the trials in a CSV file, by the No-U-Turn sampler.

    Prints the summary and writes it to OUT (JSON); beside it, the draws (.nc, which ArviZ reads) and a picture of them
    (.png). It needs the packages nutpie and ArviZ.
    """

    subject: str | None = None
    """Column of the subjects, who are fitted together as draws from a group. Default: all trials are one subject's."""
    shared: tuple[Parameter, ...] = SHARED
    """Parameters that all subjects of a group share, if they are fitted."""
    chains: int = 4
    """Number of chains."""
    draws: int = 500
    """Number of draws of each chain, after tuning."""
    tune: int = 300
    """Number of tuning draws of each chain, which are not kept."""
    target_accept: float = 0.8
    """Acceptance rate that the step size is tuned to; a higher one, such as 0.95, helps against divergences."""
    seed: int = 0
    """Random seed."""
    out: Path = Path("out/posterior.json")
    """JSON file to write; its folder is created if it does not exist."""

    def run(self) -> int:
        from tqdm import tqdm

        from fastdiff import decision
        from fastdiff.decision import plots

        if self.out.suffix != ".json":
            raise FastdiffError(f"OUT must end in .json, got {self.out}")
        plots.pyplot("posterior")  # raises an error now, before the work, if matplotlib is missing
        table = self.table()
        used = self.used(table)
        sampling = {
            n: getattr(self, n) for n in ("shared", "chains", "draws", "tune", "target_accept", "seed")
        }
        with (
            warnings.catch_warnings(),  # the summary prints them
            tqdm(desc="sampling", unit="draw", disable=not self.progress, leave=False) as bar,
        ):
            warnings.simplefilter("ignore", UserWarning)

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = decision.sample_posterior(
                used.rt, used.choice, used.condition, subject=used.subject, progress=show, **sampling,
                **self.options(table),
            )  # fmt: skip
        check_folder(self.out.parent)
        with atomic_path(self.out) as path:
            path.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
        with atomic_path(self.out.with_suffix(".nc")) as path:
            found.data.to_netcdf(str(path))
        picture = plots.posterior_picture(found)
        with atomic_path(self.out.with_suffix(".png")) as path:
            picture.savefig(path, format="png")
        missing = f", {used.undecided} of them missing at the deadline" if used.undecided else ""
        print(f"trials          {len(used.rt)}{missing}")
        for text in self.left_out(table):
            print(f"                {text}")
        print(found.summary())
        print(f"wrote           {', '.join(str(self.out.with_suffix(s)) for s in ('.json', '.nc', '.png'))}")
        return 0
