"""The page in a real browser: a stroke is drawn, the picture changes, its latency is shown.

Needs Debian's chromium (`.ci/run` installs it) and skips without. Screenshots stay under out/.
"""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import environment, noise, tiny_model

from pix2pix_fast import model

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OUT = Path(__file__).resolve().parents[1] / "out"
ELSEWHERE = "studio.local"  # a name that is not the loopback's, for the browser
SHOWN = "#stats:not([data-frames='0'])"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"
)


@contextmanager
def serving(*models: Path, port: str = "0") -> Iterator[str]:
    """The server's address, as the command starts it: in this process it would share the
    interpreter with what drives the browser."""
    command = [sys.executable, "-m", "pix2pix_fast.cli", "serve", "--port", port, *map(str, models)]
    command += ["--allow-host", ELSEWHERE]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), cwd="/"
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """With the two models of the package."""
    with serving() as url:
        yield url


def labels_models(folder: Path, **sizes: list[int]) -> list[Path]:
    """Files of models of these names and sizes (height, width)."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}_labels2photo.safetensors" for name in sizes]
    for path, size in zip(paths, sizes.values(), strict=True):
        made = tiny_model()
        card = {"name": path.stem, "size": size, "task": "labels to photo"}
        model.save(model.Model(made.architecture, made.tensors, card), path)
    return paths


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With a labels model of 192 x 192 and one of 64 x 32."""
    folder = tmp_path_factory.mktemp("small")
    with serving(*labels_models(folder, large=[192, 192], small=[32, 64])) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    names = f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", names, *fake]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, its first picture shown; any complaint of the browser fails the test."""
    options = getattr(request, "param", {"viewport": {"width": 1280, "height": 800}})
    context = browser.new_context(permissions=["camera"], **options)
    page = context.new_page()
    complaints: list[str] = []
    outside: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: outside.append(request.url))
    page.goto(address)
    page.wait_for_selector(SHOWN, timeout=20_000)
    yield page
    context.close()
    assert complaints == []
    assert [url for url in outside if not url.startswith((address, "data:", "blob:"))] == []


def pixels(page: Any, canvas: str) -> np.ndarray:
    """(h, w, 4) uint8 of a canvas."""
    url = page.evaluate(f"document.getElementById('{canvas}').toDataURL('image/png')")
    file = io.BytesIO(base64.b64decode(url.partition(",")[2]))
    return np.asarray(Image.open(file).convert("RGBA"))


def frames(page: Any) -> int:
    return int(page.get_attribute("#stats", "data-frames"))


def settled(page: Any, beyond: int) -> None:
    """Wait until a frame after the first `beyond` ones is shown and no more are coming."""
    end = time.monotonic() + 20
    last = -1
    while time.monotonic() < end:
        count = frames(page)
        if count > beyond and count == last:
            return
        last = count
        page.wait_for_timeout(150)
    raise AssertionError("no new picture came")


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript condition; the page's policy forbids Playwright's own way."""
    end = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def stroke(page: Any, start: tuple[float, float], end: tuple[float, float], steps: int) -> None:
    box = page.locator("#ink").bounding_box()
    places = np.linspace(start, end, steps) * (box["width"], box["height"]) + (box["x"], box["y"])
    page.mouse.move(*map(float, places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*map(float, place))
    page.mouse.up()


def keep(page: Any, name: str) -> None:
    OUT.mkdir(exist_ok=True)
    page.screenshot(path=str(OUT / name))


def test_a_stroke_changes_the_picture_and_its_latency_is_shown(page: Any) -> None:
    settled(page, 0)
    drawing, picture, count = pixels(page, "ink"), pixels(page, "picture"), frames(page)
    page.click("#inks button:has-text('Shop')")
    stroke(page, (0.2, 0.5), (0.8, 0.7), 60)
    settled(page, count)
    assert frames(page) > count + 3  # while the pen moved, not only at its end
    after = pixels(page, "ink")
    changed = (drawing != after).any(axis=2)
    assert (after[changed] == (176, 0, 0, 255)).all()  # the label's own colour, nothing between
    assert changed.sum() > 800
    assert (np.abs(picture.astype(int) - pixels(page, "picture")) > 16).any(axis=2).sum() > 800
    for name in ("engine", "latency", "rate"):
        assert float(page.inner_text(f"#{name}")) > 0
    p50, engine = (float(page.get_attribute("#stats", f"data-{name}")) for name in ("p50", "engine"))
    print(f"stroke to picture p50 {p50} ms, engine {engine} ms, rest {p50 - engine:.1f} ms")
    keep(page, "page.png")
    page.keyboard.press("Control+z")
    settled(page, frames(page) - 1)
    assert (pixels(page, "ink") == drawing).all()
    page.keyboard.press("Control+Shift+z")
    assert (pixels(page, "ink") == after).all()


def test_the_first_sample_is_no_step_to_undo(page: Any) -> None:
    for which in ("0", "1"):
        page.select_option("#model", which)
        settled(page, 0)
        assert page.is_disabled("#undo")


def test_every_tool_by_keyboard(page: Any) -> None:
    settled(page, 0)
    page.focus("#ink")
    page.keyboard.press("Delete")
    paper = (0, 0, 221)
    assert (pixels(page, "ink")[..., :3] == paper).all()
    page.keyboard.press("1")
    page.keyboard.press("r")
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    box = (pixels(page, "ink")[..., :3] == (0, 48, 255)).all(axis=2)
    assert box.sum() == 48 * 48 and box[128:176, 128:176].all()
    page.keyboard.press("f")
    page.keyboard.press("3")
    page.keyboard.press("ArrowUp")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    inside = pixels(page, "ink")[..., :3]
    assert (inside[150, 150] == (0, 208, 255)).all() and (inside[5, 5] == paper).all()
    page.keyboard.press("e")
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    assert (pixels(page, "ink")[..., :3] == paper).all(axis=2)[155:170, 155:170].any()
    assert page.get_attribute("[data-tool=eraser]", "aria-pressed") == "true"
    for _ in range(3):
        page.keyboard.press("Control+z")
    assert (pixels(page, "ink")[..., :3] == paper).all()
    page.keyboard.press("c")
    assert page.is_visible("#cut")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    keep(page, "page_help.png")
    page.keyboard.press("Escape")


def test_filling_by_keyboard_on_a_sheet_smaller_than_the_last(browser: Any, small: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(small)
    page.wait_for_selector(SHOWN, timeout=20_000)
    page.focus("#ink")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowDown")  # to where the other sheet has no pixel
    for key in ("m", "Delete", "f", "2", "Space"):
        page.keyboard.press(key)
    page.set_default_timeout(10_000)
    sheet = pixels(page, "ink")
    assert sheet.shape == (32, 64, 4) and (sheet == (0, 128, 255, 255)).all()
    context.close()


def test_a_sample_that_comes_late_leaves_a_drawing_alone(browser: Any, small: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    held: list[Any] = []
    page.route("**/samples/*", lambda route: held.append(route))  # Playwright takes no builtin
    page.goto(small)
    page.wait_for_selector(SHOWN, timeout=20_000)
    page.focus("#ink")
    for key in ("f", "Space"):  # the sheet is still empty
        page.keyboard.press(key)
    drawn = pixels(page, "ink")
    assert held and (drawn == drawn[0, 0]).all()
    for route in held:
        route.continue_()
    page.evaluate("Promise.all([...document.querySelectorAll('#samples img')].map((one) => one.decode()))")
    page.wait_for_timeout(100)
    assert (pixels(page, "ink") == drawn).all()
    page.keyboard.press("Control+z")  # and what was drawn can be taken back
    assert (pixels(page, "ink") != drawn).any()
    context.close()


def test_a_sample_that_cannot_be_loaded_says_so(browser: Any, small: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("**/samples/*", lambda route: route.abort())
    page.goto(small)
    page.wait_for_selector("#note:not([hidden])", timeout=20_000)
    page.click("#note button")
    page.click("#samples button >> nth=1")
    page.wait_for_selector("#note:not([hidden])")
    name = page.inner_text("#samples button >> nth=1").lower()
    assert f"sample {name} could not be loaded" in page.inner_text("#note") and errors == []
    assert page.is_disabled("#undo")
    context.close()


def test_focus_goes_where_one_goes_on(page: Any) -> None:
    page.set_viewport_size({"width": 740, "height": 360})
    page.focus("#ask")
    page.keyboard.press("Enter")
    heading = page.locator("#help-title").bounding_box()
    assert heading["y"] > 0  # its beginning is seen, though the window is low
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("c")
    assert page.evaluate("document.activeElement.id") == "cut"
    page.keyboard.press("c")
    page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement.id") == "compare"


def test_the_slider_is_where_the_border_is(page: Any) -> None:
    page.evaluate("$('cut').value = 80")  # as a browser may, which comes back to the page
    page.keyboard.press("c")
    box = page.locator("#picture").bounding_box()
    edge = page.evaluate("$('edge').getBoundingClientRect().left") + 1 - box["x"]
    assert edge == pytest.approx(0.8 * box["width"], abs=1)


@pytest.mark.parametrize("then", ["clear", "undo"])  # by the other hand, or a key
def test_a_stroke_ends_where_something_else_changes_the_sheet(page: Any, then: str) -> None:
    settled(page, 0)
    before = pixels(page, "ink")
    page.keyboard.press("r")
    box = page.locator("#ink").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 120)
    page.evaluate(f"{then}()")
    page.mouse.move(box["x"] + 180, box["y"] + 180)
    page.mouse.up()
    sheet = pixels(page, "ink")
    paper = np.full_like(sheet, (0, 0, 221, 255))
    np.testing.assert_array_equal(sheet, paper if then == "clear" else before)


HANDS = """(events) => {
    const box = ink.getBoundingClientRect(), wide = box.width / ink.width, high = box.height / ink.height;
    const moved = "onpointerrawupdate" in ink ? "pointerrawupdate" : "pointermove";
    const names = { down: "pointerdown", move: moved, up: "pointerup" };
    ink.setPointerCapture = () => {};  // these pointers are not real
    clear();
    for (const [what, pointerId, pointerType, isPrimary, x, y] of events)
        ink.dispatchEvent(new PointerEvent(names[what], { pointerId, pointerType, isPrimary, bubbles: true,
            clientX: box.left + x * wide, clientY: box.top + y * high }));
}"""


@pytest.mark.parametrize(
    ("events", "drawn", "clean"),
    [
        (  # a palm lies down while the pen draws
            [("down", 1, "pen", True, 20, 20), ("down", 2, "touch", True, 200, 200)]
            + [("move", 1, "pen", True, 90, 20), ("move", 2, "touch", True, 200, 210)],
            [(20, 20), (60, 20), (90, 20)],
            [(200, 200), (120, 110)],
        ),
        (  # a palm lies there already
            [("down", 2, "touch", True, 200, 200), ("down", 1, "pen", True, 20, 20)]
            + [("move", 1, "pen", True, 90, 20), ("up", 2, "touch", True, 200, 200)]
            + [("move", 1, "pen", True, 150, 20)],
            [(20, 20), (60, 20), (150, 20)],
            [(200, 200), (120, 110)],
        ),
        (  # a second finger comes and goes
            [("down", 1, "touch", True, 20, 20), ("down", 2, "touch", False, 200, 200)]
            + [("up", 2, "touch", False, 200, 200), ("move", 1, "touch", True, 90, 20)],
            [(20, 20), (60, 20), (90, 20)],
            [(200, 200), (120, 110)],
        ),
    ],
)
def test_one_hand_draws(page: Any, events: list[Any], drawn: list[Any], clean: list[Any]) -> None:
    page.evaluate(HANDS, events)
    sheet = pixels(page, "ink")[..., :3]
    assert all((sheet[y, x] != (0, 0, 221)).any() for x, y in drawn)
    assert all((sheet[y, x] == (0, 0, 221)).all() for x, y in clean)


def test_everything_has_a_name(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input:not([type=file]), select, canvas[tabindex]")]
        .filter((one) => one.checkVisibility() && !(one.ariaLabel || one.textContent.trim() || one.labels?.length))
        .map((one) => one.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}],
    indirect=True,
)
def test_a_phone_and_the_other_model(page: Any, tmp_path: Path) -> None:
    settled(page, 0)
    count = frames(page)
    page.select_option("#model", "1")
    settled(page, count)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert in_view(page) and page.locator("#ink").bounding_box()["width"] >= 220
    shoe, count = pixels(page, "picture"), frames(page)
    page.click("#samples button:has-text('Handbag')", force=True)
    settled(page, count)
    assert (shoe != pixels(page, "picture")).any()
    keep(page, "page_phone.png")
    photo = np.full((300, 400, 3), 230, np.uint8)
    photo[80:220, 120:280] = (40, 60, 160)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    page.set_input_files("#file", str(tmp_path / "photo.jpg"))
    settled(page, count)
    lines = pixels(page, "ink")[..., 0]
    assert set(np.unique(lines)) == {0, 255} and 200 < (lines == 0).sum() < 4000  # its outline
    with page.expect_download() as download:
        page.click("#save")
    saved = np.asarray(Image.open(download.value.path()))
    assert download.value.suggested_filename == "edges2photo.png"
    assert (saved[..., :3] == pixels(page, "picture")[..., :3]).all()


COVERED = """[...document.querySelectorAll("main button")].filter((one) => one.checkVisibility()).filter((one) => {
    one.scrollIntoView({ block: "center", inline: "center" });
    const { x, y, width, height } = one.getBoundingClientRect();
    return !one.contains(document.elementFromPoint(x + width / 2, y + height / 2));
}).map((one) => one.outerHTML)"""


def in_view(page: Any) -> bool:
    """Whether both sheets are, as wholes and at once, at the top of the page."""
    page.evaluate("scrollTo(0, 0)")
    boxes = [page.locator(canvas).bounding_box() for canvas in ("#ink", "#picture")]
    high = page.viewport_size["height"]
    return all(box["y"] >= 0 and box["y"] + box["height"] <= high for box in boxes)


def test_sheets_of_other_shapes_fit(browser: Any, tmp_path: Path) -> None:
    models = labels_models(tmp_path, tall=[64, 32], wide=[16, 128])
    with serving(*models) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector(SHOWN, timeout=20_000)
        for width, height in ((1280, 800), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            for which, shape in (("0", 0.5), ("1", 8)):
                page.select_option("#model", which)
                box = page.locator("#ink").bounding_box()
                assert box["width"] / box["height"] == pytest.approx(shape, rel=0.02)
                assert in_view(page)
                assert page.evaluate(COVERED) == []
        page.context.close()


def test_a_picture_with_holes_lies_on_paper(page: Any, tmp_path: Path) -> None:
    settled(page, 0)
    holes = np.zeros((256, 256, 4), np.uint8)
    holes[100:120, 100:120] = (255, 0, 0, 255)
    Image.fromarray(holes).save(tmp_path / "holes.png")
    count = frames(page)
    page.set_input_files("#file", str(tmp_path / "holes.png"))
    settled(page, count)
    sheet = pixels(page, "ink").copy()
    assert (sheet[110, 110] == (255, 0, 0, 255)).all()
    sheet[100:120, 100:120] = (0, 0, 221, 255)
    assert (sheet == (0, 0, 221, 255)).all()


def test_the_camera_keeps_the_picture_moving(page: Any) -> None:
    settled(page, 0)
    count = frames(page)
    page.select_option("#model", "1")
    settled(page, count)
    page.click("#camera")  # Chromium's own moving test picture
    end = time.monotonic() + 20
    start = frames(page)
    while frames(page) < start + 20 and time.monotonic() < end:
        page.wait_for_timeout(100)
    assert frames(page) >= start + 20
    assert page.inner_text("#latency-name") == "Camera to picture"
    keep(page, "page_camera.png")
    page.click("#camera")
    assert page.inner_text("#latency-name") == "Stroke to picture"


WATCHED = """() => {
    const devices = navigator.mediaDevices, plain = devices.getUserMedia.bind(devices);
    window.streams = [];
    devices.getUserMedia = async (wanted) => {
        const stream = await plain(wanted);
        await new Promise((done) => setTimeout(done, 300));  // who gives the permission takes time
        streams.push(stream);
        return stream;
    };
}"""
LIVE = "streams.flatMap((one) => one.getTracks()).filter((one) => one.readyState === 'live').length"


def test_a_camera_that_is_unplugged_says_so(page: Any) -> None:
    page.click("#camera")
    until(page, "$('latency-name').textContent === 'Camera to picture'")
    page.evaluate("stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    assert "camera stopped" in page.inner_text("#note")
    assert page.get_attribute("#camera", "aria-pressed") == "false"


@pytest.mark.parametrize("then", ["$('camera').click()", "choose(1)"])
def test_a_camera_that_comes_late_is_stopped(page: Any, then: str) -> None:
    page.evaluate(WATCHED)
    page.evaluate(f"() => {{ $('camera').click(); {then}; }}")
    until(page, "streams.length > 0")
    page.wait_for_timeout(500)
    assert page.evaluate(LIVE) == 0
    assert page.get_attribute("#camera", "aria-pressed") == "false"
    page.click("#camera")  # and it can be had afterwards
    until(page, f"{LIVE} === 1")
    until(page, "$('latency-name').textContent === 'Camera to picture'")
    page.click("#camera")
    assert page.evaluate(LIVE) == 0


def test_a_picture_of_much_detail_still_travels(browser: Any, tmp_path: Path) -> None:
    made = tiny_model()
    card = {"name": "wide", "size": [1024, 1024]}
    model.save(model.Model(made.architecture, made.tensors, card), tmp_path / "wide.safetensors")
    Image.fromarray(noise((1024, 1024, 3))).save(tmp_path / "noise.png")  # 3 MiB; a message has 2
    with serving(tmp_path / "wide.safetensors") as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector(SHOWN, timeout=20_000)
        settled(page, 0)
        before, count = pixels(page, "picture"), frames(page)
        page.set_input_files("#file", str(tmp_path / "noise.png"))
        settled(page, count)
        assert (before != pixels(page, "picture")).any() and page.is_hidden("#note")
        # what no form makes small enough is said, and the page is ready for the next
        page.evaluate("limits.message = 100_000; changed()")
        page.wait_for_selector("#note:not([hidden])")
        assert "too much detail" in page.inner_text("#note")
        count = frames(page)
        page.keyboard.press("Delete")
        settled(page, count)
        context.close()


def test_a_server_that_comes_back(browser: Any, tmp_path: Path) -> None:
    """With the same models the drawing goes on; with one of the same name, it is another one."""
    small, large = (
        labels_models(tmp_path / name, run=[side, side])
        for name, side in (("small", 32), ("large", 64))
    )
    page = browser.new_page()
    with serving(*small) as url:
        page.goto(url)
        page.wait_for_selector(SHOWN, timeout=20_000)
        page.keyboard.press("Delete")
    port = url.rstrip("/").rpartition(":")[2]
    page.wait_for_selector("#note:not([hidden])", timeout=20_000)
    page.focus("#ink")
    page.keyboard.press("Space")
    drawing = pixels(page, "ink")
    with serving(*small, port=port):
        page.wait_for_selector("#state[data-state='ready']", timeout=20_000)
        assert page.is_hidden("#note")
        assert (pixels(page, "ink") == drawing).all()
    page.wait_for_selector("#state[data-state='lost']", timeout=20_000)
    with serving(*large, port=port):
        page.wait_for_selector("#state[data-state='ready']", timeout=20_000)
        until(page, "picture.width === 64 && !waiting")
        assert pixels(page, "ink").shape == (64, 64, 4)
    page.context.close()


def test_two_pages_both_keep_moving(page: Any, browser: Any, address: str) -> None:
    context = browser.new_context(permissions=["camera"])
    other = context.new_page()
    other.goto(address)
    other.wait_for_selector(SHOWN)
    for one in (page, other):
        one.click("#camera")
    start = [frames(one) for one in (page, other)]
    end = time.monotonic() + 20
    while time.monotonic() < end:
        page.wait_for_timeout(100)
        moved = [frames(one) - since for one, since in zip((page, other), start, strict=True)]
        if min(moved) >= 20:
            break
    context.close()
    assert min(moved) >= 20, moved


def test_from_another_machine_picture_files_travel(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    received: list[int] = []
    page.on(
        "websocket",
        lambda talk: talk.on("framereceived", lambda data: received.append(len(data))),
    )
    # Chromium encodes for toBlob when it is idle, which a busy machine's is after seconds
    page.add_init_script("HTMLCanvasElement.prototype.toBlob = () => {};")
    page.goto(address.replace("127.0.0.1", ELSEWHERE))
    page.wait_for_selector(SHOWN, timeout=20_000)
    settled(page, 0)
    before, count = pixels(page, "picture"), frames(page)
    stroke(page, (0.2, 0.4), (0.8, 0.6), 30)
    settled(page, count)
    assert (before != pixels(page, "picture")).any()
    assert len(received) > 2 and max(received[1:]) < 60_000  # raw pixels would be 196 636 bytes
    with page.expect_download() as download:
        page.click("#save")
    saved = np.asarray(Image.open(download.value.path()).convert("RGBA"))
    np.testing.assert_array_equal(saved, pixels(page, "picture"))
    page.click("#camera")  # which browsers refuse here
    page.wait_for_selector("#note:not([hidden])")
    assert "over https" in page.inner_text("#note")
    context.close()


@pytest.mark.parametrize("size", [(820, 1180), (1024, 768), (1280, 720), (1366, 640), (844, 390)])
def test_every_label_can_be_read_and_no_button_leaves_its_card(
    page: Any, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("$('engine').textContent = $('latency').textContent = '1234.5'")  # a slow machine
    cut = page.evaluate(
        """[...document.querySelectorAll("#inks span")]
        .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)"""
    )
    assert cut == []
    outside = page.evaluate(
        """[...document.querySelectorAll(".card button, .card dd")]
        .filter((one) => one.getBoundingClientRect().right > one.closest(".card").getBoundingClientRect().right)
        .map((one) => one.outerHTML)"""
    )
    assert outside == []


def test_on_a_small_laptop_nothing_scrolls(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollHeight") == 800


@pytest.mark.parametrize("which", ["0", "1"])
@pytest.mark.parametrize("size", [(740, 360), (720, 450), (568, 320)])  # phones on their side; 200 %
def test_on_its_side_a_phone_shows_drawing_and_picture(
    page: Any, size: tuple[int, int], which: str
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.select_option("#model", which)
    assert in_view(page)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.evaluate(COVERED) == []


def test_at_320_pixels_nothing_scrolls_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 568})
    assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("page", [{"forced_colors": "active"}], indirect=True)
def test_in_a_systems_own_colours_labels_and_tools_can_be_told_apart(page: Any) -> None:
    def shown(selector: str) -> set[str]:
        return set(
            page.eval_on_selector_all(
                selector, "all => all.map((one) => getComputedStyle(one).backgroundColor)"
            )
        )

    assert len(shown("#inks i")) == 12
    for kind in ("[data-tool]", "#inks button"):
        pressed = shown(f"{kind}[aria-pressed=true]")
        assert len(pressed) == 1 and not pressed & shown(f"{kind}[aria-pressed=false]")
    keep(page, "page_forced.png")
