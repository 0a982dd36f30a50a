"""Tiny runs with a Gaussian in place of Stable Diffusion; the judge is the real one."""

import pytest
from tiny import tiny_config, tiny_score

from dreamsa import api, job


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)
    return tmp_path


@pytest.fixture
def rabbit(runs):
    return api.generate(config=tiny_config(), runs=runs).wait()
