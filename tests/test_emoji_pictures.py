"""examples/emoji_pictures.py: what Unicode lists is drawn once each, in its group's folder."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from fastdiff.errors import FastdiffError

EXAMPLES = Path(__file__).parent.parent / "examples"
LISTED = """
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # \U0001f600 E1.0 grinning face
263A FE0F                                  ; fully-qualified     # \u263a\ufe0f E0.6 smiling face
263A                                       ; unqualified         # \u263a E0.6 smiling face
# group: People & Body
1F44D                                      ; fully-qualified     # \U0001f44d E0.6 thumbs up
1F44D 1F3FD                                ; fully-qualified     # \U0001f44d\U0001f3fd E1.0 thumbs up: medium skin tone
# group: Component
1F3FD                                      ; component           # \U0001f3fd E1.0 medium skin tone
# group: Flags
1F1EB 1F1F7                                ; fully-qualified     # \U0001f1eb\U0001f1f7 E2.0 flag: France
1F1F2 1F1EB                                ; fully-qualified     # \U0001f1f2\U0001f1eb E2.0 flag: St. Martin
"""


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    pytest.importorskip("tyro", reason="tyro is not installed")
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "emoji_pictures.py")))


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    (tmp_path / "emoji-test.txt").write_text(LISTED, encoding="utf-8")
    return tmp_path / "emoji-test.txt"


def test_what_is_listed(example, listing: Path) -> None:
    names = [emoji.name for emoji in example.listed(listing, skin_tones=False)]
    assert names == ["grinning face", "smiling face", "thumbs up", "flag: France", "flag: St. Martin"]
    toned = [*example.listed(listing, skin_tones=True)]
    assert toned[3] == ("people", "\U0001f44d\U0001f3fd", "thumbs up: medium skin tone")


def test_what_is_missing_is_named(example, tmp_path: Path, listing: Path) -> None:
    options = example.Options(tmp_path / "out", font=tmp_path / "none.ttf", emoji_test=listing)
    with pytest.raises(FastdiffError, match="apt-get install fonts-noto-color-emoji"):
        example.write(options)
    with pytest.raises(FastdiffError, match="apt-get install unicode-data"):
        [*example.listed(tmp_path / "none.txt", skin_tones=False)]
    with pytest.raises(FastdiffError, match="must divide 128, got 48"):
        example.write(example.Options(tmp_path / "out", size=48))


def test_pictures_are_drawn_once_each(example, tmp_path: Path, listing: Path) -> None:
    """Saint Martin's flag is France's, so that one of the two is drawn."""
    options = example.Options(tmp_path / "out", size=64, emoji_test=listing)
    if not options.font.exists():
        pytest.skip("the font is not installed: apt-get install fonts-noto-color-emoji")
    assert example.write(options) == Counter(smileys=2, people=1, flags=1)
    assert {path.name for path in options.out.rglob("*.png")} == {
        "1f600.png", "263a-fe0f.png", "1f44d.png", "1f1eb-1f1f7.png",
    }  # fmt: skip
    smiley, flag = (
        Image.open(options.out / "smileys/1f600.png"),
        Image.open(options.out / "flags/1f1eb-1f1f7.png"),
    )
    assert smiley.size == (64, 64) and smiley.mode == "RGB"
    assert smiley.getpixel((0, 0)) == (255, 255, 255)  # the corner is white, the forehead yellow
    red, green, blue = smiley.getpixel((32, 12))
    assert red > 230 and green > 180 and blue < 120
    left, right = flag.getpixel((8, 32)), flag.getpixel((56, 32))  # blue, white, red
    assert left[2] > left[0] + 40 and right[0] > right[2] + 100
