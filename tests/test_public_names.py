import subprocess
import sys

import dreamsa

SCRIPT = """
import importlib, pkgutil, sys, types
import dreamsa
assert "torch" not in sys.modules
for module in pkgutil.walk_packages(dreamsa.__path__, "dreamsa."):
    if module.name.rpartition(".")[2] not in {optional!r}:
        importlib.import_module(module.name)
for name in dreamsa.__all__:
    value = getattr(dreamsa, name)
    assert callable(value) and not isinstance(value, types.ModuleType), name
    scope = {{}}
    exec(f"from dreamsa import {{name}}", scope)
    assert scope[name] is value, name
print(len(dreamsa.__all__))
"""
OPTIONAL = ("encode_tcnn",)


def test_public_names_survive_the_import_of_every_submodule():
    """A submodule that is imported becomes an attribute of its package, and would replace a name of
    the same spelling."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(optional=OPTIONAL)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == len(dreamsa.__all__) >= 18


def test_no_public_name_is_a_module():
    from importlib.util import find_spec

    assert [name for name in dreamsa.__all__ if find_spec(f"dreamsa.{name}")] == []


def test_an_unknown_name_is_an_attribute_error():
    import pytest

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dreamsa.nothing  # noqa: B018
    assert set(dreamsa.__all__) <= set(dir(dreamsa))
