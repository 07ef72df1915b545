"""Draw the example pictures: house fronts as label maps, in the colours of the CMP facade labels.

    python examples/make_pictures.py [FOLDER]

Every front is a few lines of data: storeys from the top down, each a row of openings. The drawings
are the project's own (Apache-2.0, as the code). FOLDER defaults to pix2pix_fast/assets/pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from pix2pix_fast.palettes import FACADES


class Front:
    """A sheet of labels that is drawn on from the outside in: (x, y) top left, in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), FACADES["background"])
        self.pen = ImageDraw.Draw(self.image)

    def box(self, label: str, x: float, y: float, w: float, h: float) -> None:
        x, y, w, h = round(x), round(y), round(w), round(h)
        self.pen.rectangle((x, y, x + w - 1, y + h - 1), FACADES[label])

    def window(self, x: float, y: float, w: float, h: float, style: str = "") -> None:
        """A window; style letters add s sill, m moulding, b blind, d deco, B balcony, p pillars."""
        self.box("window", x, y, w, h)
        if "b" in style:
            self.box("blind", x, y, w, h * 0.4)
        if "m" in style:
            self.box("moulding", x - 2, y - 7, w + 4, 6)
        if "d" in style:
            self.box("deco", x + w * 0.2, y - 14, w * 0.6, 9)
        if "p" in style:
            self.box("pillar", x - 7, y - 4, 5, h + 8)
            self.box("pillar", x + w + 2, y - 4, 5, h + 8)
        if "B" in style:
            self.box("balcony", x - 6, y + h - 12, w + 12, 15)
        elif "s" in style:
            self.box("sill", x - 3, y + h, w + 6, 4)

    def row(
        self, x: float, y: float, span: float, count: int, w: float, h: float, styles: list[str]
    ) -> None:
        """`count` windows centred in equal parts of `span`; the styles repeat."""
        part = span / count
        for i in range(count):
            self.window(x + part * i + (part - w) / 2, y, w, h, styles[i % len(styles)])

    def door(self, x: float, y: float, w: float, h: float) -> None:
        self.box("moulding", x - 4, y - 6, w + 8, 6)
        self.box("door", x, y, w, h)
        self.box("window", x + 3, y + 2, w - 6, h * 0.2)


def townhouse() -> Image.Image:
    """Five storeys, a cornice under the roof, sills throughout, a door in the middle."""
    f = Front(256, 256)
    f.box("facade", 28, 14, 200, 242)
    f.box("cornice", 24, 22, 208, 13)
    f.row(28, 44, 200, 5, 20, 28, ["s"])
    f.row(28, 88, 200, 5, 20, 32, ["sm"])
    f.box("cornice", 28, 130, 200, 8)
    f.row(28, 152, 200, 5, 20, 34, ["sm", "sm", "Bm"])
    f.box("cornice", 28, 198, 200, 7)
    f.row(28, 216, 200, 5, 20, 26, ["s", "s", "", "s", "s"])
    f.box("facade", 114, 208, 28, 48)
    f.door(115, 216, 26, 40)
    return f.image


def palace() -> Image.Image:
    """A wide front with a portico: pillars over two storeys and a pediment of decoration."""
    f = Front(256, 256)
    f.box("facade", 8, 40, 240, 216)
    f.box("facade", 78, 18, 100, 30)
    f.box("deco", 98, 24, 60, 14)
    f.box("cornice", 8, 44, 240, 12)
    f.row(8, 70, 240, 7, 17, 34, ["sd", "sm"])
    f.row(8, 128, 240, 7, 17, 42, ["smd", "sm"])
    for x in (76, 110, 141, 175):
        f.box("pillar", x, 58, 6, 130)
    f.box("balcony", 84, 164, 88, 16)
    f.box("cornice", 8, 186, 240, 11)
    f.row(8, 208, 70, 2, 18, 28, ["s"])
    f.row(178, 208, 70, 2, 18, 28, ["s"])
    f.door(110, 208, 36, 48)
    f.box("pillar", 98, 200, 6, 56)
    f.box("pillar", 152, 200, 6, 56)
    return f.image


def corner_shops() -> Image.Image:
    """Flats above, shops below, blinds half way down on a hot day."""
    f = Front(256, 256)
    f.box("facade", 0, 24, 178, 232)
    f.box("facade", 186, 58, 70, 198)
    f.box("cornice", 0, 28, 178, 16)
    f.row(0, 56, 178, 6, 16, 30, ["s", "sb"])
    f.row(0, 104, 178, 6, 16, 32, ["sb", "s", "s"])
    f.row(0, 152, 178, 6, 16, 32, ["sm", "smb", "B"])
    f.box("cornice", 0, 194, 178, 10)
    f.box("shop", 6, 212, 44, 44)
    f.box("shop", 56, 212, 44, 44)
    f.door(110, 214, 22, 42)
    f.box("shop", 140, 212, 34, 44)
    f.box("cornice", 186, 62, 70, 9)
    for y in (84, 128, 172):
        f.row(186, y, 70, 2, 18, 28, ["s"])
    f.box("shop", 192, 218, 58, 38)
    return f.image


def balconies() -> Image.Image:
    """A modern block: bands of balconies, tall glass behind them."""
    f = Front(256, 256)
    f.box("facade", 18, 8, 220, 248)
    f.box("cornice", 14, 8, 228, 9)
    for y in (28, 76, 124, 172):
        f.row(22, y, 66, 2, 20, 32, ["s", "sb"])
        f.window(104, y, 48, 34)
        f.box("balcony", 96, y + 20, 64, 18)
        f.row(168, y, 66, 2, 20, 32, ["sb", "s"])
    f.box("cornice", 18, 216, 220, 6)
    f.row(22, 228, 66, 2, 22, 20, [""])
    f.door(112, 228, 32, 28)
    f.row(168, 228, 66, 2, 22, 20, [""])
    return f.image


def cottage() -> Image.Image:
    """Two storeys and dormers under open sky."""
    f = Front(256, 256)
    f.box("facade", 20, 92, 216, 164)
    for x in (52, 116, 180):
        f.box("facade", x - 8, 52, 40, 42)
        f.window(x, 60, 24, 26, "s")
    f.box("cornice", 12, 92, 232, 12)
    f.row(20, 124, 216, 4, 26, 36, ["sm", "smb"])
    f.box("moulding", 20, 178, 216, 5)
    f.row(20, 200, 80, 2, 22, 36, ["s"])
    f.row(156, 200, 80, 2, 22, 36, ["s"])
    f.door(112, 200, 32, 56)
    return f.image


def street() -> Image.Image:
    """Three neighbours on one sheet of 256 x 384: any height and width may be translated."""
    f = Front(384, 256)
    f.box("facade", 0, 44, 118, 212)
    f.box("cornice", 0, 48, 118, 11)
    for y, styles in ((72, ["s"]), (118, ["sm"]), (164, ["sm", "B"])):
        f.row(0, y, 118, 4, 16, 30, styles)
    f.box("shop", 6, 212, 62, 44)
    f.door(82, 214, 22, 42)

    f.box("facade", 122, 12, 142, 244)
    f.box("cornice", 120, 18, 146, 14)
    f.row(122, 46, 142, 4, 18, 34, ["pm", "m"])
    f.row(122, 98, 142, 4, 18, 36, ["smd"])
    f.box("cornice", 122, 146, 142, 8)
    f.row(122, 164, 142, 4, 18, 32, ["sb", "sm", "sm", "sb"])
    f.box("shop", 128, 212, 42, 44)
    f.door(180, 212, 26, 44)
    f.box("shop", 216, 212, 42, 44)

    f.box("facade", 268, 70, 116, 186)
    f.box("cornice", 268, 72, 116, 10)
    f.row(268, 96, 116, 3, 22, 32, ["B", "s", "B"])
    f.row(268, 148, 116, 3, 22, 32, ["s", "sb", "s"])
    f.box("moulding", 268, 198, 116, 5)
    f.row(268, 212, 76, 2, 20, 28, ["s"])
    f.door(350, 212, 24, 44)
    return f.image


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    if len(sys.argv) > 2 or "-h" in sys.argv or "--help" in sys.argv:
        sys.exit("usage: python examples/make_pictures.py [FOLDER]")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else here / "pix2pix_fast/assets/pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (townhouse, palace, corner_shops, balconies, cottage, street):
        path = folder / f"{draw.__name__}.png"
        draw().save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
