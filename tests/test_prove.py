"""A selection of the proofs that `make prove` runs whole."""

import pytest
from prove import __main__ as driver
from prove import bans, flips, pickles, structures, syscalls, traversal
from prove.common import Result

from dreamsa import job


@pytest.mark.parametrize(
    ("proof", "count"),
    [
        (bans, 1),
        pytest.param(flips, 80, marks=pytest.mark.slow),
        pytest.param(structures, 60, marks=pytest.mark.slow),
        (syscalls, 6),
    ],
)
def test_a_short_form_of_the_proof_finds_nothing(tmp_path, monkeypatch, proof, count):
    for name in ("write_outputs", "StableDiffusion"):  # what the proofs replace
        monkeypatch.setattr(job, name, getattr(job, name))
    monkeypatch.setattr(job.StableDiffusion, "load", job.StableDiffusion.load)
    result = proof.prove(tmp_path, count)
    assert result.failures == []
    assert result.tried >= count


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
        "torch.nan_to_num(x)",
        "x.nan_to_num()",
        "load(trust_remote_code=True)",
    ],
)
def test_what_is_banned_is_found(source):
    assert bans.banned(source)
    assert not bans.banned(f"# allowed: a test\n{source}")


def test_every_proof_is_run_and_says_what_it_tries():
    folder = driver.REPO / "tests" / "prove"
    modules = {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "__main__",
        "common",
        "site",
    }
    assert modules == set(driver.PROOFS)
    for module in (bans, flips, pickles, structures, syscalls, traversal):
        assert module.__doc__ and module.QUICK <= module.COUNT


def test_the_report_names_every_failure():
    one = Result(3, ["it broke"], {"calls": 2})._asdict() | {"seconds": 61, "what": "Tries it."}
    text = driver.report({"kills": one}, quick=True)
    assert "| kills | 3 | 1 | 61 |" in text
    assert "Tries it." in text and "- it broke" in text and "calls: 2" in text
