"""Training data: forms, directions, channels, depths, determinism, messages about bad pictures."""

# ruff: noqa: E402  (torch may be missing: the imports come after the skip)
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image, ImageOps
from pix2pix_fast.train import colour, recipes
from pix2pix_fast.train.data import (
    Batches,
    DataError,
    Pairs,
    picture_header,
    read_picture,
    resize,
    steps_per_epoch,
    to_pixels,
    to_tensor,
)
from torch.utils.data import DataLoader

FACADES = Path(__file__).resolve().parents[2] / "shared" / "data" / "facades"
RNG = np.random.default_rng(0)


def values(**overrides):
    return recipes.load(
        "facades", **{"direction": "AtoB", "size": 16, "load_size": 18, **overrides}
    )


def picture(h, w, c=3, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (h, w, c)).astype(dtype)


def write_pairs(folder, count=4, h=16, w=32):
    (folder / "train").mkdir(parents=True, exist_ok=True)
    arrays = []
    for i in range(count):
        arrays.append(picture(h, w))
        Image.fromarray(arrays[-1]).save(folder / "train" / f"{i}.png")
    return arrays


# ---- forms ----


def test_pairs_split_in_the_middle_and_follow_the_direction(tmp_path):
    whole = write_pairs(tmp_path, 1)[0]
    left, right = to_tensor(whole[:, :16]), to_tensor(whole[:, 16:])
    x, t, index = Pairs(tmp_path, "train", values())[-1, 0]
    assert torch.equal(x, left) and torch.equal(t, right) and index == 0
    x, t, _ = Pairs(tmp_path, "train", values(direction="BtoA"))[-1, 0]
    assert torch.equal(x, right) and torch.equal(t, left)
    x, t, _ = Pairs(tmp_path, "train", values(mirrored=True))[-1, 0]
    assert torch.equal(x, right.flip(2)) and torch.equal(t, left.flip(2))


def test_two_folders_match_names_whatever_the_suffix(tmp_path):
    a, b = picture(16, 16), picture(16, 16)
    for side, array, suffix in (("A", a, "png"), ("B", b, "bmp")):
        (tmp_path / side / "train").mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / side / "train" / f"one.{suffix}")
    x, t, _ = Pairs(tmp_path, "train", values(data_form="folders"))[-1, 0]
    assert torch.equal(x, to_tensor(a)) and torch.equal(t, to_tensor(b))
    Image.fromarray(a).save(tmp_path / "A" / "train" / "two.png")
    with pytest.raises(DataError, match="no partner in the other folder: two"):
        Pairs(tmp_path, "train", values(data_form="folders"))


def test_folders_inside_are_read_too(tmp_path):
    for side in "AB":
        for name in ("one/x.png", "two/three/x.png", ".thumbnails/x.png"):
            (tmp_path / side / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(16, 16)).save(tmp_path / side / "train" / name)
    pairs = Pairs(tmp_path, "train", values(data_form="folders"))
    assert [pairs.name(i) for i in range(len(pairs))] == ["A/train/one/x.png", "A/train/two/three/x.png"]
    assert len(Pairs(tmp_path / "A", "train", values())) == 2
    (tmp_path / "B" / "train").rename(tmp_path / "B" / "val")
    (tmp_path / "A" / "train").rename(tmp_path / "A" / "val")
    for side in "AB":
        Image.fromarray(picture(16, 16)).save(tmp_path / side / "y.png")
    assert len(Pairs(tmp_path, "train", values(data_form="folders"))) == 1


def test_linked_folders_are_read_and_circles_left(tmp_path):
    write_pairs(tmp_path / "elsewhere", 2)
    write_pairs(tmp_path / "data", 1)
    folder = tmp_path / "data" / "train"
    for name in ("cats", "dogs"):
        (folder / name).symlink_to(tmp_path / "elsewhere" / "train")
    (tmp_path / "elsewhere" / "train" / "back").symlink_to(folder)
    (folder / "here").symlink_to(".")
    pairs = Pairs(tmp_path / "data", "train", values())
    names = [pairs.name(i) for i in range(len(pairs))]
    assert names == ["train/0.png", *(f"train/{n}/{i}.png" for n in ("cats", "dogs") for i in (0, 1))]


def test_colorization_goes_through_lab_and_back(tmp_path):
    (tmp_path / "train").mkdir()
    photo = picture(16, 16)
    Image.fromarray(photo).save(tmp_path / "train" / "a.png")
    v = values(data_form="colorization", in_channels=1, out_channels=2)
    x, t, _ = Pairs(tmp_path, "train", v)[-1, 0]
    assert x.shape == (1, 16, 16) and t.shape == (2, 16, 16)
    assert x.abs().max() <= 1 and t.abs().max() <= 1
    assert np.abs(colour.join(x, t).astype(int) - photo).max() <= 1


@pytest.mark.parametrize(
    ("rgb", "lab"),  # published sRGB/D65 values
    [
        ((1, 1, 1), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    np.testing.assert_allclose(colour.rgb_to_lab(np.array(rgb)), lab, atol=0.03)
    np.testing.assert_allclose(colour.lab_to_rgb(np.array(lab)), rgb, atol=0.001)


def test_inpainting_hides_the_middle(tmp_path):
    (tmp_path / "train").mkdir()
    photo = picture(24, 24) // 2  # nowhere white
    Image.fromarray(photo).save(tmp_path / "train" / "a.png")
    v = values(data_form="inpainting", size=16, load_size=24)
    for epoch in (-1, 0):
        x, t, _ = Pairs(tmp_path, "train", v)[epoch, 0]
        hidden = (x == 1).all(0)
        assert hidden[4:12, 4:12].all() and hidden.sum() == 64
        assert torch.equal(x[:, ~hidden], t[:, ~hidden]) and t.max() < 0.1
    with pytest.raises(DataError, match="as many channels as B, got 1 and 3"):
        Pairs(tmp_path, "train", v | {"in_channels": 1})


def test_edges_of_a_square_are_its_outline(tmp_path):
    array = np.full((40, 40, 3), 30, np.uint8)
    array[10:30, 10:30] = 220
    lines = colour.edges(array)[:, :, 0] == 0
    assert lines[8:12, 15:25].any(0).all() and lines[15:25, 28:32].any(1).all()
    assert not lines[13:27, 13:27].any() and not lines[:7].any()
    (tmp_path / "train").mkdir()
    Image.fromarray(array).save(tmp_path / "train" / "a.png")
    x, t, _ = Pairs(tmp_path, "train", values(data_form="edges", size=40, load_size=40))[-1, 0]
    assert set(x.unique().tolist()) == {-1.0, 1.0} and torch.equal(t, to_tensor(array))


def test_edges_of_a_large_photo_are_as_black_as_those_of_a_small_one(tmp_path):
    y, x = np.mgrid[:640, :640]
    disc = np.where((x - 320) ** 2 + (y - 320) ** 2 < 200**2, 220, 30).astype(np.uint8)
    (tmp_path / "train").mkdir()
    Image.fromarray(np.repeat(disc[:, :, None], 3, 2)).save(tmp_path / "train" / "a.png")
    pairs = Pairs(tmp_path, "train", values(data_form="edges", size=40, load_size=44))
    for epoch in (-1, 0):
        lines, photo, _ = pairs[epoch, 0]
        assert lines.shape == photo.shape == (3, 40, 40)
        assert set(lines.unique().tolist()) == {-1.0, 1.0}


# ---- pixels ----


def test_sixteen_bits_and_many_channels(tmp_path):
    deep = picture(8, 8, 1, np.uint16)
    Image.fromarray(deep[:, :, 0]).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png"), deep)
    assert to_tensor(np.array([[[0], [65535]]], np.uint16)).flatten().tolist() == [-1.0, 1.0]
    for dtype in (np.uint8, np.uint16):
        six = picture(16, 32, 6, dtype)
        (tmp_path / "train").mkdir(exist_ok=True)
        np.save(tmp_path / "train" / "a.npy", six)
        x, t, _ = Pairs(tmp_path, "train", values(in_channels=6, out_channels=6))[3, 0]
        assert x.shape == t.shape == (6, 16, 16)


def test_channels_are_converted_or_refused_by_name(tmp_path):
    write_pairs(tmp_path, 1)
    x, t, _ = Pairs(tmp_path, "train", values(in_channels=1))[-1, 0]
    assert x.shape[0] == 1 and t.shape[0] == 3
    with pytest.raises(DataError, match=r"0\.png: 3 channels, expected 4"):
        _ = Pairs(tmp_path, "train", values(in_channels=4))[-1, 0]


@pytest.mark.parametrize("bands", [4, 5])
def test_bands_are_never_dropped_unsaid(tmp_path, bands):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "a.npy", picture(16, 32, bands))
    with pytest.raises(DataError, match=rf"a\.npy: {bands} channels, expected 1"):
        Pairs(tmp_path, "train", values(in_channels=1, out_channels=1))


def test_pixels_go_out_rounded():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_pixels(to_tensor(levels)), levels)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_upright_as_in_the_engine(tmp_path, suffix, turn):
    array = picture(8, 12)
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(array).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_picture(path), upright)
    assert picture_header(path) == upright.shape == ((12, 8, 3) if turn > 4 else (8, 12, 3))


def test_exif_behind_the_pixels_of_a_png_turns_it_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(picture(8, 12)).save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert picture_header(path) == read_picture(path).shape == (12, 8, 3)


@pytest.mark.parametrize("c", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_keeps_kind_and_constant(c, dtype):
    array = np.full((10, 13, c), 77, dtype)
    out = resize(array, 7, 20)
    assert out.dtype == dtype and out.shape == (7, 20, c) and (out == 77).all()


# ---- randomness ----


def test_both_halves_get_the_same_crop_and_flip(tmp_path):
    (tmp_path / "train").mkdir()
    half = picture(16, 16)
    Image.fromarray(np.concatenate([half, half], 1)).save(tmp_path / "train" / "a.png")
    pairs = Pairs(tmp_path, "train", values())
    seen = set()
    for epoch in range(150):
        x, t, _ = pairs[epoch, 0]
        assert torch.equal(x, t)
        seen.add(x.numpy().tobytes())
    assert len(seen) == 18  # 3 x 3 crops, each mirrored or not


def test_order_and_augmentation_do_not_depend_on_workers(tmp_path):
    write_pairs(tmp_path, 6)
    v = values(batch=2)
    pairs = Pairs(tmp_path, "train", v)

    def epoch(workers, number):
        return list(DataLoader(pairs, batch_sampler=Batches(6, v, number), num_workers=workers))

    for one, two in zip(epoch(0, 1), epoch(2, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert [b[2].tolist() for b in epoch(0, 1)] != [b[2].tolist() for b in epoch(0, 2)]


def test_ranks_together_see_what_one_process_sees():
    v = values(batch=2, accumulate=2)
    joined = list(Batches(17, {**v, "batch": 4}, 5))
    ranks = [list(Batches(17, v, 5, rank=r, world=2)) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == joined
    assert sorted(i for b in joined for _, i in b) == sorted({i for b in joined for _, i in b})
    assert list(Batches(17, v, 5, first=1)) == list(Batches(17, v, 5))[2:]


# ---- bad data ----


def test_a_text_file_is_skipped_aloud(tmp_path, caplog):
    write_pairs(tmp_path, 1)
    (tmp_path / "train" / "notes.txt").write_text("hello")
    (tmp_path / "train" / ".hidden").write_text("hello")
    with caplog.at_level(logging.WARNING, "pix2pix_fast.train"):
        assert len(Pairs(tmp_path, "train", values())) == 1
    assert "notes.txt" in caplog.text and "hidden" not in caplog.text


def test_all_bad_pictures_are_listed_before_the_first_step(tmp_path):
    write_pairs(tmp_path, 1)
    (tmp_path / "train" / "text.png").write_text("not a picture")
    Image.fromarray(picture(16, 31)).save(tmp_path / "train" / "odd.png")
    with pytest.raises(DataError) as error:
        Pairs(tmp_path, "train", values())
    assert "2 unusable pictures" in str(error.value)
    assert "text.png: not a readable picture" in str(error.value)
    assert "odd.png: 31 pixels wide" in str(error.value)


def test_arrays_are_checked_by_their_headers(tmp_path):
    (tmp_path / "train").mkdir()
    for name, array in (
        ("ints", np.zeros((16, 32, 3), np.int64)),
        ("five", np.zeros((16, 32, 5), np.uint8)),
        ("deep", np.zeros((2, 16, 32, 3), np.uint8)),
    ):
        np.save(tmp_path / "train" / f"{name}.npy", array)
    np.save(tmp_path / "train" / "good.npy", np.zeros((16, 32, 3), ">u2"))
    with pytest.raises(DataError) as error:
        Pairs(tmp_path, "train", values())
    text = str(error.value)
    assert "3 unusable pictures" in text and "five.npy: 5 channels, expected 3" in text
    assert "ints.npy: shape (16, 32, 3) of int64, expected (H, W, C) of uint8" in text
    assert "deep.npy: shape (2, 16, 32, 3)" in text
    assert read_picture(tmp_path / "train" / "good.npy").dtype == np.uint16


def test_values_out_of_range_are_refused_and_not_wrapped(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 4, 3), 255.0))
    with pytest.raises(DataError, match=r"a\.npy: values 255 to 255, expected floats in 0 to 1"):
        read_picture(tmp_path / "a.npy")
    Image.fromarray(np.array([[70000, -5]], np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif: values -5 to 70000, expected levels of 16 bits"):
        read_picture(tmp_path / "b.tif")
    sharp = np.zeros((40, 40, 3), np.float32)
    sharp[:, 20:] = 1
    small = resize(sharp, 15, 15)
    assert small.min() == 0 and small.max() == 1


def test_two_pictures_of_one_name_are_refused(tmp_path):
    for side, names in (("A", ("x.png", "x.bmp")), ("B", ("x.png",))):
        (tmp_path / side / "train").mkdir(parents=True)
        for name in names:
            Image.fromarray(picture(16, 16)).save(tmp_path / side / "train" / name)
    with pytest.raises(DataError, match=r"x\.bmp and x\.png: pairs are matched by name"):
        Pairs(tmp_path, "train", values(data_form="folders"))


def test_channels_of_a_form_are_checked_first(tmp_path):
    for bad in ({"in_channels": 3}, {"direction": "BtoA"}):
        v = {"data_form": "colorization", "in_channels": 1, "out_channels": 2, **bad}
        with pytest.raises(DataError, match=r"colorization: A has 1 channel .*got in_channels"):
            Pairs(tmp_path, "train", values(**v))
    with pytest.raises(DataError, match="edges: A has 1 or 3 channels, got 2"):
        Pairs(tmp_path, "train", values(data_form="edges", in_channels=2))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda p: None, "is not a folder"),
        (lambda p: (p / "train").mkdir(), "holds no pictures"),
    ],
)
def test_no_pictures(tmp_path, prepare, words):
    prepare(tmp_path)
    with pytest.raises(DataError, match=words):
        Pairs(tmp_path, "train", values())


def test_folders_of_different_sizes(tmp_path):
    for side, size in (("A", 16), ("B", 18)):
        (tmp_path / side).mkdir()
        Image.fromarray(picture(size, 16)).save(tmp_path / side / "a.png")
    with pytest.raises(DataError, match=r"a\.png is \(16, 16\).*\(18, 16\)"):
        Pairs(tmp_path, "train", values(data_form="folders"))


def test_too_few_pairs_for_a_step():
    with pytest.raises(DataError, match="3 pairs, but one step takes 4"):
        steps_per_epoch(3, values(batch=2, accumulate=2))


def test_wrong_values_are_named(tmp_path):
    for bad, words in (
        ({"data_form": "video"}, "data_form is one of"),
        ({"direction": "BtoC"}, "direction is AtoB or BtoA"),
        ({"load_size": 8}, "load_size 8 is smaller than size 16"),
    ):
        with pytest.raises(DataError, match=words):
            Pairs(tmp_path, "train", values(**bad))


@pytest.mark.skipif(not FACADES.is_dir(), reason="no ../shared/data/facades")
def test_the_facades_are_read_as_described():
    pairs = Pairs(FACADES, "val", recipes.load("facades"))
    assert len(pairs) == 100
    x, t, _ = pairs[-1, 0]
    assert x.shape == t.shape == (3, 256, 256)
    blue = to_pixels(x)[:, :, 2].astype(int) - to_pixels(x)[:, :, 0]
    assert np.median(blue) > 100  # labels are mostly blue: BtoA takes the right half
