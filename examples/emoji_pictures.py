"""A folder of colour pictures to train on: Noto Color Emoji, in Unicode's nine groups, which become the classes.

    python examples/emoji_pictures.py emoji [--skin-tones] [--size 64]

On Debian and Ubuntu: apt-get install fonts-noto-color-emoji unicode-data. The font (Google, SIL Open Font License
1.1) has bitmaps of 136x128 pixels whose outer 4 columns are empty; the middle 128x128 are drawn on white, one PNG each,
named after its code points. Unicode's emoji-test.txt says which emoji there are and what group each is in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from fastdiff.errors import FastdiffError

WIDTH, SIZE = 136, 128  # pixels of the font's bitmaps
STRIKE = 109  # the one size, in the font's own units, that the bitmaps are for
CLASSES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
TONES = range(0x1F3FB, 0x1F400)
_LINE = re.compile(r"(?P<points>[0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (?P<name>.+)")


@dataclass(frozen=True)
class Options:
    """Draw the emoji of a font into a folder with one folder for each class."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write."""
    size: int = SIZE
    """Image size in pixels; smaller ones are the means of squares of pixels."""
    skin_tones: bool = False
    """Draw people and hands in five skin tones, too, rather than in yellow alone."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The font."""
    emoji_test: Path = Path("/usr/share/unicode/emoji/emoji-test.txt")
    """Unicode's list of emoji."""


class Emoji(NamedTuple):
    """An emoji: its class, its text and its name, as in ("animals", "\\U0001f412", "monkey")."""

    group: str
    text: str
    name: str


def listed(emoji_test: Path, *, skin_tones: bool) -> Iterator[Emoji]:
    """All emoji of Unicode's list, in its order.

    Raises:
        FastdiffError: no such file.
    """
    try:
        lines = emoji_test.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FastdiffError(f"cannot read {emoji_test}; on Debian: apt-get install unicode-data") from error
    group = ""
    for line in lines:
        if line.startswith("# group: "):
            group = CLASSES.get(line.removeprefix("# group: "), "")
        found = _LINE.fullmatch(line)
        if found is None or not group:
            continue
        points = [int(point, 16) for point in found["points"].split()]
        if skin_tones or not any(point in TONES for point in points):
            yield Emoji(group, "".join(map(chr, points)), found["name"])


def draw(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The emoji on white, 128x128 RGB; None if the font has no single picture for it."""
    if round(font.getlength(text)) != WIDTH:
        return None
    page = Image.new("RGB", (WIDTH, SIZE), "white")
    ImageDraw.Draw(page).text((0, 0), text, font=font, embedded_color=True)
    margin = (WIDTH - SIZE) // 2
    picture = page.crop((margin, 0, WIDTH - margin, SIZE))
    return None if picture.getextrema() == ((255, 255),) * 3 else picture


def load_font(path: Path) -> ImageFont.FreeTypeFont:
    """The font at the size of its bitmaps.

    Raises:
        FastdiffError: no such font, or one without bitmaps of this size.
    """
    try:
        return ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise FastdiffError(
            f"cannot read {path} as a font with bitmaps of {SIZE} pixels; on Debian: "
            "apt-get install fonts-noto-color-emoji"
        ) from error


def write(options: Options) -> Counter[str]:
    """Write the pictures, each once.

    Returns:
        Number of pictures of each class.

    Raises:
        FastdiffError: missing files, or a size that does not divide 128.
    """
    if options.size < 1 or SIZE % options.size:
        raise FastdiffError(f"the size must divide {SIZE}, got {options.size}")
    font, seen, counts = load_font(options.font), set[bytes](), Counter[str]()
    for emoji in tqdm([*listed(options.emoji_test, skin_tones=options.skin_tones)], "drawing", unit="img"):
        picture = draw(emoji.text, font)
        if picture is None or picture.tobytes() in seen:  # some flags are drawn alike
            continue
        seen.add(picture.tobytes())
        folder = options.out / emoji.group
        folder.mkdir(parents=True, exist_ok=True)
        name = "-".join(f"{ord(char):x}" for char in emoji.text)
        picture.reduce(SIZE // options.size).save(folder / f"{name}.png")
        counts[emoji.group] += 1
    return counts


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        counts = write(options)
    except FastdiffError as error:
        raise SystemExit(f"emoji_pictures: {error}") from None
    print(f"{counts.total()} pictures in {options.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))


if __name__ == "__main__":
    main()
