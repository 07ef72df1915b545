"""The training loop: one step of D, one step of G, for every pair of every epoch.

    pix2pix-fast train facades DATA/facades -o runs/facades
    pix2pix-fast train facades DATA/facades -o runs/facades --resume
    pix2pix-fast train facades DATA/facades -o runs/smoke --smoke
    torchrun --nproc-per-node 2 -m pix2pix_fast.train facades DATA -o RUN

Values come from recipes/, pairs from data.py, losses from losses.py; state.py keeps the run,
report.py shows it. The learning rate and the data order follow from the epoch number, dropout from
PyTorch's generator, which is saved: a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pix2pix_fast.train import colour, distributed, recipes, state
from pix2pix_fast.train.data import Batches, DataError, Pairs, has_split, steps_per_epoch
from pix2pix_fast.train.evaluation.pixel import pixel_metrics
from pix2pix_fast.train.report import Report
from pix2pix_fast.train.trainer import Batch, Trainer, TrainingStopped
from torch import Tensor
from torch.utils.data import DataLoader

from pix2pix_fast import _core

LOG = logging.getLogger("pix2pix_fast.train")


# What a resumed run may change without becoming another run.
CHANGEABLE = {
    *("epochs", "decay_epochs", "workers", "compile", "save_every"),
    *("log_every", "sample_every", "evaluate_every", "evaluate_count"),
}


def learning_rate(values: dict[str, Any], epoch: int) -> float:
    """Constant for `epochs`, then linear: junyanz's 1 - max(0, e + 1 - epochs) / (decay + 1)."""
    late = max(0, epoch + 1 - values["epochs"])
    return float(values["lr"]) * (1.0 - late / (values["decay_epochs"] + 1))


def train(
    values: dict[str, Any],
    data: Path | str,
    run: Path | str,
    *,
    resume: bool = False,
    changed_data: bool = False,
    device: str = "auto",
    max_steps: int = 0,
    quiet: bool = False,
) -> Trainer:
    """Trains `values` (of recipes.load) on the folder `data` into the folder `run`.

    resume: continue run/last.pt; `values` may differ from the stored ones in CHANGEABLE only.
    changed_data: continue it though files were repaired, added or removed: the epoch under way goes
    on at its step, in the order that the new number of pairs gives.
    max_steps: stop after so many steps in all, save, and look at the held-out pictures. Returns the
    trainer. Raises DataError, StateError, TrainingStopped, KeyboardInterrupt (after saving).
    """
    run = Path(run)
    if values["epochs"] + values["decay_epochs"] == 0:
        raise ValueError("epochs and decay_epochs are 0: nothing to train; set one to 1 or more")
    device = distributed.start(device)
    if values["precision"] == "bf16" and device == "cpu" and not _has_bf16():
        LOG.warning(
            "this CPU has no bfloat16 instructions: precision=bf16 is several times slower here "
            "than --set precision=f32"
        )
    last, best = run / "last.pt", run / "best.pt"
    saved = None
    if resume:
        saved = state.load(last, "cpu")
        refuse_changes(saved["values"], values)
    elif last.exists():
        raise state.StateError(f"{last} exists: --resume continues it, another folder starts anew")
    pairs = Pairs(data, "train", values)
    held_out = next((s for s in ("val", "test") if has_split(data, s, values)), None)
    held = Pairs(data, held_out, values) if held_out else None
    world = distributed.world()
    per_epoch = steps_per_epoch(len(pairs), values, world)
    epochs = values["epochs"] + values["decay_epochs"]
    trainer = Trainer(values, device)
    history: dict[str, Any] = {"seconds": 0.0, "best_l1": math.inf, "metrics": {}}
    files, digest = pairs.sizes(), pairs.digest()
    if saved:
        trainer.load_state_dict(saved)
        history = saved["history"]
        if saved["data_digest"] != digest:
            what = difference(run / "data.json", files)
            if not changed_data:
                raise state.StateError(
                    f"{data} is not the data that {run} was trained on{what}; "
                    "--changed-data goes on with it as it is now"
                )
            LOG.warning("%s has changed%s", data, what)
            change = {"step": trainer.step_count, "pairs": len(pairs), "data_digest": digest}
            history.setdefault("data_changes", []).append(change)
    run.mkdir(parents=True, exist_ok=True)
    listed = False  # data.json tells of the data in last.pt: a change waits for the first save

    def list_files() -> None:
        nonlocal listed
        if not listed and distributed.rank() == 0:
            text = json.dumps(files).encode()
            state.write_atomically(run / "data.json", lambda file: file.write(text))
        listed = True

    if saved is None or saved["data_digest"] == digest:
        list_files()
    # the epoch and its first step: with changed data they do not follow from the step
    whole_epochs = trainer.step_count // per_epoch
    epoch, first = history.setdefault("epoch", [whole_epochs, whole_epochs * per_epoch])
    total = first + (epochs - epoch) * per_epoch
    per_step = values["batch"] * values["accumulate"] * world
    report = Report(
        *(run, values, total, per_step),
        done=trainer.step_count,
        quiet=quiet,
        mute=distributed.rank() > 0,
    )
    origin = {
        "command": sys.argv,
        "pairs": len(pairs),
        "data_digest": digest,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
        "device": device,
        "processes": world,
    }
    history.setdefault("origin", origin)  # the first start is the one that the card tells
    report.event("start", values=values, resumed_at=trainer.step_count, **origin)
    started = time.monotonic() - history["seconds"]
    before: list[str] = []  # the pairs of the last step

    def stopped(culprits: list[str], why: object) -> TrainingStopped:
        message = f"{', '.join([f'step {trainer.step_count}', *dict.fromkeys(culprits)])}: {why}"
        report.event("stopped", message=message)
        kept = f"; the last good state is {last}" if last.exists() else ""
        return TrainingStopped(message + kept)

    def save(path: Path) -> None:
        if not trainer.is_finite():  # the next loss would tell, but the good state would be gone
            raise stopped(before, "a gradient overflowed: a weight is not finite")
        history["seconds"] = time.monotonic() - started
        whole = {**trainer.state_dict(), "history": history, "data_digest": digest}
        if distributed.rank() == 0:
            state.save(path, whole)
        list_files()

    def enough() -> bool:
        return max_steps > 0 and trainer.step_count >= max_steps

    def save_and_look(shown: int, final: bool) -> None:
        save(last)  # before the held-out pictures: trouble there loses nothing learnt
        known, improved = history["metrics"], False
        if held and distributed.rank() == 0:
            improved = look(trainer, held, report, history, shown, final=final)
        if distributed.any_true(improved):
            save(best)
        if distributed.any_true(history["metrics"] is not known):
            save(last)  # the new figures too: a resumed run compares with the best of them

    with report, interruptions() as interrupted:
        unseen = values["evaluate_every"] > 0 and history["metrics"].get("epoch") != epoch
        if saved and held and epoch >= epochs and unseen:  # killed before its last look
            save_and_look(epoch, final=True)
        while epoch < epochs and not enough():
            rate = learning_rate(values, epoch)
            trainer.set_learning_rate(rate)
            source = epoch_batches(pairs, values, epoch, trainer.step_count - first)
            stop = False
            report.restart_clock()
            while trainer.step_count < first + per_epoch:
                stop = distributed.any_true(interrupted())
                if stop or enough():
                    break
                try:
                    batches, names = next(source)
                except Exception:
                    if world == 1:  # a bad file found late: nothing learnt is lost
                        save(last)
                    raise
                try:
                    losses = trainer.step(batches)
                except TrainingStopped as error:
                    culprits = names
                    if not trainer.is_finite():  # a gradient overflowed, D's maybe in this step
                        culprits = before + names if trainer.d_moved else before
                    raise stopped(culprits or names, error) from None
                before = names
                report.step(trainer.step_count, epoch, losses, rate)
                if values["save_every"] and trainer.step_count % values["save_every"] == 0:
                    save(last)
                    report.restart_clock()
            if trainer.step_count < first + per_epoch:
                if stop:
                    save(last)
                    report.event("interrupted", step=trainer.step_count)
                    raise KeyboardInterrupt
                save_and_look(epoch + 1, final=True)  # as the epoch under way
                break
            epoch, first = epoch + 1, trainer.step_count
            history["epoch"] = [epoch, first]
            save_and_look(epoch, final=epoch == epochs or enough())
            report.event("epoch", epoch=epoch, step=trainer.step_count, seconds=history["seconds"])
        report.event("end", step=trainer.step_count, seconds=history["seconds"])
    return trainer


def _has_bf16() -> bool:
    """False for a CPU on which PyTorch is known to emulate bfloat16."""
    return platform.machine() not in ("x86_64", "AMD64") or "avx512bf16" in _core.cpu()["runnable"]


def epoch_batches(
    pairs: Pairs, values: dict[str, Any], epoch: int, first: int
) -> Iterator[tuple[list[Batch], list[str]]]:
    """For each step from `first` on: its batches for this process, and the names of their pairs."""
    loader = DataLoader(
        pairs,
        batch_sampler=Batches(
            len(pairs),
            values,
            epoch,
            first=first,
            rank=distributed.rank(),
            world=distributed.world(),
        ),
        num_workers=values["workers"],
        generator=torch.Generator(),  # else starting it draws from dropout's generator
    )
    batches: list[Batch] = []
    names: list[str] = []
    for x, t, index in plainly(loader):
        batches.append((x, t))
        names += [pairs.name(int(i)) for i in index]
        if len(batches) == values["accumulate"]:
            yield batches, names
            batches, names = [], []


def plainly(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches; a DataError from a worker says what it would say without workers.

    PyTorch raises it anew with the worker's whole traceback as its message.
    """
    try:
        yield from loader
    except DataError as error:
        if not loader.num_workers:
            raise
        raise DataError(str(error).rstrip().rpartition("DataError: ")[2]) from None


def look(
    trainer: Trainer,
    held: Pairs,
    report: Report,
    history: dict[str, Any],
    epoch: int,
    *,
    final: bool,
) -> bool:
    """Grid and figures of the held-out pairs when due; whether their L1 is the best so far.

    A picture that cannot be read or is not finite costs this look, with a warning that names it,
    not the run. Figures that are not finite would beat all others for ever.
    """
    values = trainer.values

    def due(name: str) -> bool:
        return values[name] > 0 and (epoch % values[name] == 0 or final)

    try:
        if due("sample_every"):
            report.samples(epoch, sample(trainer, held))
        if not due("evaluate_every"):
            return False
        metrics = evaluate(trainer, held, values["evaluate_count"])
        if not all(math.isfinite(value) for value in metrics.values()):
            raise DataError(f"figures that are not finite: {metrics}")
    except DataError as error:
        LOG.warning("no held-out figures after epoch %d: %s", epoch, error)
        report.event("held_out_trouble", epoch=epoch, message=str(error))
        return False
    history["metrics"] = {"epoch": epoch, "split": held.split, **metrics}
    report.event("evaluate", **history["metrics"])
    improved = metrics["l1"] < history["best_l1"]
    history["best_l1"] = min(metrics["l1"], history["best_l1"])
    return improved


def sample(trainer: Trainer, held: Pairs, count: int = 8) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Input, output and truth, each (c, h, w), of `count` pairs spread over the held-out ones."""
    picked = [i * len(held) // min(count, len(held)) for i in range(min(count, len(held)))]
    rows = []
    for index in picked:
        x, t, _ = held[-1, index]
        rows.append((x, trainer.translate(x[None])[0], t))
    return rows


def evaluate(trainer: Trainer, held: Pairs, count: int) -> dict[str, float]:
    """Held-out figures of the first `count` pairs; of a colorization as RGB, as people see it."""
    lab = colour.is_lab(trainer.values)

    def outputs() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(min(count, len(held))):
            x, t, _ = held[-1, index]
            y = trainer.translate(x[None])[0]
            yield (colour.to_rgb(x, y), colour.to_rgb(x, t)) if lab else (y, t)

    return pixel_metrics(outputs())


def difference(stored: Path, files: dict[str, int]) -> str:
    """Which files are new, gone or of another size than the list `stored` says; "" without it, and
    where it says the same.
    """
    try:
        old: dict[str, int] = json.loads(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    kinds = {
        "new": sorted(files.keys() - old.keys()),
        "gone": sorted(old.keys() - files.keys()),
        "of another size": sorted(n for n in files.keys() & old.keys() if files[n] != old[n]),
    }
    told = "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' * (len(names) > 5)})"
        for kind, names in kinds.items()
        if names
    )
    return told and f": {told}"


def refuse_changes(stored: dict[str, Any], values: dict[str, Any]) -> None:
    """StateError when a resumed run would be another one than the stored.

    A value that did not exist when the run was saved had its default then.
    """
    old = {**recipes.DEFAULTS, **stored}
    changed = [
        f"{name} {old[name]!r} -> {value!r}"
        for name, value in values.items()
        if name not in CHANGEABLE and old[name] != value
    ]
    if changed:
        raise state.StateError(f"not the run that was saved: {', '.join(changed)}")


@contextlib.contextmanager
def interruptions() -> Iterator[Any]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once.

    torchrun forwards a Ctrl-C as SIGTERM to processes that have seen it already: one request.
    """
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: Ctrl-C is the caller's
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def read_log(run: Path | str) -> list[dict[str, Any]]:
    """The run's log.jsonl as a list of events, without lines that a full disk cut."""
    lines = (Path(run) / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
