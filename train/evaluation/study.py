"""Can people tell results from true pictures? The paper's test (section 4.1), without Mechanical Turk.

`page` writes one HTML file that needs no network: a real and a fake picture, each for one second, one
after the other as in the original's page (phillipi/AMT_Real_vs_Fake); then as long as it takes to say
which was the fake. 10 trials of practice say who was right, 40 more do not. One page is one algorithm,
and a person does one page. At the end the answers are saved as a JSON file, to be sent back.

`score` reads the files of many people: how often they took the real picture for the fake, in percent,
with the standard error by bootstrap over people and, within each, over trials, as the original has it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pix2pix_fast.train.evaluation import folders

KIND = "pix2pix_fast study answers 1"
PRACTICE, TRIALS = 10, 40
SECONDS = 1.0
RESAMPLES = 10_000
TOLERANCE_MS = 100  # a picture shown for longer or shorter than this from SECONDS is counted


def page(
    results: Path | str,
    truths: Path | str,
    *,
    algorithm: str,
    endings: Sequence[str] = (),
    paired: bool = True,
    practice: int = PRACTICE,
    trials: int = TRIALS,
    pairs: int = 0,
    seed: int = 0,
) -> str:
    """The page for two folders of pictures matched by name (`folders.match`).

    algorithm: recorded in the answers, not shown. paired: both pictures of a trial come from the same
    input (the paper's colorization); False: from different ones (its maps). pairs: how many, drawn by
    `seed`, the page holds; each session takes practice + trials of them in an order of its own
    (0: just as many). Pictures are shown at their own size, all as PNG, so that no file format gives
    them away. ValueError when there are too few.
    """
    matched = folders.match([results, truths], endings)
    need = practice + trials
    if practice < 0 or trials < 1:
        raise ValueError(f"practice {practice} and trials {trials}: expected at least 0 and 1")
    pairs = pairs or need
    if pairs < need or pairs > len(matched):
        raise ValueError(
            f"{len(matched)} pairs of pictures for a page of {pairs} and sessions of {need}; "
            "give more pictures or ask for fewer trials"
        )
    names = [
        list(matched)[i] for i in np.random.default_rng(seed).permutation(len(matched))[:pairs]
    ]
    pictures = []
    for name in names:
        paths = matched[name]
        pair = [folders.read(path) for path in paths]
        folders.same_size(*zip(paths, pair, strict=True))
        fake, real = map(_inline, pair)
        pictures.append({"name": name, "fake": fake, "real": real})
    setting = {
        "kind": KIND,
        "algorithm": algorithm,
        "paired": paired,
        "practice": practice,
        "trials": trials,
        "seconds": SECONDS,
    }
    whole = json.dumps({**setting, "pictures": pictures}).encode()
    study = {"study": hashlib.sha256(whole).hexdigest()[:16], **setting, "pictures": pictures}
    template = (files(__package__) / "study.html").read_text("utf-8")
    # "<" inside a script could end it
    return template.replace("/*STUDY*/ null", json.dumps(study).replace("<", "\\u003c"))


def _inline(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def score(paths: Iterable[Path | str]) -> list[dict[str, Any]]:
    """One record per page, by algorithm: `people`, `trials` (counted ones of all people), `fooled` and
    `error` in percent, `mistimed` trials (a slow machine, a hidden tab: they count all the same).

    ValueError that names the file for anything but the answers of a whole session, for a session
    given twice, and for a person with two sessions: the paper allows one.
    """
    sessions = [_session(Path(path)) for path in paths]
    if not sessions:
        raise ValueError("no answers to score")
    for key, what in (("session", "the same session as"), ("person", "of the same person as")):
        taken: dict[str, str] = {}
        for one in sessions:
            if one[key] in taken:
                raise ValueError(f"{one['path']} is {what} {taken[one[key]]}; keep one of them")
            taken[one[key]] = one["path"]
    found = []
    for algorithm, study in sorted({(one["algorithm"], one["study"]) for one in sessions}):
        group = [one for one in sessions if one["study"] == study]
        if len({len(one["fooled"]) for one in group}) > 1:
            raise ValueError(f"sessions of study {study} differ in their number of trials")
        rates = np.array([np.mean(one["fooled"]) for one in group])
        count = len(group[0]["fooled"])
        found.append(
            {
                "algorithm": algorithm,
                "study": study,
                "people": len(group),
                "trials": count * len(group),
                "fooled": 100 * float(rates.mean()),
                "error": 100 * bootstrap(rates, count),
                "mistimed": sum(one["mistimed"] for one in group),
            }
        )
    return found


def bootstrap(rates: np.ndarray, trials: int, resamples: int = RESAMPLES) -> float:
    """Standard error of the mean of `rates` (people,) in 0..1, each over `trials` trials.

    People are drawn with replacement, then each one's trials: which is binomial.
    """
    rng = np.random.default_rng(0)
    drawn = rates[rng.integers(len(rates), size=(resamples, len(rates)))]
    return float((rng.binomial(trials, drawn) / trials).mean(axis=1).std())


def _session(path: Path) -> dict[str, Any]:
    """One person's file; ValueError names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] != KIND:
            raise ValueError(f"its kind is {found['kind']!r}, expected {KIND!r}")
        counted = [trial for trial in found["trials"] if not trial["practice"]]
        if len(counted) != found["counted"] or not counted:
            raise ValueError(f"{len(counted)} of {found['counted']} trials: not a whole session")
        for trial in counted:
            if trial["answer"] not in ("left", "right") or trial["fake"] not in ("left", "right"):
                raise ValueError(f"an answer is left or right, got {trial['answer']!r}")
        target = found["seconds"] * 1000
        late = [
            any(abs(float(ms) - target) > TOLERANCE_MS for ms in trial["shown_ms"])
            for trial in counted
        ]
        texts = {name: str(found[name]) for name in ("algorithm", "study", "session", "person")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"  # repr of a UnicodeDecodeError holds the whole file
        raise ValueError(f"{path}: not the answers of a study page ({why})") from error
    fooled = [trial["answer"] != trial["fake"] for trial in counted]
    return {"path": str(path), "fooled": fooled, "mistimed": sum(late), **texts}
