"""What a plan says it will do, the rooms that the environment asks for, and forced kernels."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from tiny import child, environment, tiny_model

from pix2pix_fast import _core

MODEL = tiny_model(depth=5, ngf=16)


def engine(**options: Any) -> Any:
    return _core.Engine(MODEL.layers("image"), MODEL.core_tensors("image"), **options)


def test_the_steps_are_the_layers_and_their_shapes_chain() -> None:
    steps = engine().plan(100, 70)  # padded to 128 x 96
    layers = MODEL.layers("image")
    assert [s["layer"] for s in steps] == [layer["name"] for layer in layers]
    assert (steps[0]["hi"], steps[0]["wi"]) == (128, 96)
    assert (steps[-1]["ho"], steps[-1]["wo"]) == (128, 96)
    for before, step, layer in zip([None, *steps], steps, layers, strict=False):
        assert (step["ci"], step["co"]) == (layer["ci"], layer["co"])
        down = layer["op"] == "conv4x4s2"
        assert step["ho"] * (2 if down else 1) == step["hi"] * (1 if down else 2)
        if before is not None:
            assert (step["hi"], step["wi"]) == (before["ho"], before["wo"])
        taps = step["ho"] * step["wo"] * (16 if down else 4)
        assert step["direct_macs"] == taps * step["ci"] * step["co"]
        assert step["weight_bytes"] > 0 and step["macs"] > 0 and step["estimate_us"] > 0
        assert step["measured_us"] == 0


def test_the_plan_does_not_depend_on_threads() -> None:
    plans = [engine(threads=n).plan(256, 256) for n in (1, 2, 7)]
    assert plans[0] == plans[1] == plans[2]


def refused(layers: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _core.Engine(layers, MODEL.core_tensors("image"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("e2", {"name": "e1"}, "'e1': the name occurs twice"),
        ("e2", {"op": "deconv4x4s2"}, "'e2': expected conv4x4s2 at place 1 of 10"),
        ("d1", {"op": "conv4x4s2"}, "'d1': expected deconv4x4s2 at place 5 of 10"),
        *(
            (name, {key: channels}, f"'{name}': channels must be")
            for name, key in (("e1", "ci"), ("d5", "co"))
            for channels in (0, (1 << 16) + 1)
        ),
        *(("e2", {"slope": s}, "'e2': slope must be") for s in (-0.1, 1.1, np.nan)),
        *(("e2", {"eps": eps}, "'e2': eps must be") for eps in (0, -1e-5, np.inf, np.nan)),
        ("d2", {"dropout": 0.1}, "'d2': dropout must be 0 or 0.5"),
        ("d4", {"tanh": True}, "'d4': tanh is for the last layer"),
        ("e3", {"skip": "e2", "ci": 64}, "'e3': its skip must be"),
        ("d1", {"skip": "e5", "ci": 256}, "'d1': its skip must be"),
        ("d3", {"skip": "e2"}, "'d3': its skip must be the encoder layer of the same size, got 'e2'"),
        ("d3", {"skip": "x"}, "'d3': its skip must be"),
        ("d3", {"skip": ""}, "'d3': ci is 128, but its inputs have 64 channels"),
        ("e3", {"ci": 31}, "'e3': ci is 31, but its inputs have 32 channels"),
        *(
            ("e1", change, "'e1': the first layer has no")
            for change in ({"norm": True, "eps": 1e-5}, {"slope": 0.2}, {"dropout": 0.5})
        ),
        *(
            ("d5", change, "'d5': the last layer has no")
            for change in ({"norm": True, "eps": 1e-5}, {"dropout": 0.5})
        ),
    ],
)
def test_layers_that_are_no_network_are_refused(
    name: str, change: dict[str, Any], words: str
) -> None:
    refused([{**layer, **(change if layer["name"] == name else {})} for layer in MODEL.layers("image")], words)


def test_a_network_has_as_many_layers_down_as_up() -> None:
    layers = MODEL.layers("image")
    for wrong in (layers[:-1], layers[:1] + layers[-1:], layers[:5] * 3 + layers[5:] * 3):
        refused(wrong, f"layers: expected 2 x depth with depth 2..12, got {len(wrong)}")


def test_forced_kernels_run_or_are_refused() -> None:
    forced = {"e3": "scalar/conv4x4s2_direct_f32", "d2": "scalar/deconv4x4s2_direct_f32"}
    steps = {s["layer"]: s["kernel"] for s in engine(kernels=forced).plan(64, 64)}
    assert steps.items() >= forced.items()
    for kernels, words in (
        ({"e3": "scalar/deconv4x4s2_direct_f32"}, "'e3' cannot use"),
        ({"e3": "nowhere/conv4x4s2_direct_f32"}, "unknown kernel"),
        ({"e9": "scalar/conv4x4s2_direct_f32"}, "no layer 'e9'"),
    ):
        with pytest.raises(ValueError, match=words):
            engine(kernels=kernels)


@pytest.mark.parametrize("room", _core.cpu()["runnable"])
def test_the_forced_room_is_the_one_that_runs(room: str) -> None:
    code = """
import numpy as np
from tiny import tiny_model
from pix2pix_fast import _core
m = tiny_model(depth=4, ngf=16)
e = _core.Engine(m.layers("image"), m.core_tensors("image"), size=(64, 64))
e.run(np.zeros((1, 64, 64, 3), np.uint8), np.empty((1, 64, 64, 3), np.uint8))
print(e.stats()["isa"], *{s["kernel"].split("/")[0] for s in e.plan(64, 64)})
"""
    ran, *rooms = child(code, P2P_ISA=room).split()
    order = list(_core.cpu()["runnable"])
    assert ran == room
    assert all(order.index(r) <= order.index(room) for r in rooms)
    # float32 kernels stop at avx512
    assert min(room, "avx512", key=order.index) in rooms if "avx512" in order else room in rooms


def test_unknown_and_impossible_rooms_are_refused() -> None:
    code = "import pix2pix_fast._core as c; c.cpu()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(P2P_ISA="sse9"),
        cwd="/",
        check=False,
    )
    assert done.returncode != 0 and "unknown instruction set 'sse9' in P2P_ISA" in done.stderr
    with pytest.raises(ValueError, match="expected scalar, avx2"):
        engine(isa="neon9")


def test_the_trace_tells_every_step() -> None:
    code = """
import numpy as np
from tiny import tiny_model
from pix2pix_fast import Engine
Engine(tiny_model(depth=5, ngf=16)).translate(np.zeros((256, 256, 3), np.uint8))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(P2P_TRACE="1"),
        cwd="/",
        check=True,
    )
    peaks, _, *steps, total = (line.split() for line in done.stderr.splitlines())
    flops, speed = (float(peaks[peaks.index(unit) - 1]) for unit in ("GFLOP/s,", "GB/s"))
    names = [layer["name"] for layer in MODEL.layers("image")]
    assert [step[0] for step in steps] == names
    spent = least = 0.0  # microseconds
    for *_, million_macs, megabytes, us, rate, share in steps:
        macs, time = float(million_macs), float(us)
        floor = max(2e3 * macs / flops, 1e3 * float(megabytes.removesuffix("MB")) / speed)
        assert 0 < time < 1e6
        assert float(rate) == pytest.approx(2e3 * macs / time, rel=0.1, abs=1)
        assert float(share.removesuffix("%")) == pytest.approx(100 * floor / time, rel=0.15, abs=5)
        spent, least = spent + time, least + floor
    times = [float(step[-3]) for step in steps]
    assert times != sorted(times)  # of each step, not since the first
    assert float(total[1]) == pytest.approx(spent, abs=len(steps))
    assert float(total[2].removesuffix("%")) == pytest.approx(100 * least / spent, rel=0.15, abs=1)


def test_timed_steps_cost_something() -> None:
    steps = engine(size=(64, 64)).timed(64, 64, 3)
    assert all(0 < s["measured_us"] < 1e6 for s in steps)
    with pytest.raises(ValueError, match="repeats"):
        engine().timed(64, 64, 0)
    assert np.isfinite([s["estimate_us"] for s in steps]).all()


@pytest.mark.parametrize("size", [(0, 64), (1, 1 << 28), (1 << 15, 1 << 15)])
def test_a_size_is_checked_as_it_will_be_padded(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"picture size {size[0]}x{size[1]} is out of range"):
        engine(size=size)
