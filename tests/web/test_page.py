"""The real page, served on 127.0.0.1, in a headless Chromium and through gradio's client; only the score model and the sizes are small."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_config, tiny_score

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'dreamsa[web]'")

from dreamsa import api
from dreamsa.guidance.analytic import GaussianMixture
from dreamsa.runs import Run
from dreamsa.web import desk as web_desk
from dreamsa.web import page as web_page
from dreamsa.web import screenshots
from dreamsa.web.jobs import JobManager

REPO = Path(__file__).resolve().parents[2]
SOON_MS = 90_000
"""Nothing here takes as long, unless the machine is very busy."""
LONG_RUN = 3000
"""Steps of a run that is still going on whenever a test looks at it."""


@dataclass
class Slow(GaussianMixture):
    """Time to look at a run while it is going on."""

    def predict_noise(self, *arguments, **named):
        time.sleep(0.02)
        return super().predict_noise(*arguments, **named)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[SimpleNamespace]:
    patch = pytest.MonkeyPatch()
    patch.setattr(api.StableDiffusion, "load", lambda config, device: Slow(**vars(tiny_score())))
    outputs = api.write_outputs
    patch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: outputs(run, scene, 8, 16))
    patch.setattr(api, "PREVIEW_SECONDS", 0.2)
    patch.setattr(web_page, "POLL_SECONDS", 0.5)
    patch.setattr(api, "export", stand_in_export, raising=False)
    for module in (web_page, web_desk):
        patch.setattr(module, "preset", lambda name, prompt: tiny_config(prompt=prompt))
    folder = tmp_path_factory.mktemp("site") / "runs"
    desk = web_desk.Desk(JobManager(folder), folder / "exports")
    page, address = web_page.launch(desk)
    yield SimpleNamespace(desk=desk, page=page, address=address.rstrip("/"), manager=desk.manager)
    desk.manager.close()
    page.close(verbose=False)
    patch.undo()


def stand_in_export(run, *, format, out, runs):
    """A mesh takes seconds; whether it is a good one is tested elsewhere."""
    if format == "stl":
        raise ValueError("Nothing is solid here; train for longer.")
    out.write_bytes(f"{format} of {run.id}".encode())
    return out


@pytest.fixture(scope="module")
def browser():
    if screenshots.chromium() is None:
        pytest.skip("no chromium was found: apt-get install chromium")
    pytest.importorskip("playwright", reason="the browser is driven by playwright")
    with screenshots.browser() as opened:
        yield opened


@pytest.fixture
def visit(site, browser):
    """Opens the page in a window of its own; where requests went and what was alerted is kept."""
    opened = []

    def go(**how):
        page = screenshots.visit(browser, site.address, **how)
        page.set_default_timeout(SOON_MS)
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()


@pytest.fixture(autouse=True)
def idle(site):
    """Each test leaves the queue empty."""
    yield
    for name in reversed(site.manager.active()):
        site.manager.stop(name)
    assert site.manager.idle(60)


@pytest.fixture
def rabbit(site) -> Run:
    """A finished run."""
    return api.generate(config=tiny_config(), runs=site.manager.folder).wait()


def badge(page, words: str) -> None:
    page.wait_for_function("words => document.querySelector('#card .badge')?.textContent.startsWith(words)", arg=words)


def choose(page, run: Run) -> None:
    page.get_by_role("tab", name="Gallery").click()
    page.locator(f'#tree [data-run="{run.id}"]').click()
    page.wait_for_function("id => document.querySelector('#card .facts')?.textContent.includes(id)", arg=run.id)


def test_generate_edit_compare_and_export(site, visit):
    page = visit()
    page.locator("#prompt textarea").fill("a rabbit")
    page.keyboard.press("Enter")
    badge(page, "finished")
    assert page.locator("#card h2").inner_text() == "a rabbit"
    page.wait_for_selector("#turntable img")
    page.locator("#branch").click()
    page.locator("#edit-prompt textarea").fill("a purple rabbit")
    page.get_by_label("anneal: ascend on the new prompt").check()
    page.locator("#edit-steps input").fill("120")
    page.locator("#edit-ascent input").fill("60")
    page.locator("#edit").click()
    badge(page, "ascending ")
    badge(page, "descending ")
    page.wait_for_selector("#sheet img")
    badge(page, "finished")
    page.wait_for_selector("#slider img")
    assert page.locator("#turntable figcaption").inner_text().split() == ["a", "rabbit", "a", "purple", "rabbit"]
    assert page.locator("#curve rect.ascent").count() == 1
    rabbit, purple = site.manager.runs()[-2:]
    assert purple.record["parent"] == rabbit.id
    assert (purple.config.steps, purple.config.edit.ascent_steps) == (120, 60)
    page.locator("#compared input").click()
    page.get_by_role("option", name="nothing").click()
    page.wait_for_selector("#turntable figure.single img")
    page.locator("#slider").wait_for(state="hidden")
    page.get_by_role("button", name="What was done").click()
    assert f"dreamsa edit {rabbit.id} 'a purple rabbit'" in page.locator("#cli .cm-content").inner_text().replace("\n", " ")
    page.get_by_role("button", name="Export and download").click()
    page.locator("#export").click()
    link = page.locator("#exported a").first
    link.wait_for()
    assert page.request.get(link.get_attribute("href")).body() == f"glb of {purple.id}".encode()
    page.locator("#kind input").click()
    page.get_by_role("option", name="STL, for 3-D printing, no colour").click()
    page.locator("#export").click()
    page.wait_for_selector("#note .bad")
    assert page.locator("#note .bad").inner_text() == "Nothing is solid here; train for longer."


def test_a_job_outlives_its_page_is_found_again_stopped_and_continued(site, visit):
    page = visit()
    page.locator("#prompt textarea").fill("a mug")
    page.locator("#steps input").fill(str(LONG_RUN))
    page.locator("#generate").click()
    badge(page, "descending ")
    name = site.manager.active()[0]
    step = site.manager.status(name).step
    page.reload()
    badge(page, "descending ")
    second = visit()
    badge(second, "descending ")
    for window in (page, second):
        assert window.locator("#card h2").inner_text() == "a mug"
    assert site.manager.active() == [name]
    assert site.manager.status(name).step > step
    second.locator("#stop").click()
    badge(page, "stopped at ")
    saved = site.manager.find(name).record["step"]
    assert step <= saved < LONG_RUN
    page.locator("#continue").click()
    badge(second, "descending ")
    assert site.manager.status(name).step >= saved


def test_what_is_wrong_is_said_on_the_page_in_the_apis_own_words(site, visit):
    page = visit()
    before = len(site.manager.runs())
    for prompt, sentence in (("a unicorn", "The embedded model has no words for 'a unicorn'. It knows: "), (" ", "The prompt is empty.")):
        page.locator("#prompt textarea").fill(prompt)
        page.locator("#generate").click()
        page.wait_for_function("words => document.querySelector('#create-note')?.innerText.startsWith(words)", arg=sentence)
    assert len(site.manager.runs()) == before


def test_a_prompt_is_text_in_every_place(site, visit):
    page = visit()
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    prompt = "a rabbit <img src=x onerror=alert(1)> ${alert(2)} {{value}}"
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#generate").click()
    badge(page, "finished")
    assert page.locator("#card h2").inner_text() == prompt
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#tree .prompt", has_text="onerror").first.wait_for()
    page.get_by_role("tab", name="Edit").click()
    page.wait_for_timeout(500)
    assert page.locator("img[src='x']").count() == 0
    assert alerts == []


def test_nothing_is_asked_of_any_other_machine(site, browser, rabbit):
    asked = []
    context = browser.new_context()
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.set_default_timeout(SOON_MS)
    page.goto(site.address)
    choose(page, rabbit)
    for name in ("Create", "Edit", "Help"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
    page.wait_for_selector("#doctor table")
    context.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((f"{site.address}/", "data:", "blob:"))] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_has_one_column_and_nothing_to_scroll_sideways(visit, rabbit, dark):
    page = visit(width=390, height=844, dark=dark)
    choose(page, rabbit)
    for name in ("Create", "Edit", "Gallery", "Help"):
        tab = page.get_by_role("tab", name=name)
        if tab.count() and tab.first.is_visible():
            tab.first.click()
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    forms, panel = (page.locator(name).bounding_box() for name in ("#forms", "#panel"))
    assert panel["y"] >= forms["y"] + forms["height"] - 1
    assert contrast(page, "#card h2") > 7


def contrast(page, selector: str) -> float:
    """WCAG's contrast ratio of an element's text against what is painted behind it."""
    colours = page.evaluate(
        """selector => {
          const element = document.querySelector(selector);
          let behind = element;
          while (behind.parentElement && getComputedStyle(behind).backgroundColor.endsWith(', 0)')) behind = behind.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }""",
        selector,
    )
    lights = []
    for colour in colours:
        channels = [float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_gallery_works_with_the_keyboard(visit, rabbit):
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    button = page.locator(f'#tree [data-run="{rabbit.id}"]')
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("id => document.querySelector('#card .facts')?.textContent.includes(id)", arg=rabbit.id)
    page.wait_for_selector(f'#tree [data-run="{rabbit.id}"][aria-pressed="true"]')


@pytest.fixture(scope="module")
def client(site):
    from gradio_client import Client

    return Client(site.address, verbose=False, analytics_enabled=False)


def finished(client, name: str) -> dict:
    deadline = time.monotonic() + SOON_MS / 1000
    while (status := client.predict(name, api_name="/status"))["state"] != "finished":
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    return status


def test_programs_do_the_same_through_gradios_client(site, client):
    from gradio_client.exceptions import AppError

    name = client.predict("a rabbit", 12, 3, api_name="/generate")
    assert finished(client, name)["step"] == 12
    assert site.manager.find(name).config.seed == 3
    child = client.predict(name, "a purple rabbit", "anneal", 10, 4, api_name="/edit")
    finished(client, child)
    assert site.manager.find(child).record["parent"] == name
    assert client.predict(api_name="/runs")[-2:] == [name, child]
    assert client.predict(child, "ply", api_name="/export") == f"{child}/{child}.ply"
    with pytest.raises(AppError, match=f"Run {name} is finished. To change it, use"):
        client.predict(name, api_name="/resume")
    with pytest.raises(AppError, match="There is no run '../runs'"):
        client.predict("../runs", "json", api_name="/export")
    with pytest.raises(AppError, match="There is no export '/etc/passwd'"):
        client.predict(child, "/etc/passwd", api_name="/export")


def test_a_probe_waits_for_its_turn_and_shows_in_no_gallery(site, rabbit):
    before = [run.id for run in site.manager.runs()]
    found = site.desk.probe(tiny_config(seed=1))
    assert found.seconds_per_step >= 0.02  # what each step sleeps
    assert found.steps == 9
    assert [run.id for run in site.manager.runs()] == before
    with pytest.raises(ValueError, match="has no words for 'a unicorn'"):
        site.desk.probe(tiny_config(prompt="a unicorn"))


def request(address: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=SOON_MS / 1000) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_exports_are_handed_out(site, rabbit):
    exported = site.desk.export(rabbit.id, "json")
    assert request(f"{site.address}/gradio_api/file={exported}") == (200, (rabbit.path / "config.json").read_bytes())
    for wish in (
        rabbit.path / "config.json", rabbit.path / "checkpoints", f"{exported.parent}/../../{rabbit.id}/config.json",
        f"{exported.parent}/%2e%2e/%2e%2e/{rabbit.id}/config.json", "/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd",
    ):  # fmt: skip
        status, body = request(f"{site.address}/gradio_api/file={wish}")
        assert status in (400, 403, 404), wish
        assert b"root:" not in body


def test_an_upload_that_is_too_large_is_refused(site):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\nContent-Type: application/octet-stream\r\n\r\n'
    for size, wanted in ((1000, 200), (3_000_000, 413)):
        body = head + b"0" * size + b"\r\n--x--\r\n"
        status, _ = request(f"{site.address}/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})
        assert status == wanted


def test_fifty_sessions_at_once_are_all_answered(site, rabbit):
    def session(number: int) -> tuple[int, str]:
        status, _ = request(f"{site.address}/")
        call = json.dumps({"data": [rabbit.id], "session_hash": f"session{number}"}).encode()
        _, answer = request(f"{site.address}/gradio_api/run/status", call, **{"Content-Type": "application/json"})
        return status, json.loads(answer)["data"][0]["state"]

    started = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(session, range(50))) == [(200, "finished")] * 50
    assert time.monotonic() - started < 60


def test_the_page_stays_at_home(site):
    assert site.address.startswith("http://127.0.0.1:")
    assert site.page.share_url is None
    assert site.page.analytics_enabled is False
    config = json.loads(request(f"{site.address}/config")[1])
    assert config["analytics_enabled"] is False
    assert config.get("run_history") in (False, None)


def test_the_command_serves_an_empty_folder_until_it_is_told_to_stop(tmp_path):
    command = [sys.executable, "app.py", "--runs", str(tmp_path / "runs")]
    server = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        address = line.split()[4]
        assert address.startswith("http://127.0.0.1:"), line
        assert request(address)[0] == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.communicate()
