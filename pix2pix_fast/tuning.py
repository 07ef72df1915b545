"""Kernels by timing instead of the cost model: `Engine(..., tune=True)`.

Every algorithm is timed for every layer inside the whole network, where weights come from memory
and maps from the neighbours' caches; a layer alone in a loop would flatter the greedy ones. A
kernel replaces the cost model's choice only when it is at least 3 % faster. The result is kept in a
JSON file per machine, precision, threads, network and size, so that the next Engine (and its bits)
is the same; `P2P_TUNE_CACHE` names another folder. Timings of a busy machine are bad advice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, _core
from .tensorfile import atomic_file, cache_folder

if TYPE_CHECKING:
    from .backends import Options
    from .model import Model

log = logging.getLogger("pix2pix_fast")

GAIN = 0.97  # of the cost model's choice
REPEATS = 10
Kernels = dict[str, str]


def kernels(model: Model, options: Options) -> Kernels:
    """Layer name -> kernel id where timing beats the cost model; from the cache if it is known."""
    key = _key(model, options)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    try:
        path = cache_folder("P2P_TUNE_CACHE") / f"{name}.json"
    except OSError as error:
        log.warning("the tuned kernels are not kept: %s", error)
        return measure(model, options)
    known = _read(path, key, model, options)
    if known is not None:
        log.info("tuned kernels from %s", path)
        return known
    found = measure(model, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            stream.write(json.dumps({"key": key, "kernels": found}, indent=1).encode())
        log.info("tuned kernels written to %s", path)
    except OSError as error:  # what was measured is good, and will be measured again next time
        log.warning("the tuned kernels could not be kept: %s", error)
    return found


def measure(model: Model, options: Options) -> Kernels:
    """The same without the cache. Takes some seconds for each algorithm."""
    h, w = options.size

    def timed(forced: Kernels) -> dict[str, dict[str, Any]]:
        engine = _core.Engine(
            model.layers(options.norm),
            model.core_tensors(options.norm),
            precision=_precision(options),
            threads=options.threads or 0,
            isa=options.isa,
            size=(h, w),
            kernels=forced,
        )
        try:
            return {step["layer"]: step for step in engine.timed(h, w, REPEATS)}
        finally:
            engine.close()

    chosen = timed({})
    best = {layer: step["measured_us"] * GAIN for layer, step in chosen.items()}
    found: Kernels = {}
    for forced in _trials(chosen, options):
        for layer, step in timed(forced).items():
            if layer in forced and step["measured_us"] < best[layer]:
                best[layer], found[layer] = step["measured_us"], forced[layer]
    return found


def _trials(chosen: Mapping[str, dict[str, Any]], options: Options) -> list[Kernels]:
    """One network per algorithm and room, with it in every layer that can have it."""
    runnable = _rooms(options)
    trials: dict[tuple[str, str], Kernels] = {}
    for kernel in _core.kernels():
        room, name = kernel.split("/")
        op, algorithm, dtype = name.split("_")
        if room not in runnable or room == "scalar":
            continue
        for layer, step in chosen.items():
            now = step["kernel"].split("/")[1].split("_")
            fits = (now[0], end_of(now[1]), now[2]) == (op, end_of(algorithm), dtype)
            if fits and kernel != step["kernel"]:
                trials.setdefault((room, algorithm), {})[layer] = kernel
    return list(trials.values())


def _rooms(options: Options) -> list[str]:
    """The rooms up to the one asked for."""
    rooms = list(_core.cpu()["runnable"])
    return rooms[: rooms.index(options.isa or _core.cpu()["isa"]) + 1]


def end_of(algorithm: str) -> str:
    """Of a kernel that reads ("first") or writes ("last") the picture and serves no other layer, else ""."""
    return next((end for end in ("first", "last") if algorithm.startswith(end)), "")


def _precision(options: Options) -> str:
    return "f32" if options.precision == "auto" else options.precision


def _key(model: Model, options: Options) -> dict[str, Any]:
    cpu = _core.cpu()
    return {
        "version": __version__,
        "kernels": len(_core.kernels()),  # a build with new ones measures again
        "cpu": cpu["name"],
        "room": options.isa or cpu["isa"],
        "precision": _precision(options),
        "threads": options.threads or cpu["cores"],
        "size": list(options.size),
        "layers": [
            [layer["op"], layer["ci"], layer["co"], layer["skip"]]
            for layer in model.layers(options.norm)
        ],
    }


def _read(path: Path, key: dict[str, Any], model: Model, options: Options) -> Kernels | None:
    """None where there is no result, or one that does not fit: it is measured again then."""
    try:
        document = json.loads(path.read_text())
        if document["key"] != key:
            return None
        found = document["kernels"]
        ids, dtype = set(_core.kernels()), _precision(options)
        ops = {layer["name"]: layer["op"] for layer in model.layers(options.norm)}
        rooms = _rooms(options)
        if all(
            kernel in ids
            and kernel.split("/")[0] in rooms
            and kernel.split("/")[1].split("_")[0] == ops[layer]
            and kernel.endswith("_" + dtype)
            for layer, kernel in found.items()
        ):
            return dict(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    log.warning("%s is not a tuning result; measuring again", path)
    return None
