"""config.yaml as LiteLLM reads it (YAML 1.1, `include:` merged), with the file, line and column of everything in it."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from core.settings.finding import Finding, InvalidConfig, Loc, errors, shown_name

SECTION = "orchestration"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STRING = "tag:yaml.org,2002:str"
_DEEPEST = 60
"""Levels of nesting; no real configuration comes near, and both parsers give up somewhere beyond."""


class _Loader(_Base):
    """PyYAML's safe loader whose every complaint knows its line."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)  # pyright: ignore
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError, IndexError):
            raise yaml.constructor.ConstructorError(None, None, "cannot read this value", node.start_mark) from None


@dataclass
class Source:
    """One configuration: the merged document, and where each part of it stands."""

    path: Path
    root: MappingNode
    document: dict[str, Any] = field(default_factory=dict[str, Any])
    files: tuple[Path, ...] = ()
    """Every file that was read, the configuration itself first."""
    digest: str = ""
    """sha256 of the files' bytes, in hex."""
    findings: list[Finding] = field(default_factory=list[Finding])

    def locate(self, finding: Finding, *, key: bool = False) -> Finding:
        """The finding with file, line and column of its value (`key`: of its name), or of the nearest thing around."""
        node: Node = self.root
        mark = self.root.start_mark
        for depth, part in enumerate(finding.loc, start=1):
            name, value = _child(node, part)
            if value is None:
                break
            mark = name.start_mark if name is not None and (key or depth < len(finding.loc)) else value.start_mark
            node = value
        found = _at(finding, mark)
        if finding.offset and isinstance(node, ScalarNode) and node.start_mark.line == node.end_mark.line:
            quote = 1 if node.style in ("'", '"') else 0
            found = replace(found, column=mark.column + 1 + quote + finding.offset)
        return found


def read(path: Path) -> Source:
    """Read a configuration and what it includes. Raises InvalidConfig with what YAML or `include` has against it."""
    content = _bytes(path, path)
    root = _compose(path, content)
    source = Source(path=path, root=root, files=(path,), findings=_duplicates(root))
    digest = hashlib.sha256(content)
    _flatten(root)
    pending = [(entry, path) for entry in _includes(root, path)]
    while pending:
        entry, declared_in = pending.pop(0)
        location = _include_location(entry, declared_in, path)
        if location.resolve() in {file.resolve() for file in source.files}:
            continue
        content = _bytes(location, path)
        included = _compose(location, content)
        digest.update(content)
        source.findings += _duplicates(included)
        source.files += (location,)
        _flatten(included)
        pending += [(nested, location) for nested in _includes(included, location)]
        _merge(root, included)
    root.value = [(name, value) for name, value in root.value if name.value != "include"]
    if errors(source.findings):
        raise InvalidConfig(source.findings)
    _text_keys(root)
    source.document = cast(dict[str, Any], _construct(root, path))
    source.digest = digest.hexdigest()
    return source


def _bytes(path: Path, root: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        where = "" if path == root else f" (included from {root})"
        problem = f"cannot read the file{where}: {error.strerror or type(error).__name__}"
        raise InvalidConfig([Finding("error", (), problem, file=str(path))]) from None


def _compose(path: Path, content: bytes) -> MappingNode:
    stream = io.BytesIO(content)
    stream.name = str(path)  # type: ignore[attr-defined] # PyYAML puts a stream's name into every mark
    try:
        loader = _Loader(_shallow(stream, content, path))
        node: Node | None = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = content[: error.position] if isinstance(error.character, bytes) else content.decode(errors="replace")
        text = before if isinstance(before, bytes) else before[: error.position].encode()
        line = text.count(b"\n") + 1
        problem = f"not a valid YAML file: {error.reason}"
        raise InvalidConfig([Finding("error", (), problem, file=str(path), line=line, column=1)]) from None
    except yaml.YAMLError as error:
        raise InvalidConfig([_syntax(error, path, content)]) from None
    except (RecursionError, ValueError):
        problem = "not a valid YAML file"
        raise InvalidConfig([Finding("error", (), problem, file=str(path), line=1, column=1)]) from None
    if node is None:
        mark = yaml.Mark(str(path), 0, 0, 0, None, 0)
        return MappingNode("tag:yaml.org,2002:map", [], mark, mark)
    if not isinstance(node, MappingNode):
        message = "must be a mapping of sections such as model_list: and orchestration:"
        raise InvalidConfig([_at(Finding("error", (), message), node.start_mark)])
    return node


def _shallow(stream: io.BytesIO, content: bytes, path: Path) -> io.BytesIO:
    """The stream, rewound, once its nesting is known not to break a recursive parser."""
    depth = 0
    for event in cast(Iterator[yaml.Event], yaml.parse(content, Loader=_Base)):  # pyright: ignore[reportUnknownMemberType]
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > _DEEPEST:
                finding = Finding("error", (), f"is nested more than {_DEEPEST} levels deep", file=str(path))
                raise InvalidConfig([_at(finding, event.start_mark, str(path))])
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
    return stream


def _syntax(error: yaml.YAMLError, path: Path, content: bytes | None = None) -> Finding:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or "not a valid YAML file")
    if "'\\t'" in problem or "\t" in problem or "tab character" in problem:
        problem += "; YAML is indented with spaces, never with tabs"
    finding = Finding("error", (), f"YAML: {problem}", file=str(path), line=1, column=1)
    if mark:
        finding = _at(finding, mark, str(path))
    if content is not None:
        # libyaml puts what is missing at the end one line after the last.
        lines = max(1, len(content.decode(errors="replace").splitlines()))
        finding = replace(finding, line=min(finding.line or 1, lines))
    return finding


def _at(finding: Finding, mark: Any, file: str | None = None) -> Finding:
    return replace(finding, file=file or str(mark.name), line=mark.line + 1, column=mark.column + 1)


def _child(node: Node, part: str | int) -> tuple[Node | None, Node | None]:
    """The name node and the value node of a part of a mapping or a list."""
    if isinstance(node, SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return None, node.value[part]
    if isinstance(node, MappingNode):
        # The last of several wins, as in PyYAML; a flattened `<<` stands before the mapping's own names.
        for name, value in reversed(node.value):
            if isinstance(name, ScalarNode) and name.value == str(part):
                return name, value
    return None, None


def _walk(node: Node, loc: Loc, seen: set[int]) -> Iterator[tuple[Node, Loc]]:
    """Every mapping and list once, however often aliases repeat it."""
    if id(node) in seen or isinstance(node, ScalarNode):
        return
    seen.add(id(node))
    yield node, loc
    if isinstance(node, MappingNode):
        for name, value in list(node.value):
            yield from _walk(value, (*loc, str(name.value) if isinstance(name, ScalarNode) else "?"), seen)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*loc, index), seen)


def _duplicates(root: MappingNode) -> list[Finding]:
    """Names that a mapping has twice: PyYAML, and so LiteLLM, silently takes the last."""
    findings: list[Finding] = []
    for node, loc in _walk(root, (), set()):
        if not isinstance(node, MappingNode):
            continue
        first: dict[tuple[str, str], Any] = {}
        for name, _ in node.value:
            if not isinstance(name, ScalarNode):
                continue
            same = (name.tag, name.value)
            if same in first and name.value != "<<":
                ours = (*loc, name.value)[0] == SECTION
                message = f"'{shown_name(name.value)}' is here twice; the first is in line {first[same].line + 1}"
                finding = Finding("error" if ours else "warning", (*loc, str(name.value)), message)
                findings.append(_at(finding, name.start_mark))
            first.setdefault(same, name.start_mark)
    return findings


def _flatten(root: MappingNode) -> None:
    """Resolve `<<` merges in place."""
    loader = _Loader("")
    for node, _ in list(_walk(root, (), set())):
        if isinstance(node, MappingNode):
            try:
                loader.flatten_mapping(node)
            except yaml.YAMLError as error:
                raise InvalidConfig([_syntax(error, Path(str(node.start_mark.name)))]) from None
            except RecursionError:
                message = "merges a mapping into itself"
                raise InvalidConfig([_at(Finding("error", (), message), node.start_mark)]) from None


def _includes(root: MappingNode, path: Path) -> list[str]:
    _, node = _child(root, "include")
    if node is None:
        return []
    if not isinstance(node, SequenceNode) or not all(isinstance(item, ScalarNode) for item in node.value):
        message = "must be a list of file paths"
        raise InvalidConfig([_at(Finding("error", ("include",), message), node.start_mark)])
    return [str(item.value) for item in node.value]


def _include_location(entry: str, declared_in: Path, root: Path) -> Path:
    """Next to the file that declares it, else next to the root configuration (LiteLLM's rule)."""
    beside = declared_in.parent / entry
    return beside if beside.exists() or not (root.parent / entry).exists() else root.parent / entry


def _merge(root: MappingNode, included: MappingNode) -> None:
    """LiteLLM's rule: lists are extended, everything else is replaced."""
    for name, value in included.value:
        if not isinstance(name, ScalarNode) or name.value == "include":
            continue
        own_name, own = _child(root, str(name.value))
        if isinstance(own, SequenceNode) and isinstance(value, SequenceNode):
            merged: Node = SequenceNode(own.tag, [*own.value, *value.value], own.start_mark, own.end_mark)
        else:
            merged, own_name = value, None
        root.value = [pair for pair in root.value if pair[0].value != name.value]
        root.value.append((own_name or name, merged))


def _text_keys(root: MappingNode) -> None:
    """In our section a name is its text: YAML 1.1 would read the field `on` as true."""
    _, section = _child(root, SECTION)
    if section is None:
        return
    for node, _ in _walk(section, (), set()):
        if isinstance(node, MappingNode):
            for name, _ in node.value:
                if isinstance(name, ScalarNode):
                    name.tag = _STRING


def _construct(root: MappingNode, path: Path) -> object:
    try:
        return _Loader("").construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InvalidConfig([_syntax(error, Path(str(mark.name)) if mark else path)]) from None
    except RecursionError:
        message = "a mapping or list contains itself"
        raise InvalidConfig([Finding("error", (), message, file=str(path), line=1, column=1)]) from None
