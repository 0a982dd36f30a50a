import os
import stat
import subprocess
import sys

import pytest

from dreamsa.files import write_atomic, write_json


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, b"old")

    def fail(part):
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_function_writes_a_file_of_the_same_suffix(tmp_path):
    write_atomic(tmp_path / "a.png", lambda part: part.write_text(part.suffix))
    assert (tmp_path / "a.png").read_text() == ".png"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_allows(tmp_path, umask, mode):
    script = (
        "import sys; from pathlib import Path; from dreamsa.files import write_atomic; "
        "write_atomic(Path(sys.argv[1]), b'x')"
    )
    path = tmp_path / "a"
    subprocess.run(
        [sys.executable, "-c", script, str(path)], umask=umask, check=True, env=os.environ
    )
    assert stat.S_IMODE(path.stat().st_mode) == mode
