"""``fastdiff fetch``: published checkpoints, downloaded by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastdiff.cli.options import Progress
from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from fastdiff.checkpoint.released import Released


@dataclass(frozen=True)
class Fetch:
    """Download published checkpoints by name, and check them.

    They go to the folder $FASTDIFF_CACHE or, without it, to the platform's, such as ~/.cache/fastdiff. A download that
    was stopped is continued by the same command. Afterwards the name serves as --checkpoint. docs/checkpoints.md lists
    the files.
    """

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Name of a preset, such as adm-64, or of its file, such as 64x64_diffusion.pt."""
    list: bool = False
    """List the published checkpoints: name, size, whether it is downloaded, address."""
    progress: Progress = True

    def run(self) -> int:
        from fastdiff.checkpoint.fetch import fetch
        from fastdiff.checkpoint.released import released

        if self.list:
            print(_listing())
            return 0
        if not self.names:
            raise FastdiffError("give the name of a checkpoint; fastdiff fetch --list shows all")
        for row in [released(name) for name in self.names]:
            print(f"{row.name} from {row.address}", flush=True)
            compared = fetch(row, self.progress)
            print(f"file      {row.path}\nchecked   {compared}\nsample    {sample_command(row)}")
        return 0


def sample_command(row: Released) -> str:
    """A command that uses the checkpoint; classifiers and upsamplers are used with a denoiser."""
    from fastdiff.models import ClassifierConfig
    from fastdiff.zoo import PRESETS

    model = PRESETS[row.name].model
    base, _, last = row.name.rpartition("-")
    if isinstance(model, ClassifierConfig):
        return f"fastdiff sample --checkpoint {base} --classifier {row.name} --n 4"
    if model.low_res is not None:
        return f"fastdiff sample --checkpoint {base} --upsampler {row.name} --n 4"
    return f"fastdiff sample --checkpoint {row.name} --n 4"


def _listing() -> str:
    from fastdiff.bench.costs import costs
    from fastdiff.bench.words import columns
    from fastdiff.checkpoint.released import RELEASED, cache

    rows = [("name", "size", "here", "address")]
    for row in RELEASED.values():
        # A file is the weights in float32 and 0.01% more.
        size = row.size or 4 * costs()[row.name].parameters
        about = "" if row.size else "about "
        rows.append(
            (row.name, f"{about}{size / 1e9:.2f} GB", "yes" if row.path.is_file() else "-", row.address)
        )
    return f"{columns(rows, right=(1,))}\n\nFolder: {cache()}. The name is also the preset's."
