"""A served app with a tiny checkpoint, a headless Chromium, and what `reg4pru predict` says of the images."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_fives.sources.synthetic import draw_image
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import predict

KEEP_RATES = (0.5, 0.3)


class Served(NamedTuple):
    """Where the app is, and the folders of its images and of what `predict` wrote for them."""

    address: str
    images: Path
    predicted: Path
    log: Path

    def expected(self, name: str, kind: str, rate: float) -> np.ndarray:
        return np.asarray(Image.open(self.predicted / f"{name}_{kind}_{rate:g}.png"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two images, one of them also turned by its EXIF tag, and in 16 bits."""
    folder = tmp_path_factory.mktemp("images")
    drawn = [Image.fromarray(draw_image(128, "N", np.random.SeedSequence((5, index)))[0]) for index in range(2)]
    drawn[0].save(folder / "first.png")
    drawn[1].save(folder / "second.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    drawn[0].crop((0, 0, 128, 96)).save(folder / "turned.jpg", exif=exif, quality=95)
    green = np.asarray(drawn[0])[..., 1].astype(np.uint16) * 257
    Image.fromarray(green).save(folder / "deep.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    torch.manual_seed(1)
    config = Reg4PruConfig(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8,
        num_upscale_blocks=1, num_blocks=2, initializer_range=0.15,
    )  # fmt: skip
    Reg4PruForSemanticSegmentation(config).save_pretrained(folder)
    Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(checkpoint, images, tmp_path_factory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'reg4pru[app]'")
    scratch = tmp_path_factory.mktemp("served")
    where = ["--model_name_or_path", str(checkpoint), "--images", str(images), "--output_dir"]
    predict.main([*where, str(scratch / "out"), "--keep_rates", *map(str, KEEP_RATES)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (scratch / "tmp").mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch / "tmp")}
    command = [sys.executable, "-m", "reg4pru", "app", "--model", str(checkpoint), "--server_port", str(port)]
    log = scratch / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*command, "--mcp_server"], stdout=file, stderr=file, env=environment, cwd=scratch)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(server, address, log)
        yield Served(address, images, scratch / "out", log)
    finally:
        server.terminate()  # a process that was started in the background ignores Ctrl-C
        try:
            server.wait(timeout=60)
        finally:
            server.kill()
    assert not list((scratch / "tmp").glob("reg4pru-app-*")), "temporary files were left behind"


def _wait_until_it_answers(server: subprocess.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the app does not answer: {log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Somebody at the page."""

    def __init__(self, browser, served: Served):
        self.context = browser.new_context()
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.outside: list[str] = []
        self.page.on("request", self._note)
        self.address = served.address
        self.page.goto(served.address)
        self.sees("keep rate 0.5")  # of the example: now the page answers

    def _note(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def upload(self, path: Path) -> None:
        self.page.locator("#image input[type=file]").set_input_files(path)

    def set_keep_rate(self, rate: float) -> None:
        field = self.page.locator("#keep-rate input[type=number]")
        field.fill(f"{rate:g}")
        field.press("Enter")

    def sees(self, text: str, where: str = "#table") -> None:
        self.page.wait_for_function("([w, t]) => document.querySelector(w)?.innerText.includes(t)", arg=[where, text])

    def source(self, where: str, index: int = 0) -> str:
        """Address of a picture of the page; another if its pixels are."""
        return self.page.locator(f"{where} img").nth(index).get_attribute("src")

    def sees_another(self, where: str, source: str) -> None:
        self.page.wait_for_function(
            "([w, s]) => document.querySelector(w + ' img').getAttribute('src') !== s", arg=[where, source]
        )

    def picture(self, where: str, index: int = 0) -> np.ndarray:
        """A picture as the page shows it."""
        source = self.source(where, index)
        return np.asarray(Image.open(BytesIO(self.page.request.get(source).body())).convert("RGB"))

    def download(self, ending: str) -> np.ndarray:
        source = self.page.locator(f"#files a[href$='{ending}']").get_attribute("href")
        return np.asarray(Image.open(BytesIO(self.page.request.get(source).body())))


@pytest.fixture
def visitor(browser, served):
    """Opens the page anew for each call."""
    visitors: list[Visitor] = []

    def come() -> Visitor:
        visitors.append(Visitor(browser, served))
        return visitors[-1]

    yield come
    for one in visitors:
        one.context.close()
