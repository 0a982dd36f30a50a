"""The page in a headless Chromium and through gradio's client, with a small score model."""

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from types import SimpleNamespace
from typing import ClassVar

import pytest
import trimesh
from tiny import tiny_config, tiny_score
from web import screenshots

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'dreamsa[web]'")

from analytic import GaussianMixture

from dreamsa import api, job, outputs
from dreamsa.choices import ASCENT_SCALE, DEFAULT_ESCAPE, ESCAPES, FORMATS
from dreamsa.config import FreeConfig
from dreamsa.runs import Run
from dreamsa.web import app, controller, forms
from dreamsa.web.controller import Controller
from dreamsa.web.jobs import JobManager

SOON_MS = 240_000
"""Longer than anything here takes, even on a busy machine."""
EXPORTING = Event()
"""Until it is set, an export waits."""
EXPORTING.set()
LONG_RUN = 3000
"""Steps of a run that no test outlasts."""


@dataclass
class Slow(GaussianMixture):
    """Slow enough to observe a running job, which waits for the events of `holds`."""

    holds: ClassVar[dict[int, Event]] = {}
    """By number of predictions of a job, one per step."""
    calls: int = 0

    def predict_noise(self, *arguments, **named):
        time.sleep(0.02)
        self.calls += 1
        if self.calls in self.holds:
            assert self.holds[self.calls].wait(SOON_MS / 1000)
        return super().predict_noise(*arguments, **named)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[SimpleNamespace]:
    patch = pytest.MonkeyPatch()
    patch.setattr(job.StableDiffusion, "load", lambda config, device: Slow(**vars(tiny_score())))
    write = outputs.write_outputs
    patch.setattr(job, "write_results", lambda run, scene, stage: write(run, scene, 8, 16))
    patch.setattr(job, "PREVIEW_SECONDS", 0.2)
    patch.setattr(app, "POLL_SECONDS", 0.5)
    patch.setattr(api, "export", stand_in_export)
    for module in (forms, controller):
        patch.setattr(module, "preset", lambda name, prompt, model=None: tiny_config(prompt=prompt))
    folder = tmp_path_factory.mktemp("site") / "runs"
    made = Controller(JobManager(folder), folder.with_name("exports"))
    page, address = app.launch(made)
    yield SimpleNamespace(
        controller=made, page=page, address=address.rstrip("/"), manager=made.manager
    )
    made.manager.close()
    page.close(verbose=False)
    patch.undo()


def stand_in_export(run, *, format, out, stage, runs):
    """A quick substitute: meshes are tested elsewhere."""
    stage("colours")
    assert EXPORTING.wait(SOON_MS / 1000)
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
    """Opens the page in a new window."""
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
    deadline = time.monotonic() + 60
    while site.manager.active():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def rabbit(site) -> Run:
    """A finished run."""
    return api.generate(config=tiny_config(), runs=site.manager.folder).wait()


def badge(page, words: str) -> None:
    page.wait_for_function(
        "words => document.querySelector('#card .badge')?.textContent.startsWith(words)", arg=words
    )


def choose(page, run: Run) -> None:
    page.get_by_role("tab", name="Gallery").click()
    page.locator(f'#tree [data-run="{run.id}"]').click()
    page.wait_for_function(
        "id => document.querySelector('#card .facts')?.textContent.includes(id)", arg=run.id
    )


def test_generate_edit_compare_and_export(site, visit, monkeypatch):
    page = visit()
    page.locator("#prompt textarea").fill("a rabbit")
    page.keyboard.press("Enter")
    badge(page, "finished")
    assert page.locator("#card h2").inner_text() == "a rabbit"
    page.wait_for_selector("#turntable img")
    page.locator("#branch").click()
    page.locator("#edit-prompt textarea").fill("a purple rabbit")
    page.locator("#edit-advanced > button").click()
    page.get_by_label("anneal: ascend on the new prompt").check()
    page.locator("#edit-ascent input").wait_for()
    page.locator("#edit-steps input").fill("120")
    page.locator("#edit-ascent input").fill("60")
    ascent, descent = Event(), Event()  # until the page has shown each, however slowly it polls
    monkeypatch.setattr(Slow, "holds", {30: ascent, 90: descent})
    page.locator("#edit").click()
    badge(page, "ascending ")
    ascent.set()
    badge(page, "descending ")
    descent.set()
    page.wait_for_selector("#sheet img")
    badge(page, "finished")
    page.wait_for_selector("#slider img")
    assert page.locator("#turntable figcaption").inner_text().split() == [
        "a",
        "rabbit",
        "a",
        "purple",
        "rabbit",
    ]
    page.get_by_role("button", name="Details").click()
    page.wait_for_selector("#curve rect.ascent")
    rabbit, purple = site.manager.runs()[-2:]
    assert purple.record["parent"] == rabbit.id
    assert (purple.config.steps, purple.config.edit.ascent_steps) == (120, 60)
    page.locator("#compared input").click()
    page.get_by_role("option", name="nothing").click()
    page.wait_for_selector("#turntable figure.single img")
    page.locator("#slider").wait_for(state="hidden")
    page.get_by_role("button", name="Repeat this run").click()
    assert f"dreamsa edit {rabbit.id} 'a purple rabbit'" in page.locator(
        "#cli .cm-content"
    ).inner_text().replace("\n", " ")
    page.get_by_role("button", name="Export and download").click()
    EXPORTING.clear()
    page.locator("#export").click()
    page.wait_for_selector("#note .good:has-text('Exporting: colours')")
    assert page.locator("#export").is_disabled()
    EXPORTING.set()
    link = page.locator("#exported a").first
    link.wait_for()
    assert page.request.get(link.get_attribute("href")).body() == f"glb of {purple.id}".encode()
    page.locator("#kind input").click()
    page.get_by_role("option", name="STL, for 3-D printing, no colour").click()
    page.locator("#export").click()
    page.wait_for_selector("#note .bad")
    assert page.locator("#note .bad").inner_text() == "Nothing is solid here; train for longer."


def test_opening_the_advanced_settings_changes_no_value(site, visit):
    page = visit()
    page.locator("#prompt textarea").fill("a rabbit")
    page.locator("#advanced > button").click()
    page.get_by_label("Guidance scale").wait_for()
    page.locator("#forms").get_by_label("Seed").first.fill("3")
    page.locator("#generate").click()
    page.wait_for_selector("#card .facts:has-text('seed 3')")
    badge(page, "finished")
    run = site.manager.runs()[-1]
    assert run.config == tiny_config(seed=3)
    page.locator("#branch").click()
    page.locator("#edit-advanced > button").click()
    page.wait_for_function("document.querySelector('#edit-seed input')?.value === '3'")
    page.locator("#edit-steps input").fill("4")
    page.locator("#edit-prompt textarea").fill("a mug")
    page.locator("#edit").click()
    page.wait_for_selector("#card h2:has-text('a mug')")
    badge(page, "finished")
    edit = site.manager.runs()[-1].config
    assert edit == replace(run.config, prompt="a mug", steps=4, edit=edit.edit)


def shown_numbers(page) -> dict[str, float]:
    """The fields of the numbers that the method uses."""
    fields = {name: page.locator(f"#edit-{name} input") for name in ("eta", "ascent", "scale")}
    return {
        name: float(field.first.input_value())
        for name, field in fields.items()
        if field.count() and field.first.is_visible()
    }


def test_the_edit_form_offers_the_escapes_and_sets_their_numbers(site, visit, rabbit):
    page = visit()
    choose(page, rabbit)
    page.locator("#branch").click()
    page.locator("#edit-advanced > button").click()
    page.locator("#escape label").first.wait_for()
    labels = page.locator("#escape label").all_inner_texts()
    wanted = [f"{name}: {row.sentence}" for name, row in ESCAPES.items()]
    assert [label.strip() for label in labels] == wanted
    assert page.locator("#escape label.selected").inner_text().startswith(DEFAULT_ESCAPE)
    assert shown_numbers(page) == {"eta": ESCAPES[DEFAULT_ESCAPE].eta}
    page.locator("#edit-steps input").fill("100")
    for name, row in (*ESCAPES.items(), ("plain", ESCAPES["plain"])):
        page.locator("#escape label", has_text=f"{name}: ").click()
        expected = {"ascent": 20, "scale": ASCENT_SCALE} if row.ascends else {}
        expected |= {"eta": row.eta} if row.eta else {}
        deadline = time.monotonic() + SOON_MS / 1000
        while shown_numbers(page) != expected:
            assert time.monotonic() < deadline, (name, shown_numbers(page))
            time.sleep(0.1)
    page.locator("#escape label", has_text="anneal: ").click()
    page.locator("#edit-steps input").fill("50")
    page.wait_for_function("document.querySelector('#edit-ascent input')?.value === '10'")
    page.locator("#bold label", has_text="Start over").click()
    page.wait_for_selector("#escape label.selected:has-text('fresh')")
    page.locator("#escape label", has_text="anneal: ").click()
    page.locator("#edit-steps input").fill("10")
    page.wait_for_function("document.querySelector('#edit-ascent input')?.value === '2'")
    page.locator("#edit-ascent input").fill("4")
    page.locator("#edit-scale input").fill("0.05")
    page.locator("#edit-keep label", has_text="The shape").click()
    page.locator("#edit-region textarea").fill("box:-0.6,-0.6,0,0.6,0.6,0.6")
    page.locator("#edit-prompt textarea").fill("a purple rabbit")
    page.locator("#edit").click()
    badge(page, "finished")
    page.wait_for_selector("#card .facts:has-text('anneal')")
    edit = site.manager.runs()[-1].config.edit
    assert (edit.eta, edit.ascent_steps, edit.scale, edit.moments) == (0, 4, 0.05, "reset")
    assert edit.free == FreeConfig("shape", boxes=((-0.6, -0.6, 0.0, 0.6, 0.6, 0.6),))
    assert edit.escape in page.locator("#card .facts").inner_text()


def test_an_object_can_be_rotated_and_downloaded(visit, rabbit):
    page = visit()
    choose(page, rabbit)
    page.locator("#model").wait_for(state="hidden")
    trimesh.creation.box().export(rabbit.path / "mesh.glb")
    page.wait_for_selector("#model canvas")
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.path().read_bytes() == (rabbit.path / "mesh.glb").read_bytes()


def test_runs_are_filtered_and_removed_to_the_trash(site, visit, rabbit):
    other = api.generate(config=tiny_config(prompt="a mug"), runs=site.manager.folder).wait()
    page = visit()
    choose(page, other)
    page.locator("#filter input, #filter textarea").first.fill(other.id)
    page.locator(f'#tree [data-run="{rabbit.id}"]').wait_for(state="hidden")
    assert page.locator(f'#tree [data-run="{other.id}"]').is_visible()
    page.locator("#remove").click()
    page.wait_for_selector("#note .good:has-text('Removed. To bring it back')")
    page.locator(f'#tree [data-run="{other.id}"]').wait_for(state="detached")
    assert (site.manager.folder / ".trash" / other.id / "run.json").is_file()


def test_the_edit_form_takes_the_run_that_is_shown(site, visit, rabbit):
    older = api.generate(config=tiny_config(seed=5), runs=site.manager.folder).wait()
    page = visit()
    choose(page, rabbit)
    page.get_by_role("tab", name="Edit").click()
    value = "id => document.querySelector('#parent input')?.value.includes(id)"
    page.wait_for_function(value, arg=rabbit.id)
    choose(page, older)
    page.get_by_role("tab", name="Edit").click()
    page.wait_for_function(value, arg=older.id)


def test_a_stopped_run_can_be_exported_and_edited(site, visit):
    page = visit()
    page.locator("#prompt textarea").fill("a mug")
    page.locator("#steps input").fill(str(LONG_RUN))
    page.locator("#generate").click()
    badge(page, "descending ")
    page.locator("#stop").click()
    badge(page, "stopped at ")
    run = site.manager.runs()[-1]
    page.wait_for_selector("#sheet:has-text('Twelve views')")
    page.get_by_role("button", name="Export and download").click()
    page.locator("#export").click()
    page.locator("#exported a").first.wait_for()
    page.locator("#branch").click()
    page.wait_for_function(
        "id => document.querySelector('#parent input')?.value.includes(id)", arg=run.id
    )


def test_a_damaged_run_is_a_row_that_cannot_be_selected_and_hides_no_other(site, visit, rabbit):
    damage = {
        "missing": json.dumps({k: v for k, v in rabbit.record.items() if k != "status"}).encode(),
        "mistyped": json.dumps({**rabbit.record, "steps": "many"}).encode(),
        "newer": json.dumps({**rabbit.record, "schema": 99}).encode(),
        "array": b"[1, 2]",
        "empty": b"",
        "binary": bytes(range(256)),
    }
    damaged = [site.manager.folder / f"damaged-{name}" for name in (*damage, "folder")]
    for folder in damaged:
        folder.mkdir()
    for name, content in damage.items():
        (site.manager.folder / f"damaged-{name}" / "run.json").write_bytes(content)
    (site.manager.folder / "damaged-folder" / "run.json").mkdir()
    try:
        page = visit()
        page.get_by_role("tab", name="Gallery").click()
        for folder in damaged:
            row = page.locator("#tree .run", has_text=f"{folder.name}/run.json")
            row.wait_for()
            assert row.locator(".badge").inner_text() == "damaged"
            assert len(row.locator(".facts").inner_text()) > len(folder.name)
        assert page.locator("#tree button[data-run^='damaged-']").count() == 0
        choose(page, rabbit)
    finally:
        for folder in damaged:
            shutil.rmtree(folder)


def test_a_run_with_a_damaged_configuration_leaves_the_page_usable(site, visit, rabbit):
    broken = api.generate(config=tiny_config(), runs=site.manager.folder).wait()
    (broken.path / "config.json").write_text("{}")
    page = visit()
    page.wait_for_function("document.querySelector('#card .bad')?.innerText.includes('config')")
    choose(page, rabbit)
    badge(page, "finished")
    shutil.rmtree(broken.path)


def test_a_renamed_run_has_one_id_its_folders_name(site, visit, rabbit):
    child = api.edit(rabbit, "a mug", steps=4, escape="plain", runs=site.manager.folder).wait()
    renamed = Run(rabbit.path.rename(rabbit.path.with_name("my-rabbit")))
    page = visit()
    choose(page, child)
    page.wait_for_selector("#card .facts:has-text('plain from my-rabbit')")
    assert rabbit.id not in page.locator("#panel").inner_text()
    choose(page, renamed)
    page.get_by_role("tab", name="Gallery").click()
    assert page.locator("#tree .facts", has_text="my-rabbit").count() == 1
    assert page.locator("#tree .facts", has_text=rabbit.id).count() == 0


def test_every_mesh_format_can_be_exported():
    assert tuple(controller.MESHES) == FORMATS


def test_a_job_outlives_its_page_is_found_again_stopped_and_resumed(site, visit):
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


def test_errors_appear_on_the_page_in_the_words_of_the_api(site, visit):
    page = visit()
    before = len(site.manager.runs())
    for prompt, sentence in (
        ("a unicorn", "The embedded model has no words for 'a unicorn'. It knows: "),
        (" ", "The prompt is empty."),
    ):
        page.locator("#prompt textarea").fill(prompt)
        page.locator("#generate").click()
        page.wait_for_function(
            "words => document.querySelector('#create-note')?.innerText.startsWith(words)",
            arg=sentence,
        )
    assert len(site.manager.runs()) == before


def test_a_prompt_is_text_everywhere_on_the_page(site, visit):
    page = visit()
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    prompt = "a rabbit <img src=x onerror=alert(1)> ${alert(2)} {{value}}"
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#generate").click()
    page.wait_for_selector("#create-note .bad:has-text('does not know: img, src')")
    page.locator("#anyway").click()
    page.wait_for_selector("#card h2:has-text('onerror')")
    badge(page, "finished")
    assert page.locator("#card h2").inner_text() == prompt
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#tree .prompt", has_text="onerror").first.wait_for()
    page.get_by_role("tab", name="Edit").click()
    page.wait_for_timeout(500)
    assert page.locator("img[src='x']").count() == 0
    assert alerts == []


def test_the_page_sends_no_request_to_another_machine(site, browser, rabbit):
    requested = []
    context = browser.new_context()
    context.on("request", lambda request: requested.append(request.url))
    page = context.new_page()
    page.set_default_timeout(SOON_MS)
    page.goto(site.address)
    choose(page, rabbit)
    for name in ("Create", "Edit", "Help"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
    page.wait_for_selector("#doctor table")
    context.close()
    assert len(requested) > 10
    assert [
        url for url in requested if not url.startswith((f"{site.address}/", "data:", "blob:"))
    ] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_one_column_without_horizontal_scrolling(visit, rabbit, dark):
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
    """WCAG's contrast ratio of an element's text and its background."""
    colours = page.evaluate(
        """selector => {
          const element = document.querySelector(selector);
          let behind = element;
          const colour = element => getComputedStyle(element).backgroundColor;
          while (behind.parentElement && colour(behind).endsWith(', 0)'))
            behind = behind.parentElement;
          return [getComputedStyle(element).color, colour(behind)];
        }""",
        selector,
    )
    lights = []
    for colour in colours:
        channels = [
            float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]
        ]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_gallery_works_with_the_keyboard(visit, rabbit):
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    button = page.locator(f'#tree [data-run="{rabbit.id}"]')
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "id => document.querySelector('#card .facts')?.textContent.includes(id)", arg=rabbit.id
    )
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
    written = client.predict(child, "ply", api_name="/export")
    assert request(f"{site.address}/gradio_api/file={written}") == (200, f"ply of {child}".encode())
    with pytest.raises(AppError, match=f"Run {name} is finished. To change it, use"):
        client.predict(name, api_name="/resume")
    with pytest.raises(AppError, match="There is no run '../runs'"):
        client.predict("../runs", "json", api_name="/export")
    with pytest.raises(AppError, match="There is no export '/etc/passwd'"):
        client.predict(child, "/etc/passwd", api_name="/export")


def test_a_probe_is_queued_and_appears_in_no_gallery(site, rabbit):
    before = [run.id for run in site.manager.runs()]
    found = site.controller.probe(tiny_config(seed=1))
    assert found.seconds_per_step >= 0.02  # the sleep in each step
    assert found.steps == 9
    assert [run.id for run in site.manager.runs()] == before
    with pytest.raises(ValueError, match="has no words for 'a unicorn'"):
        site.controller.probe(tiny_config(prompt="a unicorn"))


def request(address: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, data, headers), timeout=SOON_MS / 1000
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_exports_can_be_downloaded(site, rabbit):
    exported = site.controller.export(rabbit.id, "json")
    assert request(f"{site.address}/gradio_api/file={exported}") == (
        200,
        (rabbit.path / "config.json").read_bytes(),
    )
    config = f"{rabbit.id}/config.json"
    for wish in (
        rabbit.path / "config.json",
        rabbit.path / "checkpoints",
        f"{exported.parent}/../../{config}",
        f"{exported.parent}/%2e%2e/%2e%2e/{config}",
        "/etc/passwd",
        "../../../../etc/passwd",
        "file:///etc/passwd",
    ):
        status, body = request(f"{site.address}/gradio_api/file={wish}")
        assert status in (400, 403, 404), wish
        assert b"root:" not in body


def test_fifty_simultaneous_sessions_are_answered(site, rabbit):
    def session(number: int) -> tuple[int, str]:
        status, _ = request(f"{site.address}/")
        call = json.dumps({"data": [rabbit.id], "session_hash": f"session{number}"}).encode()
        kind = {"Content-Type": "application/json"}
        _, answer = request(f"{site.address}/gradio_api/run/status", call, **kind)
        return status, json.loads(answer)["data"][0]["state"]

    started = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(session, range(50))) == [(200, "finished")] * 50
    assert time.monotonic() - started < 60


def test_the_page_is_local_and_collects_no_analytics(site):
    assert site.address.startswith("http://127.0.0.1:")
    assert site.page.share_url is None
    assert site.page.analytics_enabled is False
    config = json.loads(request(f"{site.address}/config")[1])
    assert config["analytics_enabled"] is False
    assert config.get("run_history") in (False, None)
