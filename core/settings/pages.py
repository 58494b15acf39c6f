"""The tables of docs/configuration.md: every field, default and variable.

`python -m core.settings.pages docs/configuration.md` writes them anew; a test fails when they are out of date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from core.settings.environment import OVERRIDES
from core.settings.schema import json_schema
from core.settings.unbuilt import UNBUILT

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def tables() -> str:
    """The generated part of the page, in Markdown."""
    definitions = json_schema()["$defs"]
    rows = "\n".join(f"| `{path}` | {default} | {text} |" for path, default, text in _rows(definitions, "Settings", ""))
    variables = "\n".join(f"| `{o.variable}` | `{'.'.join(o.loc)}` | {o.meaning} |" for o in OVERRIDES)
    missing = "\n".join(f"| `{row.path}` | {row.missing} |" for row in UNBUILT)
    return (
        f"## Fields\n\n| Field | Default | Meaning |\n|---|---|---|\n{rows}\n\n"
        f"## Environment variables\n\n| Variable | Overrides | Meaning |\n|---|---|---|\n{variables}\n\n"
        f"## Not built yet\n\n| Setting | Until then |\n|---|---|\n{missing}\n"
    )


def renewed(page: str) -> str:
    """The page with its generated part up to date."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


def _rows(definitions: dict[str, Any], name: str, prefix: str) -> Iterator[tuple[str, str, str]]:
    definition: dict[str, Any] = definitions[name]
    required: list[str] = definition.get("required", [])
    for field, schema in definition["properties"].items():
        inner, suffix = _inner(definitions, schema)
        path = f"{prefix}{field}{suffix}"
        # pydantic leaves out a description that only repeats its model's.
        text = schema.get("description") or (definitions[inner].get("description", "") if inner else "")
        text = text.replace("|", "\\|").replace("<", "&lt;")
        if inner is None:
            yield path, "required" if field in required else _default(schema), text
        else:
            yield path, "required" if field in required else "", text
            yield from _rows(definitions, inner, f"{path}.")


def _inner(definitions: dict[str, Any], schema: dict[str, Any]) -> tuple[str | None, str]:
    """The model that a field holds, and `[]` or `.<name>` where it holds many."""
    for part in [schema, *schema.get("anyOf", [])]:
        for content, suffix in ((part, ""), (part.get("items"), "[]"), (part.get("additionalProperties"), ".<name>")):
            reference = cast(dict[str, Any], content).get("$ref") if isinstance(content, dict) else None
            name = str(reference).rpartition("/")[2]
            if reference and "properties" in definitions[name]:
                return name, suffix
    return None, ""


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, list):
        return f"`[{', '.join(str(item) for item in cast(list[Any], default))}]`"
    if default is None:
        return "`null`" if "default" in schema else "`{}`"
    return f"`{default}`"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(renewed(target.read_text()))
