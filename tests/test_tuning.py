"""tune=True: kernels chosen by timing, kept in a file, and the same pictures within the tolerance."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import noise, tiny_model

from pix2pix_fast import Engine, _core, backends, tuning


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2P_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def options(**changes: object) -> backends.Options:
    return backends.Options(precision="f32", threads=1, size=(32, 32))._replace(**changes)


def test_result_is_kept_and_read_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(depth=4)
    found = tuning.kernels(model, options())
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["kernels"] == found
    monkeypatch.setattr(tuning, "measure", lambda *_: pytest.fail("measured again"))
    assert tuning.kernels(model, options()) == found


def test_a_cache_that_cannot_be_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("P2P_TUNE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tuning, "measure", lambda *_: {"e2": "chosen"})
    assert tuning.kernels(tiny_model(), options()) == {"e2": "chosen"}
    assert "could not be kept" in caplog.text


def test_a_user_without_a_home_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("P2P_TUNE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)  # nobody in the list of users
    monkeypatch.setattr(tuning, "measure", lambda *_: {"e2": "chosen"})
    assert tuning.kernels(tiny_model(), options()) == {"e2": "chosen"}
    assert "P2P_TUNE_CACHE names one" in caplog.text


@pytest.mark.parametrize(
    "kernels",
    [
        {"zz": "scalar/conv4x4s2_direct_f32"},  # no such layer
        {"d2": "scalar/conv4x4s2_direct_f32"},  # another operation
        {"e2": "amx/conv4x4s2_direct_bf16"},  # another precision, and a room that f32 never uses
        {"e2": 3},
        ["e2"],
    ],
)
def test_kernels_that_do_not_fit_are_measured_again(cache: Path, kernels: object) -> None:
    model = tiny_model(depth=4)
    found = tuning.kernels(model, options())
    (path,) = cache.iterdir()
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"kernels": kernels}))
    assert isinstance(tuning.kernels(model, options()), dict)
    assert json.loads(path.read_text())["kernels"] != kernels
    assert found.keys() <= {"e1", "e2", "e3", "e4", "d1", "d2", "d3", "d4"}


def test_another_machine_size_or_network_is_another_result(cache: Path) -> None:
    tuning.kernels(tiny_model(depth=3), options())
    tuning.kernels(tiny_model(depth=3), options(size=(64, 64)))
    tuning.kernels(tiny_model(depth=4), options())
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[" * 10**5, '{"key": 1}', '{"key": {}, "kernels": 3}'],
    ids=lambda text: text[:9],
)
def test_a_broken_result_is_measured_again(cache: Path, content: str) -> None:
    model = tiny_model(depth=3)
    tuning.kernels(model, options())
    (path,) = cache.iterdir()
    path.write_text(content)
    tuning.kernels(model, options())
    assert json.loads(path.read_text())["kernels"] is not None


def test_a_result_naming_unknown_kernels_is_measured_again(cache: Path) -> None:
    model = tiny_model(depth=3)
    tuning.kernels(model, options())
    (path,) = cache.iterdir()
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "kernels": {"e2": "nowhere/conv4x4s2_direct_f32"}}))
    assert "nowhere/conv4x4s2_direct_f32" not in tuning.kernels(model, options()).values()


def test_every_trial_fits_its_layer() -> None:
    model = tiny_model(depth=4)
    engine = _core.Engine(model.layers("image"), model.core_tensors("image"), size=(32, 32))
    chosen = {step["layer"]: step for step in engine.timed(32, 32, 1)}
    assert all(step["measured_us"] > 0 for step in chosen.values())
    trials = tuning._trials(chosen, options())
    if _core.cpu()["isa"] != "scalar":
        assert trials
    for trial in trials:
        forced = _core.Engine(
            model.layers("image"), model.core_tensors("image"), size=(32, 32), kernels=trial
        )
        assert {s["layer"]: s["kernel"] for s in forced.plan(32, 32)}.items() >= trial.items()


def test_a_tuned_engine_translates_as_the_other(cache: Path) -> None:
    model, picture = tiny_model(depth=5), noise((64, 64, 3))
    with Engine(model, size=(64, 64)) as plain, Engine(model, size=(64, 64), tune=True) as tuned:
        difference = plain.translate(picture).astype(int) - tuned.translate(picture)
    assert abs(difference).max() <= 1 and np.mean(difference != 0) < 1e-3
    assert len(list(cache.iterdir())) == 1
