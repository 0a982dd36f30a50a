"""What the packages never call: pickle, eval, exec, a shell, torch.load, nan_to_num (a comment
"allowed: ..." on the line or before it says why one does); and lower bounds of the dependencies
that advisories force, declared and installed."""

import ast
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prove.common import Result

COUNT, QUICK = 1, 1
REPO = Path(__file__).resolve().parents[2]
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system",
         "os.popen", "nan_to_num", "torch.hub.load", "yaml.load", "marshal.loads"}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
TRUE = {"allow_pickle", "trust_remote_code", "shell"}
FLOORS = {"torch": "2.10.0", "transformers": "5.10.0", "diffusers": "0.38.0", "gradio": "6.22",
          "safetensors": "0.8.0", "filelock": "3.20.1", "pillow": "12.1"}  # fmt: skip
"""torch: CVE-2025-32434, CVE-2026-24747. transformers: CVE-2026-4372, CVE-2026-9856. diffusers:
CVE-2026-44513, CVE-2026-44827. gradio: SSRF and traversal fixed until 6.20. filelock: lock files
that were symbolic links were truncated (CVE-2025-68146)."""


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def banned(source: str) -> list[str]:
    """Lines and names of what a module must not do."""
    found, lines = [], source.splitlines()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Call):
            name = _name(node.func)
            names += [name] if name in CALLS or name.rpartition(".")[2] == "nan_to_num" else []
            names += [
                f"{keyword.arg}=True"
                for keyword in node.keywords
                if keyword.arg in TRUE
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            names.append(str(node.module))
        at = getattr(node, "lineno", 1)
        if "# allowed: " not in "".join(lines[max(at - 2, 0) : at]):
            found += [f"line {at}: {name}" for name in names]
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])))


def prove(folder: Path, count: int) -> Result:
    files = [path for name in ("dreamsa", "train_cls") for path in (REPO / name).rglob("*.py")]
    failures = [
        f"{path.relative_to(REPO)}, {what}" for path in files for what in banned(path.read_text())
    ]
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = " ".join([*project["dependencies"], *project["optional-dependencies"]["web"]])
    for name, floor in FLOORS.items():
        bound = re.search(rf"\b{name}>=([\d.]+)", declared)
        if bound is None or _numbers(bound[1]) < _numbers(floor):
            failures.append(f"pyproject.toml must require {name}>={floor}")
        try:
            if _numbers(version(name)) < _numbers(floor):
                failures.append(f"{name} {version(name)} is installed, {floor} is needed")
        except PackageNotFoundError:
            failures += [] if name == "gradio" else [f"{name} is not installed"]
    return Result(len(files) + len(FLOORS), failures)
