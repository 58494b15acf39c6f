"""The text of a CEL expression: its tokens, what it requires, what it refers to, and what it may cost.

Expressions are CEL (cel.dev) with narrower rules, so that what they cost and what they look at is known in advance:
`metadata` and `headers` are looked into by a name that is written out, loops are not nested, patterns of `matches` are
written out and simple. The engine compiles a pattern whenever it is used, so classes of all of Unicode, which take
0.2 ms each, are refused.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from core.facts import MAPS, VARIABLES, Kind, flat_name

LONGEST_EXPRESSION = 4096
MOST_STEPS = 4096
"""What an expression may cost: its tokens, those of a loop's body once for each item that it may have."""

_ITEMS = 64
"""Items a loop over a variable is taken to have: groups of a caller."""
_CONCATENATION = 8
_PATTERN = 2500
_LONGEST_PATTERN = 100
_MOST_REPEATS = 64
_DEEPEST = 40

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*)+)
    |(?P<text>[bB]?[rR][bB]?(?:'''.*?'''|\"\"\".*?\"\"\"|'[^'\n]*'|"[^"\n]*")
      |[bB]?(?:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||[=!<>]=|[-+*/%!<>?:.,()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_LOOPS = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
_FUNCTIONS = frozenset(
    {"size", "contains", "startsWith", "endsWith", "matches", "has", "type", "dyn"}
    | {"string", "int", "uint", "double", "bytes", "timestamp", "duration"}
    | {"getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek"}
    | {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
)
_TYPES = frozenset({"int", "uint", "double", "string", "bool", "bytes"})
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
HAS = "has() asks for a name in metadata or headers, has(metadata.app); of others ask task_type != null"
_WORDS = {"and": "&&", "or": "||", "not": "!", "True": "true", "False": "false", "None": "null"}
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


class ConditionError(ValueError):
    """A condition that cannot be used. `position` is the offset in its text of what is wrong."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an expression: a `text`, `number`, `name` or `sign`, and where it starts."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Equality:
    """What must hold for the expression to be true: the reference has one of the values. `start` is where it stands."""

    reference: str
    values: tuple[Any, ...]
    start: int
    member: bool = False
    """Written as `'value' in reference`."""


@dataclass(frozen=True, slots=True)
class Range:
    """What must hold for the expression to be true: the number is there and in the range, its ends included."""

    reference: str
    low: int
    high: int


UNLIMITED = 2**63


def tokens_of(text: str) -> list[Token]:
    """The tokens. Raises ConditionError for what is none."""
    if len(text) > LONGEST_EXPRESSION:
        raise ConditionError(f"is longer than {LONGEST_EXPRESSION} characters")
    found: list[Token] = []
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ConditionError(_unreadable(text, position), position)
        position = match.end()
        if match.lastgroup != "space":
            token = Token(match.lastgroup or "", match.group(), match.start())
            if token.kind == "name" and token.text in _WORDS:
                raise ConditionError(f"write {_WORDS[token.text]} in place of {token.text}", token.start)
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
            if depth > _DEEPEST:
                raise ConditionError(f"has brackets within brackets, more than {_DEEPEST} deep", token.start)
            found.append(token)
    if not found:
        raise ConditionError("is empty; write true for every request")
    return found


def _unreadable(text: str, position: int) -> str:
    sign = text[position]
    if sign == "=":
        return "write == to compare"
    if sign in "&|":
        return f"write {sign * 2} in place of {sign}"
    if sign in "'\"":
        return f"the text that starts with {sign} does not end"
    return f"{sign!r} cannot stand here"


# -- requirements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Requirements:
    """What must hold for an expression to be true; where `whole`, it says nothing else.

    `present` are references that must not be null.
    """

    equalities: tuple[Equality, ...]
    ranges: tuple[Range, ...]
    present: frozenset[str]
    whole: bool


def requirements_of(tokens: Sequence[Token]) -> Requirements:
    """What the parts that are joined by && alone require.

    Only forms that cannot be misread are taken: `name == 'a'`, `name in ['a', 'b']`, `'a' in groups`, `has_images`,
    `!stream`, `input_tokens > 1000`, `true` and `false`.
    """
    equalities: list[Equality] = []
    ranges: list[Range] = []
    present: set[str] = set()
    whole = True
    for part in _conjuncts(tokens):
        if (limits := _range(part)) is not None:
            ranges.append(limits)
        elif (equality := _equality(part)) is not None:
            equalities.append(equality)
        elif [token.text for token in part] != ["true"]:
            whole = False
            if (reference := _needed(part)) is not None:
                present.add(reference)
    return Requirements(tuple(equalities), tuple(ranges), frozenset(present), whole)


_ORDERING = frozenset({"<", "<=", ">", ">="})
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _needed(tokens: Sequence[Token]) -> str | None:
    """What must not be null: nothing is more or less than null, and no function takes it."""
    reference, length = _reference(tokens)
    if reference is None or any(token.text in ("||", "?") for token in tokens):
        return None
    after = [token.text for token in tokens[length : length + 3]]
    if (after and after[0] in _ORDERING) or (len(after) == 3 and after[0] == "." and after[2] == "("):
        return reference
    return None


def _range(tokens: Sequence[Token]) -> Range | None:
    if len(tokens) != 3 or tokens[1].text not in _ORDERING:
        return None
    name, sign, number = tokens[0], tokens[1].text, tokens[2]
    if name.kind == "number":
        name, sign, number = number, _FLIPPED[sign], name
    variable = VARIABLES.get(name.text)
    if variable is None or variable.kind is not Kind.NUMBER or number.kind != "number" or not _is_literal(number):
        return None
    limit = int(number.text)
    if sign in (">", ">="):
        return Range(name.text, limit + (sign == ">"), UNLIMITED)
    return Range(name.text, -UNLIMITED, limit - (sign == "<"))


def _conjuncts(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    depth, starts, closes = 0, [0], -1
    for index, token in enumerate(tokens):
        if token.kind != "sign":
            continue
        if token.text in _OPENING:
            depth += 1
        elif token.text in _CLOSING:
            depth -= 1
            if depth == 0 and closes < 0:
                closes = index
        elif depth == 0 and token.text in ("||", "?"):
            yield tokens
            return
        elif depth == 0 and token.text == "&&":
            starts.append(index + 1)
    if depth != 0:
        yield tokens
    elif len(starts) > 1:
        for start, end in zip(starts, [*(start - 1 for start in starts[1:]), len(tokens)], strict=True):
            yield from _conjuncts(tokens[start:end])
    elif tokens and tokens[0].text == "(" and closes == len(tokens) - 1 and closes > 1:
        yield from _conjuncts(tokens[1:-1])
    else:
        yield tokens


def _equality(tokens: Sequence[Token]) -> Equality | None:
    texts = [token.text for token in tokens]
    start = tokens[0].start if tokens else 0
    if texts == ["false"]:
        return Equality("", (), start)
    if texts[:1] == ["!"]:
        reference, length = _reference(tokens[1:])
        plain = reference is not None and length == len(tokens) - 1 and _is_flag(reference)
        return Equality(reference, (False,), start) if reference is not None and plain else None
    reference, length = _reference(tokens)
    if reference is None:
        if len(tokens) >= 3 and texts[1] in ("==", "in"):
            reference, length = _reference(tokens[2:])
            if reference is not None and length == len(tokens) - 2 and _is_literal(tokens[0]):
                if texts[1] == "in" and reference != "groups":
                    return None
                return Equality(reference, (literal(tokens[0]),), start, member=texts[1] == "in")
        return None
    rest = tokens[length:]
    if not rest:
        return Equality(reference, (True,), start) if _is_flag(reference) else None
    if len(rest) == 2 and rest[0].text == "==" and _is_literal(rest[1]):
        return Equality(reference, (literal(rest[1]),), rest[1].start)
    if len(rest) >= 3 and [rest[0].text, rest[1].text, rest[-1].text] == ["in", "[", "]"]:
        items = rest[2:-1]
        if all(_is_literal(item) for item in items[::2]) and all(comma.text == "," for comma in items[1::2]):
            return Equality(reference, tuple(literal(item) for item in items[::2]), rest[1].start)
    return None


def _is_flag(reference: str) -> bool:
    variable = VARIABLES.get(reference)
    return variable is not None and variable.kind is Kind.FLAG


def _reference(tokens: Sequence[Token]) -> tuple[str | None, int]:
    """The variable, or the name in a map, that the tokens begin with, and of how many of them it is made."""
    if not tokens or tokens[0].kind != "name" or tokens[0].text not in VARIABLES:
        return None, 0
    name = tokens[0].text
    if name not in MAPS:
        return name, 1
    texts = [token.text for token in tokens[1:4]]
    if texts[:1] == ["."] and len(tokens) > 2 and tokens[2].kind == "name":
        return f"{name}.{texts[1]}", 3
    if texts[:1] == ["["] and texts[2:] == ["]"] and _is_literal(tokens[2]) and tokens[2].kind == "text":
        return f"{name}.{literal(tokens[2])}", 4
    return None, 0


def _is_literal(token: Token) -> bool:
    """Whether the token is a value that `literal` can read without knowing all of CEL's escapes."""
    if token.kind == "text":
        quoted = token.text.lstrip("rRbB")
        return (
            token.text[0] not in "bB" and not quoted.startswith(("'''", '"""')) and _unescaped(token.text) is not None
        )
    return token.text in _CONSTANTS or (token.kind == "number" and token.text.isdecimal() and len(token.text) < 16)


def literal(token: Token) -> str | int | bool | None:
    """The value of a token that is one."""
    if token.kind == "text":
        return _unescaped(token.text)
    return _CONSTANTS[token.text] if token.text in _CONSTANTS else int(token.text)


def _unescaped(text: str) -> str | None:
    if text[0] in "rR":
        return text[2:-1]
    inner = text[1:-1]
    if "\\" not in inner:
        return inner
    plain = re.sub(r"\\([\\'\"])", lambda found: "\0" if found[1] == "\\" else found[1], inner)
    return None if "\\" in plain or "\0" in inner else plain.replace("\0", "\\")


# -- checks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """An expression that keeps the rules: the text for the engine, and what it refers to."""

    text: str
    references: frozenset[str]


def checked(text: str, tokens: Sequence[Token]) -> Checked:
    """The expression for the engine, whose syntax is right already. Raises ConditionError where it breaks a rule."""
    closing = _closing(tokens)
    bound = _bound(tokens)
    pieces: list[str] = []
    references: set[str] = set()
    copied = index = 0
    while index < len(tokens):
        token, before = tokens[index], tokens[index - 1].text if index else ""
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        end, piece = index + 1, None
        if token.kind == "name" and after == "(":
            _known_function(token, before)
            if token.text == "matches":
                _simple_pattern(tokens, index)
            if token.text == "has":
                if tokens[index + 2].text not in MAPS:
                    raise ConditionError(HAS, token.start)
                reference, length = _map_reference(tokens, index + 2)
                end = index + 2 + length + 1
                piece = f"({flat_name(reference)} != null)"
                references.add(reference)
        elif token.kind == "name" and before != "." and token.text in MAPS:
            reference, length = _map_reference(tokens, index)
            end = index + length
            piece = flat_name(reference)
            references.add(reference)
        elif token.kind == "name" and before != "." and after != "{":
            if token.text in VARIABLES:
                references.add(token.text)
            elif token.text not in bound and token.text not in _TYPES and token.text not in (*_CONSTANTS, "in"):
                raise ConditionError(_unknown("variable", token.text, VARIABLES), token.start)
        elif token.kind == "name" and after == "{":
            raise ConditionError("messages are not supported", token.start)
        if piece is not None:
            pieces += [text[copied : token.start], piece]
            copied = tokens[end - 1].end
        index = end
    _affordable(tokens, closing)
    return Checked("".join([*pieces, text[copied:]]), frozenset(references))


def _unknown(what: str, name: str, valid: Collection[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(valid))}"
    return f"there is no {what} '{name[:80]}'; {hint}"


def unknown_variable(name: str) -> str:
    """What to say about a name that is no variable."""
    return _unknown("variable", name, VARIABLES)


def _known_function(token: Token, before: str) -> None:
    valid = (_FUNCTIONS - {"has"}) | _LOOPS if before == "." else _FUNCTIONS
    if token.text not in valid:
        raise ConditionError(_unknown("function", token.text, valid), token.start)


def _map_reference(tokens: Sequence[Token], index: int) -> tuple[str, int]:
    name = tokens[index].text
    reference, length = _reference(tokens[index:])
    if reference is None or not reference.partition(".")[2]:
        example = "headers['x-app']" if name == "headers" else "metadata.app or metadata['app']"
        raise ConditionError(f"{name} takes a name that is written out: {example}", tokens[index].start)
    after = [token.text for token in tokens[index + length : index + length + 3]]
    if after[:1] == ["["] or (after[:1] == ["."] and after[2:] != ["("]):
        raise ConditionError(f"{reference} is a plain value, with nothing inside", tokens[index].start)
    check_header(reference, tokens[index].start)
    if name == "headers" and tokens[index + 1].text == "." and after[:1] == ["-"]:
        raise ConditionError("write a name with a hyphen as headers['x-app']", tokens[index].start)
    return reference, length


def check_header(reference: str, position: int = 0) -> None:
    """Raises ConditionError for a header that is not in lower case, as all headers reach us."""
    if reference.startswith("headers.") and reference != reference.lower():
        name = reference.removeprefix("headers.").lower()
        raise ConditionError(f"headers are in lower case: headers['{name}']", position)


def _simple_pattern(tokens: Sequence[Token], index: int) -> None:
    pattern = tokens[index + 2]
    written = pattern.kind == "text" and tokens[index + 3].text == ")"
    regex = _unescaped(pattern.text) if written and _is_literal(pattern) else None
    if regex is None:
        raise ConditionError("the pattern of matches must be a text that is written out: matches('^a')", pattern.start)
    if len(regex) > _LONGEST_PATTERN:
        raise ConditionError(f"the pattern has more than {_LONGEST_PATTERN} characters", pattern.start)
    for escaped in re.findall(r"\\(.)", regex):
        if escaped in "wWdDsSbBpP":
            wanted = {"w": "[A-Za-z0-9_]", "d": "[0-9]", "s": "[ \\t]"}.get(escaped, "the characters that are meant")
            message = f"\\{escaped} stands for all of Unicode, which takes long; write {wanted}"
            raise ConditionError(message, pattern.start)
    if "){" in regex:
        raise ConditionError("the pattern repeats a group by a count; write the group out", pattern.start)
    if sum(int(most or least) for least, most in re.findall(r"\{([0-9]+),?([0-9]*)\}", regex)) > _MOST_REPEATS:
        raise ConditionError(f"the counts in the pattern's braces are more than {_MOST_REPEATS} in sum", pattern.start)


def _closing(tokens: Sequence[Token]) -> dict[int, int]:
    """Where each bracket that opens is closed."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for index, token in enumerate(tokens):
        if token.text in _OPENING:
            opened.append(index)
        elif token.text in _CLOSING and opened:
            pairs[opened.pop()] = index
    return pairs


def _loops(tokens: Sequence[Token]) -> Iterator[int]:
    """Where the names of loops stand."""
    for index in range(1, len(tokens) - 1):
        if tokens[index].text in _LOOPS and tokens[index - 1].text == "." and tokens[index + 1].text == "(":
            yield index


def _bound(tokens: Sequence[Token]) -> frozenset[str]:
    """The names that loops give to their items."""
    names: set[str] = set()
    for index in _loops(tokens):
        item = tokens[index + 2]
        if item.text in VARIABLES or "__" in item.text:
            raise ConditionError(
                f"{item.text} is taken; give the items of {tokens[index].text} another name", item.start
            )
        names.add(item.text)
    return frozenset(names)


def _affordable(tokens: Sequence[Token], closing: dict[int, int]) -> None:
    weights = [_weight(token, tokens[index - 1].text if index else "") for index, token in enumerate(tokens)]
    steps, until = sum(weights), -1
    items = _ITEMS + sum(token.text == "," for token in tokens)
    for index in _loops(tokens):
        if index < until:
            raise ConditionError("a loop cannot stand inside another", tokens[index].start)
        until = closing[index + 1]
        steps += items * sum(weights[index + 2 : until])
    if steps > MOST_STEPS:
        raise ConditionError(
            f"takes too much to work out: {steps} steps, {MOST_STEPS} may be; long lists are free in a mapping, "
            "task_type: [...], and where an `in` is joined to the rest by && alone"
        )


def _weight(token: Token, before: str) -> int:
    if token.text == "+":
        return _CONCATENATION
    return _PATTERN if token.text == "matches" and before == "." else 1
