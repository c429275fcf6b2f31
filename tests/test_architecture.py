"""The floors: imports go down only, third parties stay where they belong, and the public face is what it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import imgclf

PACKAGE = Path(imgclf.__file__).parent
FLOORS = {
    0: ("allocator", "errors", "storage", "preprocess", "tensors", "pickles", "mixing", "interrupts", "progress", "threads",
        "trial_record", "console"),
    1: ("data", "models", "report", "metrics", "calibration"),
    2: ("optimizers", "trained", "classifier"),
    3: (
        "inference", "callbacks", "checkpoint", "guard", "saving", "resume", "loggers", "predictor", "summary", "run_folder",
        "building", "features", "pictures", "explain", "reporting", "imagenet", "showing",
    ),
    4: (
        "training", "evaluation", "checking", "app", "check", "train", "evaluate", "predict", "download", "cli", "cache",
        "compare", "__main__", "trials", "sweep", "resolvers", "finding",
    ),
}  # fmt: skip
HOMES = {
    "hydra": ("app",),
    "omegaconf": ("app", "train", "evaluate", "download", "check", "resolvers"),
    "matplotlib": ("report",),
    "PIL": (
        "data.decode", "data.colour", "data.containers", "data.cost", "data.fitting", "data.orientation", "data.pillow",
        "data.demo",
    ),
    "pytorch_lightning": ("data.datamodule", "classifier", "callbacks", "guard", "saving", "loggers", "building"),
    "lightning_fabric": ("checkpoint", "building"),
    "kagglehub": ("data.download",),
}  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and "conf" not in path.parts)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module that the file imports, inside functions too; not what only a type checker sees."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def floor_of(module: str) -> int:
    return next(floor for floor, names in FLOORS.items() if module.split(".")[0] in names)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path: Path) -> None:
    own = floor_of(module_of(path))
    for name in imports(path):
        if (
            name.startswith("imgclf.")
            and (PACKAGE / name.split(".")[1]).with_suffix(".py").exists() | (PACKAGE / name.split(".")[1]).is_dir()
        ):
            assert floor_of(name.removeprefix("imgclf.")) <= own, f"{module_of(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_third_parties_keep_to_their_floor(path: Path) -> None:
    module = module_of(path)
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or module.startswith(homes), f"{module} imports {name}"


def test_finding_and_data_know_nothing_of_models_and_back() -> None:
    for path in FILES:
        module = module_of(path)
        for name in imports(path):
            if module.startswith("data."):
                assert not name.startswith(("imgclf.models", "imgclf.report"))
            if module.startswith("models."):
                assert not name.startswith(("imgclf.data", "imgclf.report"))


def test_no_suitcases() -> None:
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "common", "misc")


def test_the_public_face() -> None:
    assert imgclf.__all__ == sorted(imgclf.__all__)
    for name in imgclf.__all__:
        assert getattr(imgclf, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = imgclf.nothing


@pytest.mark.parametrize(
    "module",
    [
        "imgclf",
        "imgclf.app",
        "imgclf.train",
        "imgclf.evaluate",
        "imgclf.predict",
        "imgclf.cli",
        "imgclf.cache",
        "imgclf.compare",
        "imgclf.sweep",
    ],
)
def test_what_answers_at_once_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_thing_says_what_it_is() -> None:
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
    code = "import sys, imgclf.predictor as p; sys.exit(any(m in sys.modules for m in ('pytorch_lightning', 'torchmetrics')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
