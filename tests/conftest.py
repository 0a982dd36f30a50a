"""Shared fixtures. Tests that use ../shared/data skip, with the reason, when it is absent."""

import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # GPU kernels on CPU tensors; read when triton is imported

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared" / "data"


def says_shapes(path: Path) -> bool:
    """Whether a module has shapes to check and no kernels: numba and Triton compile no wrappers."""
    source = path.read_text()
    return "from jaxtyping import" in source and "njit" not in source and "triton.jit" not in source


CHECKED = [
    ".".join(path.relative_to(REPO).with_suffix("").parts)
    for path in REPO.glob("dreamsa/**/*.py")
    if says_shapes(path)
]
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # int is a float
install_import_hook(CHECKED, CHECKER)

_connect = socket.socket.connect


def _connect_here(self: socket.socket, address) -> None:
    """The suite needs no network: a connection to another machine is an error."""
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])
        if not (host == "localhost" or host.startswith("127.") or host == "::1"):
            raise OSError(f"a test connects to {host}")
    _connect(self, address)


socket.socket.connect = _connect_here  # pyright: ignore[reportAttributeAccessIssue]

parallel = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if parallel else min(2, os.cpu_count() or 1))
warnings.filterwarnings("ignore", message=".*torchvision.*")


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(
            f"the real test data is not at {SHARED.parent.name}/{SHARED.name} beside the checkout"
        )
    return SHARED


@pytest.fixture(autouse=True)
def no_model_from_another_test():
    from dreamsa.guidance import stable_diffusion

    stable_diffusion._shared.clear()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
