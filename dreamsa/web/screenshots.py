"""Pictures of the page for the documentation, taken of the page itself.

    python -m dreamsa.web.screenshots docs/web --runs runs

The folder of runs should hold a finished edit; a short annealed edit of its parent is made to show a job at work. Needs
playwright and a Chromium (Debian's, or the one in $CHROMIUM).
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

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
MOST_BYTES = 300_000
PATIENCE_MS = 120_000
"""A busy machine is slow, not broken."""


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    return os.environ.get("CHROMIUM") or next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator["Browser"]:
    """A headless Chromium that talks to nobody by itself.

    Raises:
        RuntimeError: There is none.
    """
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise RuntimeError("No Chromium was found. Install one (apt-get install chromium), or name it in $CHROMIUM.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


def visit(browser: "Browser", address: str, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
    """The page in a new window of its own, once it shows a run or says that there is none."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#strip .strip")
    return page


def take(page: "Page", path: Path) -> None:
    """A screenshot of the whole page; in 256 colours if it would be too large in all of them."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)  # a median cut would drop colours that are rare


def screenshots(out: Path, runs: Path, steps: int = 250) -> list[Path]:
    """Take all of them.

    Raises:
        ValueError: `runs` holds no finished edit.
    """
    from dreamsa.runs import RunError, list_runs
    from dreamsa.web.desk import open_desk
    from dreamsa.web.page import launch

    out, found = out.resolve(), [run.path.resolve() for run in list_runs(runs)]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dreamsa-") as folder, chdir(folder):
        for path in found:  # copies: the job that is shown must not stay in somebody's gallery
            shutil.copytree(path, Path("runs") / path.name)
        desk = open_desk("runs")
        edits = [run for run in desk.manager.runs() if run.record["parent"] and run.status == "finished"]
        if not edits:
            raise RunError(f'{runs} holds no finished edit to show. Make one: dreamsa edit RUN "a new prompt".')
        parent, child = edits[-1].record["parent"], edits[-1]
        page, address = launch(desk)
        try:
            with browser() as opened:
                _all(opened, address, out, child.id, parent, child.prompt, steps)
        finally:
            desk.manager.close()
            page.close(verbose=False)
    return sorted(out.glob("*.png"))


def _all(opened: "Browser", address: str, out: Path, child: str, parent: str, prompt: str, steps: int) -> None:
    def choose(page: Any, run: str) -> None:
        page.get_by_role("tab", name="Gallery").click()
        page.locator(f'#tree [data-run="{run}"]').click()
        page.wait_for_selector("#turntable img")

    page = visit(opened, address)
    choose(page, child)
    page.wait_for_selector("#slider img")
    take(page, out / "gallery.png")
    page.get_by_role("tab", name="Create").click()
    page.locator("#prompt textarea").fill("a red gas can")
    page.locator("#panel button", has_text="What was done").click()
    take(page, out / "create.png")
    dark = visit(opened, address, dark=True)
    choose(dark, parent)
    dark.locator("#branch").click()
    dark.locator("#edit-prompt textarea").fill(prompt)
    dark.get_by_label("anneal: ascend on the new prompt").check()
    dark.locator("#edit-steps input").fill(str(steps))
    dark.locator("#edit-ascent input").fill(str(steps // 2))
    dark.locator("#edit").click()
    dark.wait_for_selector("#card .badge.ascending")
    dark.wait_for_selector("#sheet img")
    dark.wait_for_selector("#curve polyline")
    take(dark, out / "edit.png")
    dark.locator("#stop").click()
    dark.wait_for_selector("#card .badge.stopped")
    phone = visit(opened, address, 390, 844, dark=True)
    choose(phone, child)
    phone.get_by_role("tab", name="Create").click()
    take(phone, out / "phone.png")


def main(arguments: list[str]) -> None:
    from cyclopts import App

    app = App(name="dreamsa-screenshots", help=__doc__)

    @app.default
    def _(out: Path, *, runs: Path = Path("runs"), steps: int = 250) -> None:
        for path in screenshots(out, runs, steps):
            print(path)

    app(arguments)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"dreamsa: {error}", file=sys.stderr)
        raise SystemExit(1) from None
