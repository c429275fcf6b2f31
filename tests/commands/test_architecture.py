"""Architecture: the floors of the folders, the third parties of each, and the public names of the package."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import imgclf

PACKAGE = Path(imgclf.__file__).parent
COMMANDS = (
    "train",
    "resume",
    "evaluate",
    "predict",
    "serve",
    "export",
    "check",
    "compare",
    "sweep",
    "cache",
    "download",
    "__main__",
)
FOUNDATIONS = (
    "config",
    "console",
    "errors",
    "jupyter",
    "malloc",
    "names",
    "preprocess",
    "schema",
    "signals",
    "threads",
)
# Folder -> its floor. A folder may import any lower floor.
FLOORS = {
    "files": 1,
    "cli": 2,
    "demo": 2,
    "figures": 2,
    "fetch": 2,
    "images": 2,
    "models": 2,
    "page": 2,
    "data": 3,
    "evaluation": 4,
    "report": 5,
    "exporting": 6,
    "quality": 6,
    "training": 7,
    "inference": 8,
    "sweeps": 8,
    "serving": 9,
}
# Folder -> the folders and third parties that it never imports.
NEVER = {
    "cli": ("data", "models", "training", "torch"),
    "demo": ("torch", "data", "images"),
    "fetch": ("torch", "images", "data"),
    "figures": ("torch", "images"),
    "images": ("torch", "files"),
    "models": ("pytorch_lightning", "lightning_fabric"),
    "data": ("models", "report", "training"),
    "evaluation": ("pytorch_lightning", "matplotlib", "training", "report"),
    "report": ("training",),
    "exporting": ("pytorch_lightning", "quality", "training"),
    "quality": ("models", "training"),
    "training": ("inference", "sweeps"),
    "inference": ("cli", "sweeps"),
    "serving": ("cli", "sweeps", "training"),
}
# Third party -> the only folders or modules that import it.
HOMES = {
    "hydra": ("cli",),
    "omegaconf": ("cli",),
    "matplotlib": ("figures", "report.confusion"),
    "PIL": ("images", "demo", "exporting.standalone"),
    "kagglehub": ("fetch",),
    "pytorch_lightning": ("data.datamodule", "training"),
    "lightning_fabric": ("training",),
    "prometheus_client": ("serving",),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "conf" not in path.relative_to(PACKAGE).parts)


def module_of(path: Path) -> str:
    """Return the dotted name of a file, without the package's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def folder_of(module: str) -> str:
    """Return the folder of a module; "" for a module at the top of the package."""
    return module.split(".")[0] if "." in module or module in FLOORS else ""


def floor_of(module: str) -> int:
    """Return the floor of a module: 10 for commands, 0 for the foundations."""
    name = module.split(".")[0]
    return FLOORS.get(name, 10 if name in (*COMMANDS, "__init__") else 0)


def imports(path: Path) -> set[str]:
    """Return every module that the file imports, also inside functions, but not below `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return names


def own_imports(path: Path) -> set[str]:
    """Return the modules of imgclf that the file imports, without the package's name; the package itself is "__init__"."""
    names = {name.removeprefix("imgclf.") for name in imports(path) if name.startswith("imgclf.")}
    package = {"__init__"} if "imgclf" in imports(path) else set()
    return {name for name in names if name.split(".")[0] in (*FLOORS, *COMMANDS, *FOUNDATIONS)} | package


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_module_imports_only_lower_floors(path: Path) -> None:
    module = module_of(path)
    for name in own_imports(path):
        if folder_of(name) != folder_of(module) or not folder_of(module):
            assert floor_of(name) < floor_of(module) or {floor_of(name), floor_of(module)} == {0}, f"{module}: {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_module_imports_nothing_that_its_folder_excludes(path: Path) -> None:
    module = module_of(path)
    for name in own_imports(path) | imports(path):
        assert name.split(".")[0] not in NEVER.get(folder_of(module), ()), f"{module} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_third_party_is_imported_in_its_folders_only(path: Path) -> None:
    module = module_of(path)
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or module.startswith(homes), f"{module} imports {name}"


@pytest.mark.parametrize("line", ["import imgclf", "from imgclf import show_classes", "import imgclf.train"])
def test_import_of_the_package_or_of_a_command_counts_as_the_highest_floor(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"def draw():\n    {line}\n")
    assert max(map(floor_of, own_imports(tmp_path / "module.py"))) == 10


def test_every_folder_and_root_module_is_listed() -> None:
    folders = {path.parent.name for path in FILES if path.parent != PACKAGE}
    assert folders == set(FLOORS)
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.findall(r'"imgclf\.(\w+)"', project.partition("packages = [")[2].partition("]")[0])
    assert set(packages) == folders | {"conf"}, "a wheel has them all"
    modules = {path.stem for path in FILES if path.parent == PACKAGE and path.stem != "__init__"}
    assert modules <= {*COMMANDS, *FOUNDATIONS}


def test_no_module_is_called_utils_helpers_common_or_misc() -> None:
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "common", "misc")


def test_every_public_name_of_the_package_has_a_docstring() -> None:
    assert imgclf.__all__ == sorted(imgclf.__all__)
    for name in imgclf.__all__:
        assert getattr(imgclf, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = imgclf.nothing


@pytest.mark.parametrize(
    "module", ["imgclf", "imgclf.cli.hydra_app", "imgclf.__main__", *(f"imgclf.{c}" for c in COMMANDS[:-1])]
)
def test_light_module_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_predictor_loads_neither_lightning_nor_torchmetrics() -> None:
    code = "import sys, imgclf.inference.predictor; sys.exit(bool({'pytorch_lightning', 'torchmetrics'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_class_and_function_has_a_docstring() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        hidden = [
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) or str(getattr(n, "name", "")).startswith("_")
        ]
        inner = {id(part) for node in hidden for part in ast.walk(node) if part is not node}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert id(node) in inner or ast.get_docstring(node), f"{path.name}: {node.name}"


def test_predicting_loads_no_lightning() -> None:
    code = "import sys, imgclf.inference.predictor; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
