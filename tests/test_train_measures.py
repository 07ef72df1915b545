"""The paper's measures: against numbers worked out by hand, torchmetrics, and a browser.

Pictures are drawn; the real facades are used where they are at hand.
"""

# ruff: noqa: E402  (torch may be missing: the imports come after the skip)
from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner
from PIL import Image
from pix2pix_fast.train import colour
from pix2pix_fast.train.data import DataError
from pix2pix_fast.train.evaluation import compare, features, folders, histogram, labels, study
from tiny import noise

from pix2pix_fast import cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VISIBLE = """["left", "right", "pick-left", "pick-right"].filter(
    (id) => document.getElementById(id).checkVisibility({ visibilityProperty: true }))"""
SHADE = """() => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.drawImage(document.getElementById("left"), 0, 0);
    return canvas.getImageData(0, 0, 1, 1).data[0];
}"""
FOUR = labels.Palette(
    {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)},
    void=((0, 0, 0),),
)


pytestmark = pytest.mark.usefixtures("one_thread")


def save(folder: Path, **pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def painted(classes: np.ndarray, palette: labels.Palette) -> np.ndarray:
    colours = np.array([*palette.classes.values(), *palette.void], np.uint8)
    return colours[classes]


def script(network: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result.stderr if code else result.stdout


# Folders


def test_pictures_are_matched_by_name(tmp_path):
    a = save(tmp_path / "a", one=noise((16, 16, 3)), two=noise((16, 16, 3)))
    b = save(tmp_path / "b", two=noise((16, 16, 3)))
    Image.fromarray(noise((16, 16, 3))).save(b / "one.jpg")
    assert folders.match([a, b]) == {
        "one": [a / "one.png", b / "one.jpg"],
        "two": [a / "two.png", b / "two.png"],
    }
    (b / "two.png").unlink()
    for both in ([a, b], [b, a]):
        with pytest.raises(DataError, match="1 pictures have no partner of the same name: two"):
            folders.match(both)
    Image.fromarray(noise((16, 16, 3))).save(b / "one.bmp")
    with pytest.raises(DataError, match="same name"):
        folders.match([a, b])


def test_endings_sort_out_one_folder(tmp_path):
    """junyanz's results: all in one folder, told apart by what their names end in."""
    kinds = ("1_fake_B", "1_real_A", "1_real_B", "2_fake_B", "2_real_A", "2_real_B")
    both = save(tmp_path / "images", **{kind: noise((16, 16, 3)) for kind in kinds})
    found = folders.match([both, both], ["_fake_B", "_real_B"])
    assert list(found) == ["1", "2"]
    assert [path.name for path in found["2"]] == ["2_fake_B.png", "2_real_B.png"]
    with pytest.raises(DataError, match="2 endings for 3 folders"):
        folders.match([both] * 3, ["_fake_B", "_real_B"])
    with pytest.raises(DataError, match="end in '_B_fake'"):
        folders.match([both, both], ["_B_fake", "_real_B"])


def test_a_picture_that_is_not_finite_is_named(tmp_path):
    array = np.full((16, 16), 0.5, np.float32)
    array[3, 4] = np.nan
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: a value is not finite"):
        folders.read(tmp_path / "a.tif")


# Labels


def test_scores_of_a_confusion_matrix_worked_out_by_hand():
    counted = labels.Confusion(FOUR)
    # Class 3 occurs nowhere; 4 is void, in the truth not asked about, in the prediction wrong.
    truth = np.array([[0, 0, 0, 0], [1, 1, 2, 2], [4, 4, 2, 2]])
    found = np.array([[0, 0, 0, 1], [1, 0, 2, 2], [0, 4, 4, 2]])
    counted.add(found, truth)
    assert counted.counts.tolist() == [
        [3, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 3, 0, 1],
        [0, 0, 0, 0, 0],
    ]
    scores = counted.scores()
    assert scores["pixel"] == pytest.approx(7 / 10)
    assert scores["class"] == pytest.approx((3 / 4 + 1 / 2 + 3 / 4) / 3)
    assert scores["iou"] == pytest.approx((3 / 5 + 1 / 3 + 3 / 4) / 3)
    assert scores["none"] == pytest.approx(1 / 10)
    assert scores["classes"]["white"] == {"accuracy": None, "iou": None, "pixels": 0}
    assert scores["classes"]["green"] == {"accuracy": 0.5, "iou": pytest.approx(1 / 3), "pixels": 2}


def test_a_class_that_is_only_predicted_has_iou_zero_and_no_accuracy():
    counted = labels.Confusion(FOUR)
    counted.add(np.array([[0, 3]]), np.array([[0, 0]]))
    scores = counted.scores()
    assert scores["classes"]["white"] == {"accuracy": None, "iou": 0.0, "pixels": 0}
    assert scores["class"] == 0.5 and scores["iou"] == pytest.approx((0.5 + 0.0) / 2)


def test_scores_equal_those_of_torchmetrics(rng):
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    truth, found = rng.integers(0, 19, (2, 3, 40, 50))
    found = np.where(rng.random(found.shape) < 0.6, truth, found)
    counted = labels.Confusion(labels.CITYSCAPES)
    for f, t in zip(found, truth, strict=True):  # over all pictures, not a mean of pictures
        counted.add(f, t)
    scores = counted.scores()
    f, t = torch.from_numpy(found), torch.from_numpy(truth)
    wanted = {
        "pixel": multiclass_accuracy(f, t, 19, average="micro"),
        "class": multiclass_accuracy(f, t, 19, average="macro"),
        "iou": multiclass_jaccard_index(f, t, 19, average="macro"),
    }
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize("name", ["facades", "cityscapes"])
def test_labels_are_read_by_nearest_colour(name, rng):
    palette = labels.palette(name)
    k = len(palette.classes)
    assert k == {"facades": 12, "cityscapes": 19}[name]
    colours = np.array([*palette.classes.values(), *palette.void])
    assert len({*map(tuple, colours)}) == len(colours)
    apart = np.sqrt(((colours[:, None] - colours[None]) ** 2).sum(axis=2) + 1e9 * np.eye(len(colours)))
    reach = int(apart.min() / 2 / np.sqrt(3))  # each channel may be off by that much
    classes = rng.integers(0, len(colours), (30, 40))
    off = painted(classes, palette).astype(int) + rng.integers(-reach, reach + 1, (30, 40, 3))
    got = labels.decode(np.clip(off, 0, 255).astype(np.uint8), palette)
    assert (got == np.minimum(classes, k)).all()


def test_facades_labels_survive_their_jpeg(shared_data):
    """Nine pixels in ten of the published JPEGs lie near a colour of the palette."""
    near = []
    for path in sorted((shared_data("facades") / "val").glob("*.jpg"))[:4]:
        picture = folders.read(path)[:, 256:]
        exact = painted(labels.decode(picture, labels.FACADES), labels.FACADES)
        near.append((np.abs(exact.astype(int) - picture).max(axis=2) <= 48).mean())
    assert min(near) > 0.9


def test_a_palette_of_ones_own(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"classes": {"sea": [0, 0, 9], "land": [9, 0, 0]}, "void": [[0, 9, 0]]}')
    assert labels.palette(str(path)) == labels.Palette(
        {"sea": (0, 0, 9), "land": (9, 0, 0)}, ((0, 9, 0),)
    )
    for text in ("[]", "{", '{"classes": {"sea": [0, 0]}}', '{"classes": {"sea": [0, 0, 256]}}',
                 '{"classes": {}}', '{"classes": {"sea": [0, 0, 9]}, "void": [[0, 0, 9]]}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=f"palette {re.escape(str(path))}"):
            labels.palette(str(path))
    with pytest.raises(ValueError, match="neither facades, cityscapes nor"):
        labels.palette("cityscape")


class ByColour(torch.nn.Module):
    """A perfect segmentation network for FOUR's colours: logits fall with distance. Channels beyond the
    four are for black."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = torch.tensor([*FOUR.classes.values(), *FOUR.void]).float() / 255

    def forward(self, x):
        return -((x[:, None] - self.colours.view(1, 5, 3, 1, 1)) ** 2).sum(dim=2)


def test_fcn_score(tmp_path, rng):
    """Photos at half the labels' size, as the paper's: they are enlarged, labels never resized."""
    palette = tmp_path / "four.json"
    palette.write_text(json.dumps({"classes": FOUR.classes, "void": FOUR.void}))
    network = script(ByColour(), tmp_path / "net.pt")
    blocks = {name: np.kron(rng.integers(0, 4, (4, 4)), np.ones((8, 8), int)) for name in "ab"}
    blocks["a"][:8] = 4  # void
    truths = save(tmp_path / "labels", **{n: painted(c, FOUR) for n, c in blocks.items()})
    photos = {n: painted(np.where(c == 4, 0, c)[::2, ::2], FOUR) for n, c in blocks.items()}
    real = save(tmp_path / "real", **photos)
    wrong = {n: p[:, ::-1].copy() for n, p in photos.items()}
    wrong["b"][:] = 0
    fake = save(tmp_path / "fake", **wrong)
    record, _ = compare.compare(
        fake, real, palette=str(palette), fcn=(network, truths)
    )
    scores = record["fcn"]["truths"]
    assert scores["pixel"] > 0.8  # all but seams, which bilinear enlarging blurs
    counted = labels.Confusion(FOUR)
    for name, classes in blocks.items():
        for_network = torch.from_numpy(wrong[name].transpose(2, 0, 1)).float()[None] / 255
        large = torch.nn.functional.interpolate(for_network, (32, 32), mode="bilinear")
        counted.add(ByColour()(large)[0].argmax(dim=0).numpy(), classes)
    assert record["fcn"]["results"] == counted.scores()
    assert record["fcn"]["results"]["none"] > 0.5  # black is none of the classes, and wrong
    assert record["used"]["fcn"].startswith("net.pt sha256:")
    with pytest.raises(ValueError, match="needs a palette"):
        compare.compare(fake, real, fcn=(network, truths))


class Half(torch.nn.Module):
    def forward(self, x):
        return x[:, :, ::2, ::2]


def test_networks_that_do_not_fit_are_named(tmp_path):
    a = save(tmp_path / "a", one=noise((16, 16, 3)), two=noise((16, 16, 3), seed=1))
    half = script(Half(), tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"gave \(1, 3, 8, 8\) .* expected logits"):
        compare.compare(a, a, palette="facades", fcn=(half, a))
    with pytest.raises(ValueError, match=r"gave \(1, 3, 8, 8\) for one picture, expected \(1, D\)"):
        compare.compare(a, a, features=half)
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2)}, weights)
    for option, use in (("features", "features"), ("lpips", "one number")):
        with pytest.raises(ValueError, match=f"not a TorchScript file; give a network .*{use}"):
            compare.compare(a, a, **{option: weights})


# Colour


def test_intersections_of_known_distributions():
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    dark, light = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)

    def score(a, b):
        x, y = histogram.Histograms(), histogram.Histograms()
        for one, pictures in ((x, a), (y, b)):
            for picture in pictures:
                one.add(picture)
        found = histogram.intersection(x, y)
        return [found[name] for name in "Lab"]

    assert score([ramp], [ramp]) == pytest.approx([1, 1, 1])
    assert score([dark], [light]) == [0, 1, 1]  # every gray has a = b = 0
    assert score([dark, light], [light]) == [0.5, 1, 1]
    assert score([dark] * 3 + [light], [dark, light]) == [0.75, 1, 1]
    red, blue = (np.tile(np.uint8(c), (4, 4, 1)) for c in ((255, 0, 0), (0, 0, 255)))
    assert score([red], [blue]) == [0, 0, 0]


def test_histograms_count_every_pixel_in_its_bin(rng):
    pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
    one = histogram.Histograms()
    one.add(pixels)
    lab = colour.rgb_to_lab(pixels / 255.0).reshape(-1, 3)
    for channel, (name, (low, _, count)) in enumerate(histogram.BINS.items()):
        wanted = np.bincount(np.floor(lab[:, channel] - low).astype(int), minlength=count)
        assert (one.counts[name] == wanted).all() and one.counts[name].sum() == 1200
    corners = np.stack(np.meshgrid([0, 255], [0, 255], [0, 255]), axis=-1).reshape(1, 8, 3)
    assert np.abs(colour.rgb_to_lab(corners / 255.0)[..., 1:]).max() < 110  # sRGB's reach


def test_the_plot_is_a_drawing(rng):
    import xml.etree.ElementTree as xml

    one, other = histogram.Histograms(), histogram.Histograms()
    one.add(rng.integers(0, 256, (16, 16, 3), np.uint8))
    other.add(np.zeros((4, 4, 3), np.uint8))
    root = xml.fromstring(histogram.plot(one, other))
    lines = root.findall(".//{*}polyline")
    assert [len(line.get("points").split()) for line in lines] == [100, 100, 221, 221, 221, 221]
    heights = [float(p.split(",")[1]) for p in lines[0].get("points").split()]
    assert heights[0] == 0.0 and set(heights[1:]) == {200.0}  # all truths are black: log 1, then floor


# Networks' distances


class Mean(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)


class Apart(torch.nn.Module):
    def forward(self, a, b):
        return (a - b).abs().max()


def test_fid_is_the_frechet_distance(rng):
    """Against the published formula in float64; the square root by eigenvalues of a symmetric form."""
    a, b = rng.normal(0, 1, (50, 6)), rng.normal(0.5, 2, (50, 6))
    found = features.distances(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    ca, cb = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(ca)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root)).sum()
    fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross
    assert found["fid"] == pytest.approx(fid, rel=1e-4)

    def kernel(x, y):
        return (x @ y.T / 6 + 1) ** 3

    n = 50
    same = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / n / (n - 1) for x in (a, b))
    assert found["kid"] == pytest.approx(same - 2 * kernel(a, b).mean(), rel=1e-4)
    assert (found["pictures"], found["features"]) == (50, 6)
    state = torch.random.get_rng_state()
    assert features.distances(torch.from_numpy(a).float(), torch.from_numpy(b).float()) == found
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="at least 2"):
        features.distances(torch.zeros(1, 6), torch.zeros(1, 6))


def test_networks_see_what_they_are_promised(tmp_path):
    dark, light = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    network = torch.jit.script(Mean())
    assert features.extract(network, light).tolist() == [1, 1, 1, 0, 0, 0]
    assert features.extract(network, ramp)[0] == pytest.approx(0.5)
    assert features.perceptual(torch.jit.script(Apart()), dark, light) == 2.0


# The command


@pytest.fixture
def drawn(tmp_path, rng):
    """Three facade label pictures, and the same with a quarter repainted."""
    k = len(labels.FACADES.classes)
    truths = {n: np.kron(rng.integers(0, k, (4, 4)), np.ones((8, 8), int)) for n in "abc"}
    wrong = {n: c.copy() for n, c in truths.items()}
    for classes in wrong.values():
        classes[:8] = (classes[:8] + 1) % k
    return (
        save(tmp_path / "results", **{n: painted(c, labels.FACADES) for n, c in wrong.items()}),
        save(tmp_path / "truths", **{n: painted(c, labels.FACADES) for n, c in truths.items()}),
    )


def test_identical_folders_are_perfect(drawn, tmp_path):
    _, truths = drawn
    network = script(Mean(), tmp_path / "mean.pt")
    judge = script(Apart(), tmp_path / "lpips.pt")
    record, _ = compare.compare(
        truths, truths, palette="facades", features=network, lpips=judge
    )
    assert record["pictures"] == 3
    assert record["l1"] == 0 and record["psnr"] == 100 and record["lpips"] == 0
    assert record["ssim"] == pytest.approx(1, abs=1e-4)
    assert [record["colour"][name] for name in "Lab"] == pytest.approx([1, 1, 1])
    assert [record["labels"][name] for name in ("pixel", "class", "iou", "none")] == [1, 1, 1, 0]
    assert record["distances"]["fid"] == pytest.approx(0, abs=1e-4)


def test_evaluate_writes_a_table_a_record_and_a_plot(drawn, tmp_path):
    out, plot = tmp_path / "out.json", tmp_path / "colours.svg"
    command = ("evaluate", *drawn, "--palette", "facades", "-o", out, "--plot", plot)
    text = run(*command)
    record = json.loads(out.read_text())
    assert record["labels"]["pixel"] == 0.75 and 0 < record["labels"]["iou"] < 0.75
    assert set(record["each"]) == {"a", "b", "c"}
    mean = np.mean([one["l1"] for one in record["each"].values()])
    assert record["l1"] == pytest.approx(mean) and record["l1"] > 0
    assert f"L1               {record['l1']:8.4f}" in text
    assert "pixel 0.7500" in text and re.search(r"^moulding +\d+ +[\d.-]+ +[\d.-]+$", text, re.M)
    assert plot.read_text().startswith("<svg")
    assert "out.json exists; --overwrite" in run(*command, code=1)
    run(*command, "--overwrite")


def test_figures_survive_a_record_that_cannot_be_written(drawn, tmp_path, monkeypatch):
    missing = tmp_path / "none" / "x.json"
    for option in ("-o", "--plot"):
        line = run("evaluate", *drawn, option, missing, code=1)
        assert "x.json: its folder does not exist; make it first" in line

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pix2pix_fast.cli.training._write", full)
    done = CliRunner().invoke(cli.main, ["evaluate", *map(str, drawn), "-o", str(tmp_path / "x.json")])
    assert done.exit_code == 1 and "No space left" in done.stderr
    assert done.stdout.startswith("3 pictures") and "PSNR" in done.stdout


def test_pictures_too_small_are_named(tmp_path):
    small = save(tmp_path / "small", dot=noise((5, 9, 3)))
    assert "dot.png: 5x9 (height x width), but SSIM's window needs 6" in run(
        "evaluate", small, small, code=1
    )
    least = save(tmp_path / "least", dot=noise((6, 6, 3)))
    assert "1 pictures" in run("evaluate", least, least)


def test_evaluate_refuses_in_one_line(drawn, tmp_path):
    results, truths = drawn
    other = save(tmp_path / "other", **{n: noise((32, 48, 3)) for n in "abc"})
    assert "is 32x32 (height x width)" in run("evaluate", results, other, code=1)
    (truths / "c.png").unlink()
    assert "no partner of the same name: c" in run("evaluate", results, truths, code=1)
    bad = tmp_path / "net.pt"
    bad.write_bytes(b"weights")
    line = run("evaluate", results, results, "--features", bad, code=1)
    assert "not a TorchScript file; give a network that maps a picture" in line


# The study


def test_a_page_holds_everything_and_asks_nobody(tmp_path):
    pictures = {f"p{i}": noise((16, 16, 3), seed=i) for i in range(8)}
    real = save(tmp_path / "real", **pictures)
    fake = save(tmp_path / "fake", **{name: 255 - pixels for name, pixels in pictures.items()})
    out = tmp_path / "study.html"
    run("study-page", fake, real, "-o", out, "--algorithm", "</script>L1", "--practice", 2, "--trials", 4)
    text = out.read_text()
    assert text.count("</script>") == 1 and "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=[\"']?http|https?://|url\(|@import|fetch\(", text)
    held = json.loads(re.search(r"const study = (.*);\n", text)[1])
    assert (held["practice"], held["trials"], held["seconds"]) == (2, 4, 1.0)
    assert held["algorithm"] == "</script>L1" and len(held["pictures"]) == 6
    for one in held["pictures"]:
        for side, wanted in (("real", pictures[one["name"]]), ("fake", 255 - pictures[one["name"]])):
            data = io.BytesIO(base64.b64decode(one[side].removeprefix("data:image/png;base64,")))
            assert (np.asarray(Image.open(data)) == wanted).all()
    assert "8 pairs of pictures for a page of 50" in run(
        "study-page", fake, real, "-o", tmp_path / "x.html", "--algorithm", "a", code=1
    )


def answers(folder: Path, number: int, fooled: int, of: int = 40, **changes: object) -> Path:
    """A session of one person, fooled so many times of so many."""
    counted = [
        {"practice": False, "fake": side, "answer": "left", "shown_ms": [1001, 1016]}
        for side in ["right"] * fooled + ["left"] * (of - fooled)
    ]
    practice = [{"practice": True, "fake": "left", "answer": "right", "shown_ms": [1000, 1000]}] * 10
    session = {
        "kind": study.KIND, "study": "s1", "algorithm": "L1+cGAN", "seconds": 1, "counted": of,
        "session": f"session {number}", "person": f"person {number}", "trials": practice + counted,
    }  # fmt: skip
    path = folder / f"{number}.json"
    path.write_text(json.dumps(session | changes))
    return path


def test_fooled_percent_and_its_error(tmp_path):
    fooled = [4, 8, 12, 0, 16]
    paths = [answers(tmp_path, i, n) for i, n in enumerate(fooled)]
    (found,) = study.score(paths)
    assert (found["people"], found["trials"], found["mistimed"]) == (5, 200, 0)
    assert found["fooled"] == pytest.approx(20.0)
    # The exact variance of what the bootstrap draws: between people, and within each one's trials.
    p = np.array(fooled) / 40
    exact = 100 * np.sqrt((p.var() + (p * (1 - p) / 40).mean()) / 5)
    assert found["error"] == pytest.approx(exact, rel=0.03)
    assert f"L1+cGAN: fooled 20.0 ± {found['error']:.1f} % (5 people, 200 trials" in run(
        "study-score", *paths
    )
    other = [answers(tmp_path, 9, 40, study="s2", algorithm="best")]
    two = [json.loads(line) for line in run("study-score", *paths, *other, "--json").splitlines()]
    assert [(one["algorithm"], one["fooled"]) for one in two] == [("L1+cGAN", 20), ("best", 100)]
    assert two[1]["error"] == 0


def test_answers_that_do_not_count(tmp_path):
    good = answers(tmp_path, 1, 3)
    for change, why in (
        ({"counted": 41}, "40 of 41 trials"),
        ({"kind": "other"}, "its kind is 'other'"),
        ({"trials": [{"practice": False}]}, "not a whole session"),
        ({"session": "session 1"}, "the same session as"),
        ({"person": "person 1"}, "of the same person as"),
    ):
        bad = answers(tmp_path, 2, 3, **change)
        with pytest.raises(ValueError, match=f"2.json.*{why}"):
            study.score([good, bad])
    bad.write_text("{")
    with pytest.raises(ValueError, match="2.json: not the answers of a study page"):
        study.score([bad])
    bad.write_bytes(b"\x89PNG" + bytes(10_000))
    with pytest.raises(ValueError, match="not the answers of a study page") as raised:
        study.score([bad])
    assert len(str(raised.value)) < 1000  # and not the whole file
    slow = answers(tmp_path, 3, 0, of=1)
    session = json.loads(slow.read_text())
    session["trials"][-1]["shown_ms"] = [1000, 1500]
    slow.write_text(json.dumps(session))
    assert study.score([slow])[0]["mistimed"] == 1


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("paired", [True, False])
def test_a_session_in_a_browser(tmp_path, paired):
    """From the file, offline: who is told what and when, one second a picture, and the saved answers."""
    playwright = pytest.importorskip("playwright.sync_api")
    shades = {f"p{i}": np.full((16, 16, 3), i, np.uint8) for i in range(4)}
    real = save(tmp_path / "real", **shades)
    fake = save(tmp_path / "fake", **{name: 128 + pixels for name, pixels in shades.items()})
    out = tmp_path / "study.html"
    out.write_text(study.page(fake, real, algorithm="L1", paired=paired, practice=1, trials=2))
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        context = browser.new_context(offline=True)
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.clock.install(time=0)
        page.goto(out.as_uri())
        page.clock.pause_at(60 * 60)  # from here only run_for moves it
        assert "L1" not in page.inner_text("body")
        page.fill("#person", "Ann")
        page.click("#start button")
        fooled = []
        for number in range(3):
            page.wait_for_function("document.getElementById('right').complete")
            shown = {"left": 0, "right": 0}
            for _ in range(60):  # 6 s in steps of 100 ms of the page's clock
                page.clock.run_for(100)
                visible = page.evaluate(VISIBLE)
                assert not {"left", "right"} <= set(visible)  # one after the other
                if "pick-left" in visible:
                    break
                for side in visible:
                    shown[side] += 100
            assert all(900 <= ms <= 1100 for ms in shown.values()), shown
            assert visible == ["pick-left", "pick-right"]
            shade = page.evaluate(SHADE)
            page.keyboard.press("ArrowLeft") if number % 2 else page.click("#pick-left")
            if number == 0:
                page.wait_for_selector("#next:not([hidden])")
                verdict = page.inner_text("#note")
                assert verdict.startswith("Correct" if shade >= 128 else "Wrong")
                page.click("#next")
                assert "practice" in page.inner_text("#note")  # it is over now
                page.click("#next")
            else:
                fooled.append(shade < 128)
                assert "Correct" not in page.inner_text("body")
        page.wait_for_selector("#save")
        with page.expect_download() as download:
            page.click("#save")
        saved = tmp_path / download.value.suggested_filename
        download.value.save_as(saved)
        page.reload()
        assert not page.is_visible("#start") and "already" in page.inner_text("#plan")
        browser.close()
    assert complaints == []
    session = json.loads(saved.read_text())
    assert session["person"] == "Ann" and len(session["trials"]) == 3
    assert all((one["real"] == one["fake_of"]) == paired for one in session["trials"])
    assert len({one["real"] for one in session["trials"]}) == 3
    (found,) = study.score([saved])
    assert found["fooled"] == pytest.approx(100 * np.mean(fooled)) and found["mistimed"] == 0
