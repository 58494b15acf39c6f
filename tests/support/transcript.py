"""Runs the console blocks of a documentation page as a reader would, in one shell, and compares what they print.

A line that begins with `$ ` is a command, the lines after it are what it prints. In those, `…` stands for anything
within a line, and a line of nothing else for any number of lines.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_END = "--- end of command ---"


@dataclass
class Step:
    command: str
    expected: list[str] = field(default_factory=list)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of `page` in one language."""
    return [body for kind, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def steps(page: Path) -> Iterator[Step]:
    """The commands of a page's console blocks with what they are to print."""
    for body in blocks(page, "console"):
        step: Step | None = None
        for line in body.splitlines():
            if line.startswith("$ "):
                if step:
                    yield step
                step = Step(line[2:])
            elif step:
                step.expected.append(line)
        if step:
            yield step


def matches(expected: list[str], printed: str) -> bool:
    """Whether `printed` is what a page promises. Columns may be wider or narrower: what fills them differs by run."""
    pattern = ""
    for line in expected:
        pattern += r"(?:.*\n)*?" if line == "…" else r"[^\n]*?".join(map(_literal, line.split("…"))) + r"\s*?\n"
    return re.fullmatch(pattern + r"\s*", printed if printed.endswith("\n") else printed + "\n") is not None


def _literal(text: str) -> str:
    return " {2,}".join(map(re.escape, re.split(" {2,}", text)))


class Shell:
    """One bash, so that what a step exports is there for the next."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """What the command prints, errors included."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\necho '{_END}'\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            if line.rstrip().endswith(_END):
                return printed + line.rstrip().removesuffix(_END)
            printed += line
        raise AssertionError(f"the shell ended in {command!r}: {printed}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
