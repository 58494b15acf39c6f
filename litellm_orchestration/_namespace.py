"""Four packages with common names that share those names with the user's own modules.

Our wheel installs `core`, `plugins`, `custom_router` and `secrets_manager`; the folder a proxy runs in may hold a
`plugins.py` or a `core/` too. LiteLLM appends that folder to `sys.path`, so ours are found first; `share` then lets the
user's be found behind them. Imported by every package of ours, so it may import nothing heavy and nothing of ours.
"""

import ast
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, overload

PACKAGES = ("core", "plugins", "custom_router", "secrets_manager")
_ROOT = Path(__file__).resolve().parent.parent


class SharedPath(Sequence[str]):
    """A package's `__path__`: our folder, then every folder of that name on `sys.path` as it is at that moment.

    Read anew each time because LiteLLM extends `sys.path` after we may have been imported. `pkgutil.extend_path` looks
    once and is blind to a folder without `__init__.py` when it comes late. Our own modules cost no look at the disk:
    the import system stops at the first folder that has the module.
    """

    def __init__(self, package: str, ours: str) -> None:
        self._package = package
        self._ours = ours

    def __iter__(self) -> Iterator[str]:
        yield self._ours
        seen = {os.path.realpath(self._ours)}
        for folder in _folders(self._package):
            real = os.path.realpath(folder)
            if real not in seen:
                seen.add(real)
                yield folder

    def __len__(self) -> int:
        return len(list(iter(self)))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(iter(self))[index]

    def __repr__(self) -> str:
        return f"SharedPath({list(iter(self))!r})"


def share(package: str, path: Sequence[str]) -> tuple[list[str], Callable[[str], Any]]:
    """The `__path__` and the module `__getattr__` with which `package` leaves room for the user's modules of its name.

    With them `import core.y` finds the user's `core/y.py`, and `from plugins import my_handler` finds `my_handler` in
    the user's `plugins.py` or `plugins/__init__.py`. Where both sides have a module of one name, ours is the one that
    imports get; `llm-orchestration doctor` names such clashes.
    """
    ours = path[0]
    shared = SharedPath(package, ours)
    theirs: dict[Path, ModuleType] = {}

    # Any: it stands for every attribute of a module that somebody else wrote.
    def attribute(name: str) -> Any:
        # `from core import errors` asks for an attribute before it imports the module: ours must not be looked up in
        # the user's file. Special names are asked for by the import system itself.
        if not (name.startswith("__") and name.endswith("__")) and not _has_module(ours, name):
            for file in _shadowed_files(package, ours):
                module = theirs.get(file) or _execute(package, file, theirs)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    # A `__path__` may be any iterable of strings (importlib's own namespace packages use one), which the type of the
    # module attribute does not say.
    return shared, attribute  # pyright: ignore[reportReturnType]


def shadowing_paths() -> Mapping[str, str]:
    """Which of our packages would not be ours if they were imported now: package -> what comes first instead."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except ValueError:  # a module without a __spec__ was put into sys.modules by hand
            spec = None
        origin = spec.origin if spec is not None else None
        if origin is None:
            found[package] = "nothing at all: the package is not installed"
        elif Path(origin).resolve() != _ROOT / package / "__init__.py":
            found[package] = origin
    return found


def verify_our_packages() -> None:
    """Refuse to go on with somebody else's `core` or `plugins`.

    Raises:
        ImportError: saying which path hides which package and what to do, where the alternative would be a
            "No module named 'core.settings'" from deep inside.
    """
    shadowing = shadowing_paths()
    if shadowing:
        raise ImportError(" ".join(explain_shadowing(package, path) for package, path in shadowing.items()))


def explain_shadowing(package: str, path: str) -> str:
    """What is wrong and what to do about it, in two sentences."""
    if not path.endswith((".py", ".pyc", ".so")):
        return f"litellm-orchestration needs its own package {package!r}, but found {path}. Install the package again."
    file = Path(path)
    entry = file.parent.parent if file.name == "__init__.py" else file.parent
    return (
        f"{path} hides the package {package!r} of litellm-orchestration. Take {entry} off the front of the module "
        f"search path (PYTHONPATH, or `python -m` in that folder): LiteLLM's own command appends the working directory "
        f"behind installed packages, where both are found. Otherwise rename the file or folder."
    )


def _folders(package: str) -> Iterator[str]:
    for entry in list(sys.path):
        folder = Path(entry or Path.cwd()) / package
        if folder.is_dir():
            yield str(folder)


def _shadowed_files(package: str, ours: str) -> Iterator[Path]:
    """The files that `import <package>` would have run if ours were not there, in the order of `sys.path`."""
    mine = Path(ours).resolve().parent
    for entry in list(sys.path):
        folder = Path(entry or Path.cwd()).resolve()
        if folder != mine:
            candidates = (folder / package / "__init__.py", folder / f"{package}.py")
            yield from (file for file in candidates if file.is_file())


def _has_module(folder: str, name: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(name, [folder]) is not None


def _execute(package: str, file: Path, known: dict[Path, ModuleType]) -> ModuleType:
    """Run a user's module under the name it believes to have, once; kept out of `sys.modules`, where ours is."""
    spec = importlib.util.spec_from_file_location(package, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded as a module", name=package, path=str(file))
    module = importlib.util.module_from_spec(spec)
    known[file] = module  # before it runs, so that a circular import inside it sees what is there so far
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del known[file]
        raise
    return module


def clashing_modules(folder: Path) -> dict[str, Path]:
    """Modules of the user's in `folder` that imports cannot reach because ours have the name: dotted name -> file.

    LiteLLM itself loads what a config names from the file beside it, so only `import` statements in the user's own
    code meet a clash.
    """
    found: dict[str, Path] = {}
    for package in PACKAGES:
        ours = _ROOT / package
        theirs = folder / package
        if theirs.is_dir() and theirs.resolve() != ours:
            for module in sorted(theirs.iterdir()):
                if not module.stem.startswith("__") and _has_module(str(ours), module.stem):
                    found[f"{package}.{module.stem}"] = module
        for file in (theirs / "__init__.py", folder / f"{package}.py"):
            if file.is_file() and file.resolve() != ours / "__init__.py":
                for name in _top_level_names(file):
                    if _has_module(str(ours), name):
                        found.setdefault(f"{package}.{name}", file)
    return found


def _top_level_names(file: Path) -> list[str]:
    try:
        statements = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names.extend(alias.asname or alias.name for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names.extend(target.id for target in targets if isinstance(target, ast.Name))
    return names
