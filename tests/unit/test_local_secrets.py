"""The local secret provider: environment variables, and a file that nobody else may read."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from core.settings.models import LocalSecrets
from secrets_manager.provider import Lease, Reason, SecretProvider, SecretUnavailable
from secrets_manager.providers.local import LocalSecretsProvider


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A secrets file as it should be."""
    path = tmp_path / "secrets.env"
    written(path, "OPENAI=sk-from-file\n")
    return path


def written(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def provider(file: Path | str | None = None, **environ: str) -> LocalSecretsProvider:
    return LocalSecretsProvider(LocalSecrets(file=None if file is None else str(file)), environ)


def refusal(of: LocalSecretsProvider, name: str = "OPENAI") -> SecretUnavailable:
    with pytest.raises(SecretUnavailable) as raised:
        of.fetch(name, "latest")
    return raised.value


def read(of: LocalSecretsProvider, name: str = "OPENAI") -> tuple[str, str]:
    fetched = of.fetch(name, "latest")
    return fetched.value.reveal(), fetched.version


def test_a_variable_is_read_as_it_is_now() -> None:
    environ = {"OPENAI": "sk-1"}
    local = LocalSecretsProvider(LocalSecrets(), environ)
    assert read(local) == ("sk-1", "environment")
    environ["OPENAI"] = "sk-2"
    assert read(local) == ("sk-2", "environment")
    assert isinstance(local, SecretProvider)


@pytest.mark.parametrize(("environ", "words"), [({}, "is not set"), ({"OPENAI": ""}, "is empty")])
def test_a_variable_that_is_missing_or_empty_is_named(environ: dict[str, str], words: str) -> None:
    error = refusal(provider(**environ))
    assert error.reason is Reason.NOT_FOUND
    assert f"the environment variable OPENAI {words}" in str(error)


def test_the_file_comes_before_the_environment(file: Path) -> None:
    local = provider(file, OPENAI="sk-from-environment", OTHER="sk-other")
    assert read(local) == ("sk-from-file", "file")
    assert read(local, "OTHER") == ("sk-other", "environment")
    error = refusal(local, "NEITHER")
    assert error.reason is Reason.NOT_FOUND
    assert str(file) in str(error)


def test_the_file_may_be_named_by_a_variable(file: Path) -> None:
    assert read(provider("os.environ/SECRETS_FILE", SECRETS_FILE=str(file))) == ("sk-from-file", "file")
    with pytest.raises(SecretUnavailable, match="SECRETS_FILE is not set") as raised:
        provider("os.environ/SECRETS_FILE")
    assert raised.value.reason is Reason.MISCONFIGURED


def test_lines_are_those_of_a_dotenv_file_without_interpolation(file: Path) -> None:
    lines = "# ours\n\nexport A=plain\nB='sk-#1 $A ${A}'\nC=\"two\\nlines\"\nD=${A}\nE=\n"
    written(file, lines)
    local = provider(file)
    assert [read(local, name)[0] for name in "ABCD"] == ["plain", "sk-#1 $A ${A}", "two\nlines", "${A}"]
    assert refusal(local, "E").reason is Reason.NOT_FOUND


def test_a_changed_file_is_read_again(file: Path) -> None:
    local = provider(file)
    assert read(local)[0] == "sk-from-file"
    before = file.stat()
    written(file, "OPENAI=sk-FROM-file\n")  # the same size; the time is moved for clocks that tick slowly
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert read(local)[0] == "sk-FROM-file"


def test_a_replaced_file_is_read_again_though_its_size_and_time_are_the_same(file: Path) -> None:
    local = provider(file)
    assert read(local)[0] == "sk-from-file"
    before = file.stat()
    other = file.with_name("other")
    written(other, "OPENAI=sk-FROM-file\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert read(local)[0] == "sk-FROM-file"


def test_who_gets_a_value_may_wipe_it(file: Path) -> None:
    local = provider(file)
    local.fetch("OPENAI", "latest").value.wipe()
    assert read(local) == ("sk-from-file", "file")
    local.close()
    assert read(local) == ("sk-from-file", "file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666, 0o700, 0o4600])
def test_a_file_that_others_may_read_is_refused_until_its_mode_is_right(file: Path, mode: int) -> None:
    local = provider(file, OPENAI="sk-from-environment")
    assert read(local)[1] == "file"
    file.chmod(mode)
    error = refusal(local)
    assert error.reason is Reason.MISCONFIGURED
    assert "chmod 600" in str(error)
    assert f"{mode:04o}" in str(error)
    file.chmod(0o400 if mode == 0o640 else 0o600)
    assert read(local)[1] == "file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(file: Path) -> None:
    os.chown(file, 12345, -1)
    error = refusal(provider(file))
    assert error.reason is Reason.MISCONFIGURED
    assert "somebody else" in str(error)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    missing, pipe = tmp_path / "missing", tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, words in ((missing, "No such file"), (pipe, "not a regular file"), (tmp_path, "not a regular file")):
        error = refusal(provider(path, OPENAI="sk-from-environment"))
        assert error.reason is Reason.MISCONFIGURED
        assert words in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("A=1\nmarked secret on a line\n", "line 2 is not NAME=value"),
        ("marked-secret\n", "line 1 is not NAME=value"),
        ("A='marked-secret\n", "line 1 is not NAME=value"),
        (b"A=marked-secret\xff\n", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_without_quoting_it(
    file: Path, content: str | bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    written(file, content)
    with caplog.at_level(logging.DEBUG):
        error = refusal(provider(file), "A")
    assert error.reason is Reason.MISCONFIGURED
    assert words in str(error)
    assert (error.__cause__, error.__context__) == (None, None)
    assert "marked" not in str(error) + caplog.text


def test_it_is_not_made_where_it_is_off() -> None:
    with pytest.raises(SecretUnavailable, match="not enabled") as raised:
        LocalSecretsProvider(LocalSecrets(enabled=False), {})
    assert raised.value.reason is Reason.MISCONFIGURED


def test_there_are_no_leases() -> None:
    with pytest.raises(SecretUnavailable):
        provider().renew(Lease("x", 1, True))


def test_the_diagnosis_says_what_is_set_and_where(file: Path) -> None:
    checks = list(provider(file, OTHER="x").diagnose({"OPENAI": "latest", "OTHER": "latest", "NEITHER": "latest"}))
    assert [(check.level, check.what) for check in checks] == [
        ("ok", "the local secret provider is enabled; production refuses it"),
        ("ok", f"{file} is private and has 1 name(s)"),
        ("ok", "env://OPENAI is set, in the file"),
        ("ok", "env://OTHER is set, in the environment"),
        ("error", "env://NEITHER has no value"),
    ]
    file.chmod(0o644)
    *_, last = provider(file).diagnose({"OPENAI": "latest"})
    assert (last.level, last.what) == ("error", f"{file} cannot be used")
    assert "chmod 600" in last.do
