"""pix2pix-fast: each verb by click's runner, and what only a real process can show."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tiny import child, environment, noise, tiny_model

from pix2pix_fast import Engine, cli, model
from pix2pix_fast.backends import available

MODEL = tiny_model(dropout=("d1",))
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    model.save(model.Model(MODEL.architecture, MODEL.tensors, {"size": [32, 32]}), path)
    return str(path)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in tmp_path; its errors must be single lines."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any, stdin: bytes = b"") -> Result:
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], stdin)
        if "--debug" not in arguments:
            assert "Traceback" not in result.stderr
        return result

    return run


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise((*size, 3), seed=seed)).save(path)
    return path


def translated(picture: Path) -> np.ndarray:
    with Engine(MODEL, size=(32, 32)) as engine:
        return engine.translate(np.asarray(Image.open(picture).convert("RGB")))


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# translate


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "ppm", "jpg"])
def test_one_file(run: Run, path: str, tmp_path: Path, suffix: str) -> None:
    picture = draw(tmp_path / "a.png")
    result = run("translate", path, "a.png", "-o", f"new/b.{suffix}")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"new/b.{suffix}\n", "")
    if suffix == "jpg":
        assert pixels(tmp_path / "new/b.jpg").shape == (20, 24, 3)
    else:
        np.testing.assert_array_equal(pixels(tmp_path / f"new/b.{suffix}"), translated(picture))
    assert names(tmp_path / "new") == [f"b.{suffix}"]  # and no part of it


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "webp", "bmp", "jpg"])
def test_16_bit_gray_in_every_format(run: Run, tmp_path: Path, suffix: str) -> None:
    gray = tiny_model(ci=1, co=1)
    model.save(gray, tmp_path / "gray.safetensors")
    deep = noise((20, 24), "uint16")
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert run("translate", "gray.safetensors", "a.png", "-o", f"b.{suffix}").exit_code == 0
    with Engine(gray) as engine:
        want = engine.translate(deep)
    made = pixels(tmp_path / f"b.{suffix}")
    if suffix in ("png", "tif", "pgm"):
        np.testing.assert_array_equal(made, want)
        return
    shallow = np.rint(want / 257).astype(np.uint8)
    if suffix == "jpg":
        jpeg = io.BytesIO()
        Image.fromarray(shallow).save(jpeg, "JPEG", quality=95)
        shallow = np.asarray(Image.open(jpeg))
    made = made if made.ndim == 2 else made[..., 0]  # WebP has no gray
    np.testing.assert_array_equal(made, shallow)


def test_folder_is_mirrored(run: Run, path: str, tmp_path: Path) -> None:
    for index, name in enumerate(["a.png", "b.JPG", "deep/er/c.webp", "deep/d.bmp"]):
        draw(tmp_path / "in" / name, index)
    (tmp_path / "in/notes.md").write_text("no picture")
    result = run("translate", path, "in", "-o", "out")
    assert result.exit_code == 0
    made = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "out").rglob("*.*"))
    assert made == ["out/a.png", "out/b.png", "out/deep/d.png", "out/deep/er/c.png"]
    assert sorted(result.stdout.split()) == made
    np.testing.assert_array_equal(
        pixels(tmp_path / "out/deep/d.png"), translated(tmp_path / "in/deep/d.bmp")
    )


def test_results_below_the_source_are_no_sources(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "in/a.png")
    assert run("translate", path, "in", "-o", "in/out").exit_code == 0
    assert run("translate", path, "in", "-o", "in/out", "--overwrite").exit_code == 0
    assert names("in/out") == ["a.png"]
    assert run("translate", path, "in/**/*.png", "-o", "in/out", "--overwrite").exit_code == 0
    assert names("in/out") == ["a.png"]
    assert run("translate", path, "in/*.png", "-o", ".").exit_code == 0  # above the sources
    result = run("translate", path, "in/o*/*.png", "-o", "in/out")
    assert (result.exit_code, result.stderr) == (2, "pix2pix-fast: no file matches in/o*/*.png\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_in_a_folder_is_no_picture(run: Run, path: str, tmp_path: Path) -> None:
    Image.fromarray(noise((9, 9, 3))).save(tmp_path / "b.png")
    os.mkfifo(tmp_path / "a.png")
    result = run("translate", path, tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["b.png"]


def test_patterns_lists_and_several_files(run: Run, path: str, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/b.png", "in/x/c.png", "d.png"):
        draw(tmp_path / name)
    assert run("translate", path, "in/*.png", "-o", "one").exit_code == 0
    assert names("one") == ["a.png", "b.png"]
    assert run("translate", path, "in/**/*.png", "-o", "two").exit_code == 0
    assert names("two") == ["a.png", "b.png", "x"]
    Path("list.txt").write_text("in/x/c.png\n\n d.png \n")
    assert run("translate", path, "list.txt", "-o", "three").exit_code == 0
    assert names("three") == ["c.png", "d.png"]
    assert run("translate", path, "d.png", "in", "-o", "four").exit_code == 0
    assert names("four") == ["a.png", "b.png", "d.png", "x"]
    for folder in ("folder", "folder.png/"):
        assert run("translate", path, "d.png", "-o", folder).exit_code == 0
        assert names(folder) == ["d.png"]


def test_a_folder_that_cannot_be_read_is_named(
    run: Run, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "in/a/a.png")
    draw(tmp_path / "in/b/b.png")
    draw(tmp_path / "in/c/c.png")
    scandir, look = os.scandir, os.stat

    def refuse(path: Any, inside: tuple[str, ...]) -> None:
        if str(path).endswith(inside):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def no_list(path: Any) -> Any:  # as for a folder without r; the tests may run as root
        refuse(path, ("in/a",))
        return scandir(path)

    def no_look(path: Any, **options: Any) -> Any:  # as in a folder without x
        refuse(path, ("c.png",))
        return look(path, **options)

    monkeypatch.setattr(os, "scandir", no_list)
    monkeypatch.setattr(os, "stat", no_look)
    for verb in (("translate", path, "in", "-o", "out"), ("demo", "--model", path, "--pictures", "in")):
        result = run(*verb)
        assert result.exit_code == 1
        lines = result.stderr.splitlines()
        assert "pix2pix-fast: in/a: Permission denied" in lines
        assert "c.png" in result.output  # named or, where Python looks less often, translated
    assert names("out/b") == ["b.png"]
    result = run("translate", path, "in/a", "-o", "out")
    assert (result.exit_code, result.stderr) == (1, "pix2pix-fast: in/a: Permission denied\n")


def test_a_name_with_brackets_is_a_name_first(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a[1].png")
    assert run("translate", path, "a[1].png", "-o", "b.png").exit_code == 0


def test_stdin_and_stdout(run: Run, path: str, tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png")
    want = translated(picture)
    result = run("translate", path, "-", stdin=picture.read_bytes())
    assert result.exit_code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.stdout_bytes))), want)
    result = run("translate", path, "a.png", "-o", "-")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.stdout_bytes))), want)
    assert run("translate", path, "-", "-o", "b.png", stdin=picture.read_bytes()).exit_code == 0
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), want)


def test_facts_stay_out_of_a_picture_on_stdout(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    result = run("translate", path, "a.png", "-o", "-", "--json", "--stats")
    facts = [json.loads(line) for line in result.stderr.splitlines()]
    assert facts[0]["source"] == "a.png" and facts[1]["stats"]["calls"] == 1
    assert result.stdout_bytes.endswith(b"IEND\xaeB`\x82")  # the last bytes of every PNG
    result = run("translate", path, "gone.png", "-o", "-", "--json")
    assert (result.exit_code, result.stdout_bytes) == (1, b"")
    assert json.loads(result.stderr.splitlines()[-1])["source"] == "gone.png"


def test_nothing_is_overwritten_unasked(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "out/a.png", seed=9)
    before = (tmp_path / "out/a.png").read_bytes()
    result = run("translate", path, "a.png", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == "pix2pix-fast: a.png: out/a.png exists; --overwrite replaces it\n"
    assert (tmp_path / "out/a.png").read_bytes() == before
    assert run("translate", path, "a.png", "-o", "out", "--overwrite").exit_code == 0
    assert (tmp_path / "out/a.png").read_bytes() != before


def test_what_cannot_be_written_has_the_name_that_was_asked_for(
    run: Run, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: Any) -> Any:  # as in a folder without w; the tests may run as root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    draw(tmp_path / "a.png")
    monkeypatch.setattr(Path, "open", refuse)
    result = run("translate", path, "a.png", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == "pix2pix-fast: a.png: Permission denied: out/a.png\n"


def test_a_picture_never_replaces_itself(run: Run, path: str, tmp_path: Path) -> None:
    before = draw(tmp_path / "in/a.png").read_bytes()
    for out in ("in", "in/../in/a.png"):
        result = run("translate", path, "in/a.png", "-o", out, "--overwrite")
        assert result.exit_code == 1
        assert "would replace it" in result.stderr
    assert (tmp_path / "in/a.png").read_bytes() == before


def test_a_result_in_a_circle_of_links(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "out").symlink_to("out")
    result = run("translate", path, "a.png", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == "pix2pix-fast: a.png: File exists: out\n"


def test_two_pictures_for_one_result(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "in/a.jpg", 1)
    draw(tmp_path / "in/a.png", 2)
    result = run("translate", path, "in", "-o", "out", "--overwrite")
    assert result.exit_code == 1
    assert "in/a.png: its result out/a.png is also that of in/a.jpg" in result.stderr


def test_a_batch_finishes_and_lists_the_bad_files(run: Run, path: str, tmp_path: Path) -> None:
    for index in range(6):
        draw(tmp_path / f"in/{index}.png", index)
    (tmp_path / "in/1.png").write_bytes(b"not a picture")
    whole = (tmp_path / "in/3.png").read_bytes()
    (tmp_path / "in/3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/5.png").unlink()
    (tmp_path / "in/5.png").mkdir()
    result = run("translate", path, "in", "gone.png", "-o", "out")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("pix2pix-fast: in/1.png: no picture file that we open")
    assert lines[1].startswith("pix2pix-fast: in/3.png: damaged")
    assert lines[2] == "pix2pix-fast: gone.png: No such file or directory"
    assert lines[3] == "pix2pix-fast: 3 of 6 pictures failed"
    assert names("out") == ["0.png", "2.png", "4.png"]


def test_json_and_stats(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    result = run("translate", path, "in", "-o", "out", "--json", "--stats", "--threads", 1)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows[0]["source"] == "in/a.png"
    assert rows[0]["output"] == "out/a.png"
    assert (rows[0]["width"], rows[0]["height"]) == (24, 20)
    assert rows[0]["ms"] > 0
    assert rows[1]["source"] == "in/b.png"
    assert "picture file" in rows[1]["error"]
    assert rows[2]["stats"]["calls"] == 1
    assert rows[2]["stats"]["threads"] == 1
    assert "p50_ms" in run("translate", path, "in/a.png", "-o", "c.png", "--stats").stderr


def test_options_reach_the_engine(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    run("translate", path, "a.png", "-o", "off.png")
    for name, seed in (("one", 1), ("two", 2), ("again", 1)):
        assert (
            run("translate", path, "a.png", "-o", f"{name}.png", "--dropout", seed).exit_code == 0
        )
    made = {name: Path(f"{name}.png").read_bytes() for name in ("off", "one", "two", "again")}
    assert made["one"] == made["again"]
    assert len(set(made.values())) == 3
    no_cuda = [("--backend", "cuda", "backend 'cuda' cannot run")] * bool(available()["cuda"])
    for option, value, words in (
        *no_cuda,
        ("--precision", "f16", "precision='f16'"),
        ("--norm", "running", "norm='running' needs stored statistics"),
    ):
        result = run("translate", path, "a.png", "-o", "b.png", option, value)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"pix2pix-fast: {words}")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument 'MODEL'"),
        (("MODEL",), "Missing argument 'SOURCE...'"),
        (("MODEL", "a.png"), "missing -o OUT"),
        (("no.safetensors", "a.png", "-o", "b.png"), "'no.safetensors' does not exist"),
        (("MODEL", "a.png", "a.png", "-o", "b.png"), "several pictures need a folder"),
        (("MODEL", "folder", "-o", "b.png"), "several pictures need a folder"),
        (("MODEL", "a.png", "a.png", "-o", "-"), "exactly one picture"),
        (("MODEL", "a.png", "-o", "text.md"), "is a file, and no picture file"),
        (("MODEL", "a.png", "-o", "b.gif"), "pictures are written as .png"),
        (("MODEL", "a.png", "-o", ""), "missing -o OUT"),
        (("MODEL", "*.gif", "-o", "out"), "no file matches *.gif"),
        (("MODEL", "empty", "-o", "out"), "no pictures (.png"),
        (("MODEL", "none.txt", "-o", "out"), "none.txt names no picture"),
        (("MODEL", "stdin.txt", "-o", "out"), "a list cannot take stdin"),
        (("MODEL", "a.png", "-o", "b.png", "--threads", "0"), "'--threads'"),
        (("MODEL", "a.png", "-o", "b.png", "--norm", "batch"), "'--norm'"),
        (("MODEL", "a.png", "-o", "b.png", "--colour"), "No such option"),
    ],
)
def test_wrong_usage(run: Run, path: str, tmp_path: Path, arguments: Any, words: str) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "folder/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.md").write_text("")
    (tmp_path / "none.txt").write_text("\n \n")
    (tmp_path / "stdin.txt").write_text("a.png\n-\n")
    result = run("translate", *(path if word == "MODEL" else word for word in arguments))
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "b.png").exists()


def test_alone_it_says_what_there_is(run: Run) -> None:
    result = run()
    assert result.exit_code == 0 and result.stdout.count("\n") > 10


def test_a_pipe_that_closes_early_is_no_error(path: str) -> None:
    shell = f"{sys.executable} -m pix2pix_fast.cli info {path} | true"
    for _ in range(3):  # whether the pipe is closed by then is a matter of luck
        done = subprocess.run(shell, shell=True, capture_output=True, text=True, env=environment())
        assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", ["--help", "--version", "translate --help", "info"])
def test_a_full_disk_under_stdout_is_one_line(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "pix2pix_fast.cli", *arguments.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), cwd="/")
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        ("convert MODEL", "b.safetensors"),
        ("export MODEL", "b.onnx"),
        ("demo --model MODEL -o", "b.png"),
        ("translate MODEL a.png -o", "b.png"),
    ],
)
def test_what_no_disk_has_room_for_is_named(path: str, tmp_path: Path, arguments: str, out: str) -> None:
    if arguments.startswith("export"):
        pytest.importorskip("onnx")
    draw(tmp_path / "a.png")
    verb = f"{sys.executable} -m pix2pix_fast.cli {arguments.replace('MODEL', path)} {out}"
    done = subprocess.run(
        f"ulimit -f 1; {verb}", shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 1 and f"File too large: {out}\n" in done.stderr
    assert names(tmp_path) == ["a.png"]


def test_a_list_from_windows(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "list.txt").write_bytes("\ufeffa.png\r\n".encode())
    assert run("translate", path, "list.txt", "-o", "out").exit_code == 0
    assert (tmp_path / "out/a.png").exists()


def test_models_of_the_package_by_name(run: Run, tmp_path: Path) -> None:
    result = run("info", "edges2photo", "--json")
    assert json.loads(result.stdout)["architecture"]["ngf"] == 16
    draw(tmp_path / "a.png")
    assert run("translate", "edges2photo", "a.png", "-o", "b.png").exit_code == 0
    (tmp_path / "edges2photo").write_text("a file of that name comes first")
    assert "is of no known kind" in run("translate", "edges2photo", "a.png", "-o", "c.png").stderr


def test_info_and_verify_of_foreign_files(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    junyanz = pytest.importorskip("junyanz_unet")
    torch.manual_seed(0)
    net = junyanz.UnetGenerator(ngf=8, num_downs=5)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    result = run("info", "net.pth")
    assert result.exit_code == 0 and "depth: 5" in result.stdout
    assert "none (only our own files" in run("verify", "net.pth").stdout
    (tmp_path / "words.pth").write_text("words, and no weights")
    assert "header of" not in run("info", "words.pth").stderr


def test_debug_shows_the_traceback(run: Run, path: str) -> None:
    assert isinstance(run("info", __file__, "--debug").exception, model.ModelFormatError)
    result = run("info", __file__)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_tracebacks_of_a_batch(run: Run, path: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    result = run("translate", path, "gone.png", "a.png", "-o", "out", "--debug")
    assert (result.exit_code, result.stdout) == (1, "out/a.png\n")
    assert "Traceback" in result.stderr and "FileNotFoundError" in result.stderr


def test_names_cannot_steer_the_terminal(run: Run, path: str, tmp_path: Path) -> None:
    name = "a\x1b[31m\n\udcff.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(draw(tmp_path / "x.png").read_bytes())
    (tmp_path / "in" / ("bad" + name)).write_bytes(b"")
    result = run("translate", path, "in", "-o", "out")
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout + result.stderr
    assert result.stdout == "out/a\\x1b[31m\\n\\udcff.png\n"
    assert (tmp_path / "out" / name).exists()
    error = run("info", path, name).stderr  # click's words
    assert "\\x1b" in error and "\x1b" not in error


def test_names_with_spaces_and_lines_are_told_as_they_are(run: Run, path: str, tmp_path: Path) -> None:
    photo, shot, bad, lines = "写真\u30001.png", "10.22\u202fAM.png", "two  spaces.png", "a\nb.png"
    picture = draw(tmp_path / "in" / photo).read_bytes()
    for name, data in ((shot, picture), (bad, b""), (lines, b"")):
        (tmp_path / "in" / name).write_bytes(data)
    result = run("translate", path, "in", "-o", "out")
    assert result.stdout == f"out/{shot}\nout/{photo}\n"
    assert result.stderr.startswith("pix2pix-fast: in/a\\nb.png: no picture file that we open")
    assert "pix2pix-fast: in/two  spaces.png: no picture file that we open" in result.stderr
    result = run("translate", path, "in", "-o", "out", "--overwrite", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["source"] for row in rows} == {f"in/{name}" for name in (photo, shot, bad, lines)}
    assert all(Path(row["output"]).exists() for row in rows if "output" in row)


# Models


def test_convert(run: Run, path: str, tmp_path: Path) -> None:
    result = run("convert", path, "new.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "depth: 3" in result.stdout
    assert model.load("new.safetensors").architecture == MODEL.architecture
    assert run("convert", path, "new.safetensors").exit_code == 1
    assert run("convert", path, "new.safetensors", "--overwrite").exit_code == 0
    result = run("convert", __file__, "other.safetensors")
    assert result.exit_code == 1
    assert not Path("other.safetensors").exists()


def test_info(run: Run, path: str) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["backends"]["cpu"] == "ready"
    assert facts["backends"]["cuda"] == (available()["cuda"] or "ready")
    assert facts["isa"] in facts["runnable"]
    text = run("info").stdout
    assert "isa: " in text
    assert "  cpu: ready" in text
    facts = json.loads(run("info", path, "--json").stdout)
    assert facts["architecture"]["depth"] == 3
    assert facts["digest"] == model.load(path).digest
    assert "  depth: 3" in run("info", path).stdout


def test_verify(run: Run, path: str, tmp_path: Path) -> None:
    result = run("verify", path, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["agree"]
    assert facts["max_level_difference"] <= 1
    assert facts["rooms"][0] == "scalar"
    spoilt = bytearray(Path(path).read_bytes())
    spoilt[-5] ^= 1
    Path("spoilt.safetensors").write_bytes(spoilt)
    result = run("verify", "spoilt.safetensors")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_bench(run: Run, path: str) -> None:
    few = ("--size", "20x24", "--seconds", "0")
    rows = run("bench", path, *few, "--threads", "1,2", "--json").stdout.splitlines()
    assert [json.loads(row)["threads"] for row in rows] == [1, 2]
    assert json.loads(rows[0])["fps"] > 0
    assert len(run("bench", path, *few, "--threads", "1").stdout.splitlines()) == 2
    assert run("bench", path, "--size", "20").exit_code == 2
    assert run("bench", path, "--size", "axb").exit_code == 2
    assert run("bench", path, "--threads", "0").exit_code == 2
    assert run("bench", path, *few, "--precision", "int8").exit_code == 1


def test_demo(run: Run, path: str, tmp_path: Path) -> None:
    for index, size in enumerate([(32, 32), (20, 24), (32, 48)]):
        draw(tmp_path / f"drawings/{index}.png", index, size)
    result = run("demo", "--model", path, "--pictures", "drawings", "-o", "sheet.png")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(" ms") == 3
    assert "20x24" in result.stdout
    sheet = pixels(tmp_path / "sheet.png")
    drawing = pixels(tmp_path / "drawings/0.png")
    np.testing.assert_array_equal(sheet[8:40, 8:40], drawing)
    np.testing.assert_array_equal(sheet[48:80, 8:40], translated(tmp_path / "drawings/0.png"))
    assert run("demo", "--model", path, "-o", "sheet.png").exit_code == 1
    result = run("demo", "--model", "no.safetensors", "-o", "other.png")
    assert result.exit_code == 2
    assert "no.safetensors" in result.stderr
    assert run("demo", "--model", "edges2photo", "--pictures", "drawings", "-o", "c.png").exit_code == 0
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "sheet.png").read_bytes()


def test_a_name_longer_than_names_can_be(run: Run) -> None:
    result = run("info", "y" * 300)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "File name too long" in result.stderr


def test_demo_shows_16_bit_drawings_as_they_look(run: Run, path: str, tmp_path: Path) -> None:
    deep = noise((32, 32), "uint16")
    (tmp_path / "drawings").mkdir()
    Image.fromarray(deep).save(tmp_path / "drawings/a.png")
    assert run("demo", "--model", path, "--pictures", "drawings", "-o", "sheet.png").exit_code == 0
    want = np.rint(deep / 257)
    np.testing.assert_array_equal(pixels(tmp_path / "sheet.png")[8:40, 8:40, 0], want)


@pytest.mark.parametrize("verb", ["info", "translate", "verify"])
def test_a_name_that_is_no_model(run: Run, verb: str) -> None:
    result = run(verb, "facade", *(["a.png", "-o", "b.png"] if verb == "translate" else []))
    assert result.exit_code == 2
    assert "nor a model of the package (edges2photo, facades_labels2photo): facade" in result.stderr


def test_demo_leaves_out_what_it_cannot_read(run: Run, path: str, tmp_path: Path) -> None:
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings/a.png").write_bytes(b"no picture")
    result = run("demo", "--model", path, "--pictures", "drawings", "-o", "sheet.png")
    assert result.exit_code == 1 and "none of the pictures can be read" in result.stderr
    assert not (tmp_path / "sheet.png").exists()
    draw(tmp_path / "drawings/b.png", 0, (32, 32))
    result = run("demo", "--model", path, "--pictures", "drawings", "-o", "sheet.png")
    assert result.exit_code == 1 and "a.png: " in result.stderr
    assert result.stdout.count(" ms") == 1
    assert (tmp_path / "sheet.png").exists()


def test_the_example_drawings_are_there() -> None:
    from importlib.resources import files

    folder = files("pix2pix_fast") / "assets" / "pictures"
    sizes = {Image.open(str(drawing)).size for drawing in folder.iterdir()}
    assert len(list(folder.iterdir())) >= 4
    assert (256, 256) in sizes
    assert any(width != height for width, height in sizes)


# What only a process can show


def start(*arguments: Any, **extra: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pix2pix_fast.cli", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **extra,
    )


def test_a_real_process(path: str, tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png")
    process = start("translate", path, "-", stdin=subprocess.PIPE, cwd=tmp_path)
    out, err = process.communicate(picture.read_bytes(), timeout=60)
    assert (process.returncode, err) == (0, b"")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(out))), translated(picture))
    process = start("translate", path, "a.png", "-o", "no/such.gif/", "--json", cwd=tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0  # a folder of that name


def test_streams_that_are_closed_or_cannot_hold_a_name(path: str, tmp_path: Path) -> None:
    draw(tmp_path / "in/\u00e9.png")
    draw(tmp_path / "in/\u30001.png")
    verb = f"{sys.executable} -m pix2pix_fast.cli"

    def done(shell: str, **extra: str) -> tuple[int, bytes, bytes]:
        process = subprocess.run(
            shell, shell=True, capture_output=True, cwd=tmp_path, env=environment(**extra)
        )
        return process.returncode, process.stdout, process.stderr

    assert done(f"{verb} translate {path} in -o a >&- 2>&-") == (0, b"", b"")
    assert names(tmp_path / "a") == names(tmp_path / "in")
    code, _, error = done(f"{verb} translate {path} - -o b.png <&-")
    assert code == 1 and b"no picture file" in error
    want = b"c/\xe9.png\nc/\\u30001.png\n"
    assert done(f"{verb} translate {path} in -o c", PYTHONIOENCODING="latin-1") == (0, want, b"")


def test_interrupted_batches_exit_with_130(path: str, tmp_path: Path) -> None:
    for index in range(400):
        draw(tmp_path / f"in/{index:03}.png", index, (64, 64))
    process = start("translate", path, "in", "-o", "out", cwd=tmp_path)
    end = time.monotonic() + 60
    while not (tmp_path / "out").exists() and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"pix2pix-fast: interrupted\n")
    made = names(tmp_path / "out")
    assert 0 < len(made) < 400
    assert all(name.endswith(".png") for name in made)  # whole files only
    for name in made:
        assert pixels(tmp_path / "out" / name).shape == (64, 64, 3)


def test_help_is_light() -> None:
    """Without the heavy libraries; its time is in bench/suite.py."""
    code = """
import sys
from pix2pix_fast import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
print("loaded:", *sorted({"torch", "PIL", "rich", "onnx"} & set(sys.modules)))
"""
    lines = child(code).splitlines()
    for verb in ("translate", "convert", "info", "verify", "bench", "demo", "train"):
        assert any(line.split()[:1] == [verb] for line in lines)
    assert lines[-1] == "loaded:"


def test_version(run: Run) -> None:
    import pix2pix_fast

    assert run("--version").stdout.strip() == pix2pix_fast.__version__


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_without_torch_training_names_the_cure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "data").mkdir()
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("pix2pix_fast.train.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    words = {"train": ["facades", "data", "-o", "run"], "evaluate": ["data", "data"]}[verb]
    result = run(verb, *words)
    assert result.exit_code == 1
    assert "pip install 'pix2pix_fast[train]'" in result.stderr and "torch" in result.stderr


@pytest.mark.parametrize(("ci", "co", "cure"), [(1, 2, "train.colorize"), (4, 3, "on arrays")])
def test_a_model_that_no_picture_file_fits(run: Run, tmp_path: Path, ci: int, co: int, cure: str) -> None:
    made = tiny_model(ci=ci, co=co)
    model.save(made, tmp_path / "m.safetensors")
    draw(tmp_path / "a.png", 0, (32, 32))
    result = run("translate", "m.safetensors", "a.png", "-o", "b.png")
    assert result.exit_code == 1
    assert f"makes {co} channels of {ci}" in result.stderr and cure in result.stderr
