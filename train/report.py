"""What a run shows: progress bar (lines without a terminal), log.jsonl, TensorBoard, sample grids, and a self-contained
gallery.

RUN/log.jsonl          one JSON object per line: start, steps, epoch, evaluate, end
RUN/samples/0005.png   rows of input, output, truth of held-out pairs after epoch 5
RUN/gallery.html       the same for every epoch, pictures inside the file
RUN/tensorboard/       scalars and grids
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from pix2pix_fast.train import colour, distributed
from pix2pix_fast.train.data import to_pixels
from pix2pix_fast.train.state import write_atomically
from torch import Tensor

LOG = logging.getLogger("pix2pix_fast.train")
Rows = list[tuple[Tensor, Tensor, Tensor]]


def picture(x: Tensor, lightness: Tensor | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of a (c, h, w) tensor: gray or RGB; with `lightness` the Lab colours to it."""
    if lightness is not None:
        return colour.join(lightness, x)
    pixels = to_pixels(x)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[:, :, :1], 3, axis=2)
    return pixels[:, :, :3]


def triple(row: tuple[Tensor, Tensor, Tensor], *, lab: bool) -> list[np.ndarray]:
    """Input, output and truth as pictures; lab: they are lightness, and colours to it."""
    x, y, t = row
    lightness = x if lab else None
    return [picture(x), picture(y, lightness), picture(t, lightness)]


def grid(rows: Rows, *, lab: bool) -> np.ndarray:
    """(rows * H, 3 * W, 3) uint8: input, output, truth from left to right."""
    return np.concatenate([np.concatenate(triple(row, lab=lab), axis=1) for row in rows], axis=0)


class Report:
    """One per process. quiet: no bar, no TensorBoard. mute: nothing at all (other ranks)."""

    def __init__(
        self,
        run: Path,
        values: dict[str, Any],
        total: int,
        per_step: int,
        *,
        done: int = 0,
        quiet: bool = False,
        mute: bool = False,
    ) -> None:
        self.run, self.values, self.quiet, self.mute = run, values, quiet or mute, mute
        self.total, self.per_step = total, per_step  # steps of the run; pictures of one, all ranks
        self.done = done  # steps before this start
        self.sums: dict[str, float] = {}
        self.counted, self.seconds, self.since = 0, 0.0, time.monotonic()
        self.board: Any = None
        self.progress: Any = None

    def __enter__(self) -> Report:
        if self.quiet:
            return self
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.run / "tensorboard")
        except ImportError:
            LOG.warning("no TensorBoard logs: pip install tensorboard")
        except OSError as error:
            LOG.warning("no TensorBoard logs: %s", error)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.fields[losses]}"),
                TextColumn("{task.fields[speed]:.1f} pictures/s"),
                TimeRemainingColumn(),
                console=console,
                speed_estimate_period=600,  # of 30 seconds a slow machine's step leaves nothing
            )
            self.task = self.progress.add_task(
                "", total=self.total, completed=self.done, epoch=0, losses="", speed=0.0
            )
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.progress:
            self.progress.stop()
        self._board(lambda board: board.close())

    def _board(self, call: Callable[[Any], object]) -> None:
        """`call` on TensorBoard, if there is one; a full disk costs it, not the run.

        Its writer has a thread, whose trouble comes up at any later call: one warning, then none.
        """
        if not self.board:
            return
        try:
            call(self.board)
        except OSError as error:
            LOG.warning("no TensorBoard logs from here on: %s", error)
            self.board = None

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._board(lambda board: board.add_scalar(name, value, step))

    def event(self, event: str, **fields: Any) -> None:
        """One line of log.jsonl; a full disk costs the line, not the run."""
        if self.mute:
            return
        whole = _strict({"event": event, "time": round(time.time(), 3), **fields})
        line = json.dumps(whole, allow_nan=False)
        try:
            with (self.run / "log.jsonl").open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # half a line, of a disk that was full
                        line = "\n" + line
                file.write(f"{line}\n".encode())
        except OSError as error:
            LOG.warning("cannot write the log: %s", error)
        if event != "evaluate":
            return
        figures = {name: fields[name] for name in ("l1", "psnr", "ssim")}
        for name, value in figures.items():
            self._scalar(f"held_out/{name}", value, fields["epoch"])
        if not self.quiet and not self.progress:
            LOG.info("epoch %d, held out: %s", fields["epoch"], _shown(figures))

    def restart_clock(self) -> None:
        """What happened since the last step (saving, held-out pictures) was not training."""
        self.since = time.monotonic()

    def step(self, step: int, epoch: int, losses: dict[str, Tensor], rate: float) -> None:
        """Moves the bar and adds to the means; every `log_every` steps they are logged and shown."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        self.counted += 1
        if self.progress:
            self.progress.update(self.task, completed=step, epoch=epoch + 1)
        if self.counted < self.values["log_every"]:
            return
        own = {name: value / self.counted for name, value in self.sums.items()}
        means = distributed.mean(own)  # of the joined batch, as the gradients are
        speed = self.counted * self.per_step / max(self.seconds, 1e-9)
        self.sums, self.counted, self.seconds = {}, 0, 0.0
        rounded = {name: round(value, 5) for name, value in means.items()}
        self.event(
            "steps", step=step, epoch=epoch, rate=rate, per_second=round(speed, 3), **rounded
        )
        for name, value in means.items():
            self._scalar(f"loss/{name}", value, step)
        self._scalar("speed/pictures_per_second", speed, step)
        self._scalar("rate", rate, step)
        if self.progress:
            self.progress.update(self.task, losses=_shown(means), speed=speed)
        elif not self.quiet:
            LOG.info(
                "epoch %d, step %d of %d: %s, %.1f pictures/s",
                *(epoch + 1, step, self.total, _shown(means), speed),
            )

    def samples(self, epoch: int, rows: Rows) -> None:
        """Writes the grid and the gallery; a full disk costs the pictures, not the run."""
        if self.mute or not rows:
            return
        pixels = grid(rows, lab=colour.is_lab(self.values))
        self._board(lambda board: board.add_image("held_out", pixels, epoch, dataformats="HWC"))
        try:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            write_atomically(
                folder / f"{epoch:04d}.png", lambda f: Image.fromarray(pixels).save(f, "PNG")
            )
            text = gallery(self.run, self.values)
            write_atomically(self.run / "gallery.html", lambda f: _write(f, text))
        except (OSError, RuntimeError) as error:
            LOG.warning("cannot write the pictures: %s", error)


def _strict(value: Any) -> Any:
    """`value` with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


def _write(file: Any, text: str) -> None:
    file.write(text.encode())


def gallery(run: Path, values: dict[str, Any], most: int = 12) -> str:
    """The page, one row per held-out pair: input, truth, its output after up to `most` epochs."""
    grids = [path for path in (run / "samples").glob("*.png") if path.stem.isdecimal()]
    grids.sort(key=lambda path: int(path.stem))
    sizes = [_size(path) for path in grids]
    # the held-out pictures changed since: grids of another shape have other rows
    grids = [path for path, size in zip(grids, sizes, strict=True) if size == sizes[-1]]
    if len(grids) > most:  # spread over the run, the first and the last included
        grids = [grids[round(i * (len(grids) - 1) / (most - 1))] for i in range(most)]
    head = ["input", "truth"] + [f"epoch {int(path.stem)}" for path in grids]
    columns: list[list[str]] = []
    for number, path in enumerate(grids):
        with Image.open(path, formats=("PNG",)) as image:
            whole = np.asarray(image.convert("RGB"))
        size = whole.shape[1] // 3
        cells = [
            [row[:, k * size : (k + 1) * size] for k in range(3)]
            for row in np.split(whole, whole.shape[0] // size)
        ]
        if number == 0:
            columns += [[_inline(c[0]) for c in cells], [_inline(c[2]) for c in cells]]
        columns.append([_inline(c[1]) for c in cells])
    table = "".join(
        "<tr>" + "".join(f'<td><img src="{src}" alt=""></td>' for src in row) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    title = html.escape(f"{values['recipe']}: {values['task']}")
    names = "".join(f"<th>{name}</th>" for name in head)
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:14px sans-serif;margin:1em}td,th{padding:2px}"
        "thead th{position:sticky;top:0;background:#fff}</style>"
        f"<h1>{title}</h1><table><thead><tr>{names}</tr></thead><tbody>{table}</tbody></table>"
        f"<pre>{html.escape(json.dumps(values, indent=1))}</pre>"
    )


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=("PNG",)) as image:
        return image.size


def _inline(pixels: np.ndarray) -> str:
    """A JPEG inside the page: about 12 kB at 256x256."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
