"""Screenshots of the page for the documentation.

    python tests/web/screenshots.py docs/web --runs runs

The folder of runs must hold a finished edit; a short annealed edit of its parent shows a job at
work. Requires playwright and a Chromium (Debian's, or the one in $CHROMIUM).
"""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App
from PIL import Image

from dreamsa.runs import RunError, list_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MAX_BYTES = 300_000
TIMEOUT_MS = 120_000
"""Generous, for busy machines."""


def chromium() -> str | None:
    """Path of a Chromium; None if there is none."""
    return (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )


@contextmanager
def browser() -> Iterator["Browser"]:
    """A headless Chromium without background requests.

    Raises:
        RuntimeError: No Chromium was found.
    """
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise RuntimeError(
            "No Chromium was found. Install it (apt-get install chromium) or name it in $CHROMIUM."
        )
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


def visit(
    browser: "Browser", address: str, width: int = 1280, height: int = 900, dark: bool = False
) -> "Page":
    """Open the page in a new window and wait until it is loaded."""
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(address)
    page.wait_for_selector("#strip .strip")
    return page


def take(page: "Page", path: Path) -> None:
    """Take a screenshot of the full page, in 256 colours if the file would exceed MAX_BYTES."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        # a median cut would drop rare colours
        image.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def screenshots(out: Path, runs: Path, steps: int = 250) -> list[Path]:
    """Take all screenshots of the documentation; returns their paths.

    Raises:
        ValueError: `runs` holds no finished edit.
    """
    from dreamsa.web.app import launch
    from dreamsa.web.controller import open_controller

    out, found = out.resolve(), [run.path.resolve() for run in list_runs(runs)]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dreamsa-") as folder, chdir(folder):
        for path in found:  # copies: the job of the screenshots must not stay in the user's gallery
            shutil.copytree(path, Path("runs") / path.name)
        controller = open_controller("runs", Path(folder) / "exports")
        edits = [
            run
            for run in controller.manager.runs()
            if run.record["parent"] and run.status == "finished"
        ]
        if not edits:
            raise RunError(
                f'{runs} holds no finished edit. Create one: dreamsa edit RUN "a new prompt".'
            )
        parent, child = edits[-1].record["parent"], edits[-1]
        page, address = launch(controller)
        try:
            with browser() as opened:
                _take_all(opened, address, out, child.id, parent, child.prompt, steps)
        finally:
            controller.manager.close()
            page.close(verbose=False)
    return sorted(out.glob("*.png"))


def _take_all(
    opened: "Browser", address: str, out: Path, child: str, parent: str, prompt: str, steps: int
) -> None:
    def choose(page: Any, run: str) -> None:
        page.get_by_role("tab", name="Gallery").click()
        page.locator(f'#tree [data-run="{run}"]').click()
        page.wait_for_selector("#turntable img")
        page.wait_for_timeout(3000)  # until a browser without a GPU has drawn the object

    page = visit(opened, address)
    choose(page, child)
    page.wait_for_selector("#slider img")
    take(page, out / "gallery.png")
    page.get_by_role("tab", name="Create").click()
    page.locator("#prompt textarea").fill("a red gas can")
    page.locator("#panel button", has_text="Repeat this run").click()
    take(page, out / "create.png")
    dark = visit(opened, address, dark=True)
    choose(dark, parent)
    dark.locator("#branch").click()
    dark.locator("#edit-prompt textarea").fill(prompt)
    dark.locator("#edit-advanced > button").click()
    dark.get_by_label("anneal: ascend on the new prompt").check()
    dark.locator("#edit-ascent input").wait_for()
    dark.locator("#edit-steps input").fill(str(steps))
    dark.locator("#edit-ascent input").fill(str(steps // 2))
    dark.locator("#edit").click()
    dark.wait_for_selector("#card .badge.ascending")
    dark.wait_for_selector("#sheet img")
    take(dark, out / "edit.png")
    dark.locator("#stop").click()
    dark.wait_for_selector("#card .badge.stopped")
    phone = visit(opened, address, 390, 844, dark=True)
    choose(phone, child)
    phone.get_by_role("tab", name="Create").click()
    take(phone, out / "phone.png")


app = App(name="screenshots", help=__doc__)


@app.default
def main(out: Path, *, runs: Path = Path("runs"), steps: int = 250) -> None:
    for path in screenshots(out, runs, steps):
        print(path)


if __name__ == "__main__":
    try:
        app()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"dreamsa: {error}", file=sys.stderr)
        raise SystemExit(1) from None
