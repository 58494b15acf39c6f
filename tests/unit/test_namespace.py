"""A user's own `plugins.py` and `core/` beside ours. Each case runs an interpreter: `sys.path` is the subject."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from litellm_orchestration._namespace import PACKAGES, clashing_modules

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *, folder: Path, path: tuple[Path, ...] = (ROOT,)) -> subprocess.CompletedProcess[str]:
    """Run `script` with `path` as the front of the module search path; -P keeps the folder itself out of it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-P", "-c", dedent(script)], cwd=folder, env=environment, capture_output=True, text=True
    )


def output(script: str, *, folder: Path, path: tuple[Path, ...] = (ROOT,)) -> str:
    done = run(script, folder=folder, path=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(folder: Path, **files: str) -> None:
    """`core__y="..."` writes core/y.py, `core____init__` core/__init__.py."""
    for name, text in files.items():
        file = folder / (name.replace("__", "/", 1) + ".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text))


def test_a_users_folder_without_init_is_importable_once_its_parent_is_appended_to_the_path(tmp_path: Path) -> None:
    write(tmp_path, core__y="thing = 'theirs'")
    script = """
        import core.errors, sys, os
        sys.path.append(os.getcwd())  # as LiteLLM's command does, here after we were imported
        from core.y import thing
        import core.y
        print(thing, core.y.thing, core.errors.OrchestrationError.__name__)
    """
    assert output(script, folder=tmp_path) == "theirs theirs OrchestrationError"


def test_a_users_package_with_init_keeps_its_modules_attributes_and_relative_imports(tmp_path: Path) -> None:
    write(
        tmp_path,
        core____init__="from .y import thing\nfrom core import z\nflag = thing + z.more",
        core__y="thing = 'y'",
        core__z="more = 'z'",
    )
    script = """
        from core import flag, y
        import core
        print(flag, y.thing, core.thing)
    """
    assert output(script, folder=tmp_path, path=(ROOT, tmp_path)) == "yz y y"


def test_a_users_plugins_file_keeps_its_names_and_runs_once(tmp_path: Path) -> None:
    write(tmp_path, plugins="print('ran')\nmy_handler = object()")
    script = """
        from plugins import my_handler
        import plugins, plugins.admin
        print(my_handler is plugins.my_handler)
    """
    assert output(script, folder=tmp_path, path=(ROOT, tmp_path)) == "ran\nTrue"


def test_our_own_modules_are_imported_without_running_the_users_file(tmp_path: Path) -> None:
    write(tmp_path, core____init__="raise SystemExit('the user file ran')")
    assert output("from core import errors; print(errors.__name__)", folder=tmp_path, path=(ROOT, tmp_path)) == (
        "core.errors"
    )


def test_a_module_that_neither_side_has_is_reported_like_any_other(tmp_path: Path) -> None:
    write(tmp_path, plugins="x = 1")
    done = run("import core.nothing", folder=tmp_path, path=(ROOT, tmp_path))
    assert "No module named 'core.nothing'" in done.stderr
    done = run("from plugins import nothing", folder=tmp_path, path=(ROOT, tmp_path))
    assert "cannot import name 'nothing' from 'plugins'" in done.stderr


def test_an_error_in_the_users_file_is_theirs_and_comes_again_at_the_next_import(tmp_path: Path) -> None:
    write(tmp_path, plugins="1 / 0")
    script = """
        for _ in range(2):
            try:
                from plugins import my_handler
            except ZeroDivisionError as error:
                print(error)
    """
    assert output(script, folder=tmp_path, path=(ROOT, tmp_path)) == "division by zero\ndivision by zero"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_path_lists_our_folder_first_and_the_users_once(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    script = f"import {package}, pkgutil; print(len({package}.__path__), *{package}.__path__)"
    path = (ROOT, tmp_path, ROOT, tmp_path)
    assert output(script, folder=tmp_path, path=path) == f"2 {ROOT / package} {tmp_path / package}"


@pytest.mark.parametrize("theirs", ["plugins.py", "plugins/__init__.py"])
def test_a_users_package_in_front_of_ours_is_named_with_the_way_out(tmp_path: Path, theirs: str) -> None:
    file = tmp_path / theirs
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    script = "from litellm_orchestration._namespace import verify_our_packages; verify_our_packages()"
    done = run(script, folder=tmp_path, path=(tmp_path, ROOT))
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert f"{file} hides the package 'plugins' of litellm-orchestration" in message
    assert f"Take {tmp_path} off the front" in message
    assert "'core'" not in message


def test_the_same_files_behind_ours_are_fine(tmp_path: Path) -> None:
    write(tmp_path, plugins="", core____init__="")
    script = "from litellm_orchestration._namespace import verify_our_packages; verify_our_packages(); print('fine')"
    assert output(script, folder=tmp_path, path=(ROOT, tmp_path)) == "fine"


def test_a_folder_without_init_in_front_of_ours_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path, core__y="thing = 1")
    script = """
        from litellm_orchestration._namespace import verify_our_packages
        verify_our_packages()
        import core.y, core.errors
        print(core.y.thing)
    """
    assert output(script, folder=tmp_path, path=(tmp_path, ROOT)) == "1"


def test_a_users_module_of_the_same_name_as_ours_is_a_clash(tmp_path: Path) -> None:
    write(tmp_path, core__errors="", core__y="", plugins="from somewhere import admin\nmy_handler = 1")
    (tmp_path / "core" / "journal").mkdir()
    assert clashing_modules(tmp_path) == {
        "core.errors": tmp_path / "core" / "errors.py",
        "core.journal": tmp_path / "core" / "journal",
        "plugins.admin": tmp_path / "plugins.py",
    }


def test_our_own_folders_clash_with_nothing() -> None:
    assert clashing_modules(ROOT) == {}
