"""Whole nets: the engine against train/networks.py in float64, and the same bits however it is run."""
# ruff: noqa: E402  (torch may be missing: the imports come after the skip)

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tolerance
from model_files import random_model
from PIL import Image
from pix2pix_fast.train.networks import BatchNorm, UNet

import pix2pix_fast
from pix2pix_fast import Engine, _core, checkpoints
from pix2pix_fast.architecture import Architecture
from pix2pix_fast.model import Model, load

RUNNABLE = list(_core.cpu()["runnable"])
BF16_ROOMS = [room for room in RUNNABLE if room in ("avx512bf16", "amx")]
ASSETS = Path(pix2pix_fast.__file__).parent / "assets"
BASE = Architecture(depth=5, ngf=8, in_channels=3, out_channels=3)
NETS = {
    **{f"depth {d}": replace(BASE, depth=d, ngf=4 if d > 6 else 8) for d in range(2, 10)},
    **{f"ngf {n}": replace(BASE, ngf=n) for n in (1, 3, 16, 33)},
    **{
        f"{ci} to {co} channels": replace(BASE, in_channels=ci, out_channels=co)
        for ci, co in ((1, 1), (1, 3), (3, 1), (4, 2), (2, 7), (20, 9))
    },
    "no skips": replace(BASE, skips=False),
    "no norm": replace(BASE, norm="none", trained_norm=""),
    "instance norm": replace(BASE, affine=False),
    "norm at the bottleneck": replace(BASE, bottleneck_norm=True),
    "eps 1e-3": replace(BASE, eps=1e-3),
    "identity at the end": replace(BASE, tanh=False),
    "stored statistics": replace(BASE, norm="running", trained_norm="", bottleneck_norm=True),
}


def smooth(h: int, w: int, c: int, seed: int = 0) -> np.ndarray:
    """(h, w, c) float32 in [-1, 1] with structure of every size: norms of small maps see variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((h, w, c)) * 0.3
    for cells in (2, 5, 16):
        block = rng.standard_normal((cells, cells, c))
        x += block[np.arange(h) * cells // h][:, np.arange(w) * cells // w]
    return np.tanh(x).astype(np.float32)


def exact(model: Model, x: np.ndarray, norm: str = "image", **dropout: Any) -> np.ndarray:
    """(n, h, w, c) float64 of the net with pictures (n, h, w, ci) in [-1, 1]."""
    net = UNet.from_model(model, norm).double()
    with torch.no_grad():
        y = net.translate(torch.from_numpy(x.astype(np.float64).transpose(0, 3, 1, 2)), **dropout)
    return y.permute(0, 2, 3, 1).numpy()


def core(model: Model, size: tuple[int, int], norm: str = "image", **options: Any) -> Any:
    return _core.Engine(model.layers(norm), model.core_tensors(norm), size=size, **options)


def run(engine: Any, x: np.ndarray, co: int, **options: Any) -> np.ndarray:
    """Pictures (n, h, w, ci) in [-1, 1] through the core, float32 out."""
    y = np.empty((*x.shape[:3], co), np.float32)
    engine.run(x, y, value_range=(-1.0, 1.0), **options)
    return y


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def digest(y: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(y).tobytes()).hexdigest()


@pytest.mark.parametrize("room", RUNNABLE)
@pytest.mark.parametrize("name", NETS)
def test_every_net_in_every_room(name: str, room: str) -> None:
    a = NETS[name]
    model = random_model(a, seed=3)
    side = a.multiple * (2 if a.depth < 9 else 1)
    x = smooth(side, side + a.multiple, a.in_channels)[None]
    for norm in ("image", "running") if a.norm == "running" else ("image",):
        engine = core(model, x.shape[1:3], norm, isa=room, threads=2)
        assert engine.stats()["isa"] == room
        got = run(engine, x, a.out_channels)
        assert error(got, exact(model, x, norm)) <= tolerance.F32_NARROW


@pytest.mark.parametrize("room", BF16_ROOMS or [pytest.param("", marks=pytest.mark.skip("no bf16"))])
@pytest.mark.parametrize("name", [n for n in NETS if n not in ("ngf 1", "ngf 3")])
def test_every_net_in_bf16(name: str, room: str) -> None:
    a = NETS[name]
    model = random_model(a, seed=3)
    side = a.multiple * (2 if a.depth < 9 else 1)
    x = smooth(side, side, a.in_channels)[None]
    engine = core(model, x.shape[1:3], isa=room, threads=2, precision="bf16")
    assert error(run(engine, x, a.out_channels), exact(model, x)) <= tolerance.BF16_NARROW


@pytest.fixture(scope="module")
def wide() -> tuple[Model, np.ndarray, np.ndarray]:
    """The method's own net: U-Net-256, ngf 64, with a picture and its exact translation."""
    a = Architecture(depth=8, ngf=64, in_channels=3, out_channels=3)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in a.shapes().items():
        if len(shape) == 4:
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        elif "norm" in name or name == "d8.bias":
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            tensors[name] = rng.normal(mean, 0.02, shape).astype(np.float32)
    model = Model(a, tensors, {"name": "wide"})
    x = smooth(256, 256, 3)[None]
    return model, x, exact(model, x)


@pytest.mark.parametrize("room", [r for r in RUNNABLE if r != "scalar"])
def test_unet256_in_float32(wide: tuple[Model, np.ndarray, np.ndarray], room: str) -> None:
    model, x, want = wide
    got = run(core(model, (256, 256), isa=room, threads=2), x, 3)
    assert error(got, want) <= tolerance.F32
    levels = np.rint((np.stack([got, want]) + 1) * 127.5)
    assert abs(levels[0] - levels[1]).max() <= tolerance.LEVELS
    assert np.mean(levels[0] == levels[1]) >= tolerance.EQUAL


@pytest.mark.parametrize("room", BF16_ROOMS or [pytest.param("", marks=pytest.mark.skip("no bf16"))])
def test_unet256_in_bf16(wide: tuple[Model, np.ndarray, np.ndarray], room: str) -> None:
    model, x, want = wide
    got = run(core(model, (256, 256), isa=room, threads=2, precision="bf16"), x, 3)
    assert error(got, want) <= tolerance.BF16


def test_a_channel_of_one_value_becomes_its_beta() -> None:
    """One of 96, whose statistics end in several strips."""
    model = random_model(replace(BASE, depth=4, ngf=24), seed=9)
    model.tensors["e3.weight"][70] = 0
    assert abs(model.tensors["e3.norm.bias"][70]) > 0.01
    x = smooth(32, 48, 3)[None]
    got = run(core(model, (32, 48)), x, 3)
    assert error(got, exact(model, x)) <= tolerance.F32_NARROW


def test_direct_kernels_lose_at_most_twice_what_pytorch_loses() -> None:
    model = random_model(replace(BASE, depth=6, ngf=16), seed=1)
    x = smooth(128, 128, 3)[None]
    want = exact(model, x)
    with torch.no_grad():
        t = UNet.from_model(model).translate(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    theirs = error(t.permute(0, 2, 3, 1).numpy(), want)
    ours = error(run(core(model, (128, 128), isa="scalar"), x, 3), want)
    assert ours <= tolerance.DIRECT_OVER_TORCH * theirs


@pytest.mark.parametrize(
    "size", [(256, 256), (512, 256), (300, 200), (1, 1), (2, 2), (5, 3), (1, 40), (700, 1100)], ids=str
)
def test_every_size_is_reflected_and_kept(size: tuple[int, int]) -> None:
    model = random_model(replace(BASE, depth=8 if max(size) <= 512 else 5, ngf=4), seed=5)
    x = smooth(*size, 3)[None]
    got = run(core(model, size), x, 3)
    assert got.shape == (1, *size, 3)
    want = exact(model, x)
    few = size[0] * size[1] < 32
    assert error(got, want) <= (tolerance.F32_FEW_PIXELS if few else tolerance.F32_NARROW)
    plain = run(core(model, size, isa="scalar"), x, 3) if few else got
    assert error(plain, want) <= tolerance.F32_NARROW
    with Engine(model) as engine:  # opened for another size
        picture = np.rint((x[0] + 1) * 127.5).astype(np.uint8)
        assert engine.translate(picture).shape == (*size, 3)


def test_engine_opened_for_one_size_is_exact_at_others() -> None:
    """Kernels are packed for the first size; other sizes run the same kernels."""
    model = random_model(replace(BASE, depth=6, ngf=16), seed=2)
    engine = core(model, (64, 64))
    for h, w in ((64, 64), (256, 320), (128, 64)):
        x = smooth(h, w, 3, seed=h)[None]
        assert error(run(engine, x, 3), exact(model, x)) <= tolerance.F32_NARROW


@pytest.mark.parametrize("precision", ["f32"] + ["bf16"] * bool(BF16_ROOMS))
def test_same_bits_for_threads_and_batch_positions(precision: str) -> None:
    model = random_model(replace(BASE, depth=7, ngf=16), seed=4)
    x = np.stack([smooth(128, 256, 3, seed) for seed in range(3)])
    seen: dict[int, set[str]] = {}
    for threads in (1, 2, 3, 5):
        engine = core(model, (128, 256), threads=threads, precision=precision)
        for order in ((0, 1, 2), (2, 0, 1), (1,)):
            y = run(engine, x[list(order)], 3)
            for index, picture in zip(order, y, strict=True):
                seen.setdefault(index, set()).add(digest(picture))
    assert [len(seen[index]) for index in range(3)] == [1, 1, 1]
    assert len(set.union(*seen.values())) == 3


@pytest.mark.parametrize("place", ["d1", "d2", "d4"])
def test_seeded_dropout_is_the_references(place: str) -> None:
    model = random_model(replace(BASE, dropout=(place,)), seed=6)
    x = np.stack([smooth(64, 64, 3, seed) for seed in range(2)])
    engine = core(model, (64, 64), dropout_seed=12345)
    for frame in (0, 7):
        got = run(engine, x, 3, frame=frame)
        want = exact(model, x, seed=12345, frame=frame)
        assert error(got, want) <= tolerance.F32_NARROW
    assert error(got, exact(model, x)) > 1e-3  # it does something


def test_batch_norm_checkpoints_run_on_the_pictures_own_statistics() -> None:
    """junyanz's test program leaves batch norm in training mode; `--eval` is norm="running"."""
    model = random_model(replace(BASE, norm="running", trained_norm=""), seed=7)
    net = UNet.from_model(model, "running").double()
    x = smooth(64, 64, 3)[None]
    t = torch.from_numpy(x.transpose(0, 3, 1, 2)).double()
    with torch.no_grad():
        evaluated = net.eval()(t).permute(0, 2, 3, 1).numpy()
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.train()
        trained = net(t).permute(0, 2, 3, 1).numpy()
    own = run(core(model, (64, 64), "image"), x, 3)
    folded = run(core(model, (64, 64), "running"), x, 3)
    assert error(own, trained) <= tolerance.F32_NARROW
    assert error(folded, evaluated) <= tolerance.F32_NARROW
    assert error(own, evaluated) > 0.05


def level_difference(model: Model, picture: np.ndarray) -> tuple[int, float]:
    with Engine(model) as engine:
        got = engine.translate(picture).astype(int)
    y = exact(model, (picture.astype(np.float64) / 127.5 - 1)[None])[0]
    want = np.rint((np.clip(y, -1, 1) + 1) * 127.5).astype(int)
    return int(abs(got - want).max()), float(np.mean(got == want))


def test_the_models_in_the_package_draw_what_pytorch_draws() -> None:
    for name in ("facades_labels2photo", "edges2photo"):
        model = load(ASSETS / f"{name}.safetensors")
        picture = np.asarray(Image.open(ASSETS / "pictures" / "palace.png").convert("RGB"))
        worst, equal = level_difference(model, picture)
        assert worst <= tolerance.LEVELS and equal >= tolerance.EQUAL, (name, worst, equal)


@pytest.mark.parametrize("name", ["face2labels_unet256_ngf16", "labels2face_unet256_ngf16"])
def test_other_peoples_models_on_photos(name: str, shared_data: Callable[[str], Path]) -> None:
    model = checkpoints.read(shared_data("weights") / name)
    photos = sorted(p for p in shared_data("photos").iterdir() if p.suffix in (".png", ".jpg"))
    equal, values = 0.0, 0
    for path in photos[:6]:
        picture = np.asarray(Image.open(path).convert("RGB").resize((256, 256)))
        worst, share = level_difference(model, picture)
        assert worst <= tolerance.LEVELS, (path.name, worst)
        equal, values = equal + share * picture.size, values + picture.size
    assert equal / values >= tolerance.EQUAL, f"{equal / values:.4%} of {values} bytes are equal"
    print(f"{name}: {equal / values:.4%} of {values} bytes equal, the rest off by one")


def test_film_frames_go_to_labels_and_back(shared_data: Callable[[str], Path]) -> None:
    av = pytest.importorskip("av")
    with av.open(str(shared_data("videos") / "carphone_pristine.mp4")) as film:
        frame = next(film.decode(video=0)).to_image().crop((16, 0, 160, 144)).resize((256, 256))
    weights = shared_data("weights")
    there = checkpoints.read(weights / "face2labels_unet256_ngf16")
    back = checkpoints.read(weights / "labels2face_unet256_ngf16")
    with Engine(there) as labels, Engine(back) as faces:
        drawn = labels.translate(np.asarray(frame))
        face = faces.translate(drawn)
    black = (drawn.max(2) < 60).mean()
    assert 0.3 < black < 0.8  # background around a head and shoulders
    assert face[drawn.max(2) < 60].mean() < 30 < face[drawn.max(2) >= 60].mean()
