"""What a type checker says of a user's file: results of the kinds that docs/api.md names, and mistakes found."""

from __future__ import annotations

from pathlib import Path

import pytest

import pix2pix_fast

api = pytest.importorskip("mypy.api")

# In place of the real ones, which take a minute to read.
LIBRARIES = {
    "numpy/__init__.pyi": """
from typing import Any
class ndarray: ...
def zeros(shape: tuple[int, ...], dtype: Any) -> ndarray: ...
def __getattr__(name: str) -> Any: ...
""",
    "PIL/__init__.pyi": "",
    "PIL/Image.pyi": """
class Image: ...
def new(mode: str, size: tuple[int, int]) -> Image: ...
""",
}
USER = """
from pathlib import Path
import numpy as np
from PIL import Image
from pix2pix_fast import Engine

engine = Engine("facades_labels2photo", threads=2)
array, picture = np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8))
one: list[Image.Image] = [
    engine.translate("a.png"),
    engine.translate(Path("a.png")),
    engine.translate(b"a"),
    engine.translate(bytearray(b"a")),
    engine.translate(picture),
    *engine.stream(["a.png"]),
]
several: list[list[Image.Image]] = [engine.translate(["a"]), engine.translate([picture])]
fixed: tuple[Image.Image, ...] = engine.translate(("a.png", "b.png"))
arrays: list[np.ndarray] = [
    engine.translate(array),
    *engine.translate([array]),
    *engine.translate((array,)),
    *engine.stream([array]),
    engine.translate("a.png", out=array),
]
engine.translate(array).save("a.png")
Engine("edges2photo", backend="gpu")
"""


def test_a_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {**LIBRARIES, "user.py": USER}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pix2pix_fast").symlink_to(Path(pix2pix_fast.__file__).parent)
    monkeypatch.chdir(tmp_path)
    command = "--config-file= --no-site-packages --follow-imports=silent --no-error-summary user.py"
    shown, wrong, _ = api.run(command.split())
    lines = USER.splitlines()
    found = [lines[int(line.split(":")[1]) - 1] for line in shown.splitlines()]
    assert found == lines[-2:], shown + wrong
