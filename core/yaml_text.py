"""Edits of a YAML text that leave the rest of it as it is: where an entry goes in, and how it comes out again.

Positions come from the parsed nodes. Edited are the list `litellm_settings.callbacks`, which may be missing, empty, a
string or a list, and the settings of a section, in block or flow style. A reader of the text alone can undo an edit,
because the form says what was there before: an entry in double quotes stands where a string, an empty list or an empty
value was, a plain one in a list that was there or that is all ours.
"""

from typing import Any, cast

import yaml

SECTION, KEY = "litellm_settings", "callbacks"

# A node's value is a string, a list of nodes or a list of pairs; PyYAML declares no types for them.
Entry = tuple[yaml.Node, yaml.Node]


class NoPlace(ValueError):
    """The text has a form in which the edit has no safe place."""


def with_item(text: str, item: str, block: str) -> str:
    """Put `item` behind the other callbacks; `block` is what is appended where the whole section is missing."""
    found = _entry(_root(text), SECTION)
    if found is None:
        return with_block(text, block)
    section = found[1]
    callbacks = _entry(section, KEY) if isinstance(section, yaml.MappingNode) else None
    if callbacks is None:
        return _with_key(text, found, f"{KEY}: [{item}]")
    value = callbacks[1]
    start, end = _span(value)
    match value:
        case yaml.SequenceNode(flow_style=True, value=[]):
            return _spliced(text, start + 1, start + 1, f'"{item}"')
        case yaml.SequenceNode(flow_style=True, value=[*_, last]):
            at = last.end_mark.index
            return _spliced(text, at, at, f", {item}")
        case yaml.SequenceNode(value=[*_, last]):
            at = _line_end(text, last.end_mark.index)
            dash = " " * value.start_mark.column
            return _spliced(text, at, at, f"{_newline(text)}{dash}- {item}")
        case yaml.ScalarNode(tag="tag:yaml.org,2002:null"):
            return _spliced(text, start, end, f' "{item}"' if start == end else f'"{item}"')
        case _:
            return _spliced(text, start, end, f'[{text[start:end]}, "{item}"]')


def with_setting(text: str, section: str, setting: str) -> str:
    """Put the line `setting` into a section that is there."""
    found = _entry(_root(text), section)
    if found is None:
        raise NoPlace(f"{section} comes from a merge key.")
    return _with_key(text, found, setting)


def without_setting(text: str, section: str, name: str) -> str:
    """Take the setting `name` out of a section as `with_setting` put it in."""
    found = _entry(_root(text), section)
    setting = _entry(found[1], name) if found else None
    if found is None or setting is None:
        raise NoPlace(f"{section}.{name} comes from an anchor or a merge key.")
    return _without_key(text, found[1], setting)


def _with_key(text: str, section: Entry, setting: str) -> str:
    """`setting` as the first line of a block section, as the last entry of one in braces."""
    start, end = _span(section[1])
    header_end = _line_end(text, section[0].end_mark.index)
    match section[1]:
        case yaml.MappingNode(flow_style=True, value=[]):
            return _spliced(text, start + 1, start + 1, setting)
        case yaml.MappingNode(flow_style=True, value=[*_, (_, last)]):
            at = last.end_mark.index
            return _spliced(text, at, at, f", {setting}")
        case yaml.MappingNode(value=[(first, _), *_]):
            indent = " " * first.start_mark.column
            return _spliced(text, header_end, header_end, f"{_newline(text)}{indent}{setting}")
        case _ if start == end:
            return _spliced(text, header_end, header_end, f"{_newline(text)}  {setting}")
        case _:  # an explicit null
            return _spliced(text, start, end, f"{{{setting}}}")


def without_item(text: str, item: str, block: str) -> str:
    """Take `item` out of the callbacks as `with_item` put it in."""
    shortened = without_block(text, block)
    if shortened is not None:
        return shortened
    section = _entry(_root(text), SECTION)
    callbacks = _entry(section[1], KEY) if section else None
    if section is None or callbacks is None:
        raise NoPlace(f"{SECTION}.{KEY} comes from an anchor or a merge key.")
    value = callbacks[1]
    start, end = _span(value)
    match value:
        case yaml.ScalarNode(style='"'):
            return _spliced(text, start - 1, end, "")
        case yaml.ScalarNode():
            return _spliced(text, start, end, "[]")
        case yaml.SequenceNode(flow_style=True, value=[yaml.ScalarNode(style='"') as only]):
            return _spliced(text, *_span(only), "")
        case yaml.SequenceNode(flow_style=True, value=[theirs, yaml.ScalarNode(style='"', value=ours)]) if ours == item:
            return _spliced(text, start, end, text[slice(*_span(theirs))])
        case yaml.SequenceNode(value=[_]):
            return _without_key(text, section[1], callbacks)
        case _:
            nodes: list[yaml.Node] = value.value
            index = [node.value for node in nodes].index(item)
            if cast(yaml.SequenceNode, value).flow_style:
                return _without_entry(text, [_span(node) for node in nodes], index)
            return _without_lines(text, *_span(nodes[index]))


def _without_key(text: str, section: yaml.Node, setting: Entry) -> str:
    entries: list[Entry] = section.value
    if cast(yaml.MappingNode, section).flow_style:
        spans = [(key.start_mark.index, value.end_mark.index) for key, value in entries]
        return _without_entry(text, spans, entries.index(setting))
    key, value = setting
    return _without_lines(text, key.start_mark.index, _content_end(value))


def _content_end(node: yaml.Node) -> int:
    """Where a value's last character stands; PyYAML ends a collection in block style only where the next thing is."""
    match node:
        case (
            yaml.SequenceNode(flow_style=False, value=[*_, last])
            | yaml.MappingNode(flow_style=False, value=[*_, (_, last)])
        ):
            return _content_end(last)
        case _:
            return node.end_mark.index


def _without_entry(text: str, spans: list[tuple[int, int]], index: int) -> str:
    """Remove one entry of a list or mapping in brackets together with the comma before it, else the one after."""
    start, end = spans[index]
    if index > 0:
        start = spans[index - 1][1]
    elif len(spans) > 1:
        end = spans[1][0]
    return _spliced(text, start, end, "")


def _without_lines(text: str, start: int, end: int) -> str:
    """Remove the lines from `start` to `end` with the line break before them."""
    line_start = text.rfind("\n", 0, start)
    if text[line_start - 1 : line_start] == "\r":
        line_start -= 1
    return _spliced(text, max(line_start, 0), _line_end(text, end), "")


def with_block(text: str, block: str) -> str:
    """Put `block` after an empty line behind the last content, so that a missing final line break stays missing."""
    _root(text)
    newline = _newline(text)
    at = len(text.rstrip("\r\n"))
    return _spliced(text, at, at, newline * 2 + block.replace("\n", newline))


def without_block(text: str, block: str) -> str | None:
    """Take `block` out as `with_block` put it in; None where it is not there or was changed."""
    newline = _newline(text)
    appended = newline * 2 + block.replace("\n", newline)
    at = text.find(appended)
    end = at + len(appended)
    if at < 0 or _line_end(text, end) != end:
        return None
    following = text[end:].lstrip("\r\n")
    if following[:1] in (" ", "\t"):  # the user wrote on in our section
        return None
    return _spliced(text, at, end, "")


def _root(text: str) -> yaml.MappingNode:
    root = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)  # declared without types
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise NoPlace("The config is written inside one pair of braces.")
    return root


def _entry(mapping: yaml.Node, name: str) -> Entry | None:
    """The key and value of `name`, None where it is missing.

    Raises:
        NoPlace: the value is an alias: its text stands, and counts, elsewhere too.
    """
    for key, value in cast("list[Entry]", mapping.value):
        if isinstance(key, yaml.ScalarNode) and key.value == name:
            if value.start_mark.index < key.end_mark.index:
                raise NoPlace(f"{name} is an alias of a value that others use too. Write it out first.")
            return key, value
    return None


def _span(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


def _spliced(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _line_end(text: str, at: int) -> int:
    """Where the line of `at` ends, before its line break."""
    end = text.find("\n", at)
    if end < 0:
        return len(text)
    return end - 1 if text[end - 1 : end] == "\r" else end


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
