"""YAML from outside, read with bounds, and with the place of everything in it.

Only what JSON can say is taken: mappings with text keys, lists, text, numbers, true, false, null. Words
such as `on`, `yes` or `2024-01-01` are text. Aliases count as often as they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from coven.errors import CovenError, Where

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_SHOWN = 200  # duplicate names in one error

INTEGER = re.compile(r"[-+]?[0-9]{1,19}")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,16}")
FLOAT = re.compile(r"[-+]?([0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30}|[0-9]{1,30}(?=[eE]))([eE][-+]?[0-9]{1,3})?")
WORDS = {"": None, "~": None, "null": None, "true": True, "false": False, "True": True, "False": False,
         "Null": None, "NULL": None, "TRUE": True, "FALSE": False}  # fmt: skip

Location = tuple[str | int, ...]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class _Node:
    """A piece of YAML with its place; `value` is a list of pairs, a list of nodes or a scalar."""

    line: int
    column: int
    value: Any = None
    is_mapping: bool = False
    is_list: bool = False
    plain: bool = True  # a scalar without quotes on one line: columns within its text are known
    size: int = 1  # nodes in it, itself included


@dataclass(slots=True)
class Document:
    """A parsed file: plain data, and the line and column (from 1) of each value and each key."""

    file: str
    data: Any = None
    values: dict[Location, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Location, tuple[int, int]] = field(default_factory=dict)
    plain: set[Location] = field(default_factory=set)  # texts in which columns can be counted

    def where(self, location: Location, *, key: bool = False, offset: int | None = None) -> Where:
        """Give the place of a value, or of its key, or of a character within its text.

        A location that the file does not have gets the place of what surrounds it.
        """
        part = describe(location) or None
        if key and location in self.keys:
            line, column = self.keys[location]
            return Where(self.file, line, column, part)
        while location not in self.values and location:
            location = location[:-1]
        line, column = self.values.get(location, (1, 1))
        if offset is not None and location in self.plain:
            column += offset
        return Where(self.file, line, column, part)


def describe(location: Location) -> str:
    """Give a location as it is written in messages: paths.inspect.hops[1]."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text if len(text) <= 200 else text[:197] + "..."


def parse(content: bytes, file: str) -> Document:
    """Read one YAML document. Raises CovenError `descriptor.bad-yaml` or `descriptor.duplicate-name`.

    file: the name for messages.
    """
    if len(content) > MAX_BYTES:
        raise _bad(file, 1, 1, f"the file has {len(content)} bytes, at most {MAX_BYTES} are read")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line = before.count("\n") + 1
        raise _bad(file, line, len(before) - before.rfind("\n"), "the text is not UTF-8") from None
    try:
        root = _compose(_events(text), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(word for word in (error.problem, error.context) if word)
        raise _bad(file, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, words) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0) or 0
        before = text[:position]
        words = " ".join(str(error).split())[:200]
        raise _bad(file, before.count("\n") + 1, len(before) - before.rfind("\n"), words) from None
    document = Document(file)
    duplicates: list[CovenError] = []
    document.data = _flatten(root, (), document, duplicates)
    if duplicates:
        first = duplicates[0]
        if len(duplicates) == 1:
            raise first
        shown = tuple(duplicates[:MAX_SHOWN])
        raise CovenError(first.code, f"{file} has {len(duplicates)} names twice", findings=shown)
    return document


def _bad(file: str, line: int, column: int, message: str, hint: str | None = None) -> CovenError:
    return CovenError("descriptor.bad-yaml", message, hint=hint, where=Where(file, line, column))


def _events(text: str) -> Iterator[Any]:
    """Give the parser's events; it keeps no tree, so bounds can be checked while it runs."""
    loader = LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _compose(events: Iterator[Any], file: str) -> _Node:
    """Build the tree of the first document, with bounds on depth and on nodes (aliases counted in full)."""
    root: _Node | None = None
    open_nodes: list[_Node] = []
    open_anchors: list[str | None] = []
    anchors: dict[str, _Node] = {}
    total = documents = 0
    for event in events:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _bad(file, line, column, "a second document begins here; one file holds one")
            continue
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            node = open_nodes.pop()
            anchor = open_anchors.pop()
            if node.is_mapping:
                pairs = node.value
                node.value = list(zip(pairs[::2], pairs[1::2], strict=True))
            if anchor is not None:
                anchors[anchor] = node
            if open_nodes:
                open_nodes[-1].size += node.size
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _bad(file, line, column, f"the alias *{event.anchor} refers to nothing complete before it")
            node = anchors[event.anchor]
        else:
            node = _node(event, file, line, column)
        total += node.size
        if total > MAX_NODES:
            raise _bad(file, line, column, f"the document has more than {MAX_NODES} nodes",
                       "aliases count as often as they are used")  # fmt: skip
        if open_nodes:
            open_nodes[-1].value.append(node)
        elif root is None:
            root = node
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append(node)
            open_anchors.append(event.anchor)
            if len(open_nodes) > MAX_DEPTH:
                raise _bad(file, line, column, f"the document is nested more than {MAX_DEPTH} deep")
        else:
            if isinstance(event, yaml.ScalarEvent) and event.anchor:
                anchors[event.anchor] = node
            if open_nodes:
                open_nodes[-1].size += node.size
    if root is None:
        raise _bad(file, 1, 1, "the file is empty")
    return root


def _node(event: Any, file: str, line: int, column: int) -> _Node:
    """Make a node of an event; a collection is empty still."""
    if event.tag is not None and event.tag != "!":
        raise _bad(file, line, column, f"the tag {event.tag!r} is not used here", "write the value without a tag")
    if isinstance(event, yaml.MappingStartEvent):
        return _Node(line, column, [], is_mapping=True)
    if isinstance(event, yaml.SequenceStartEvent):
        return _Node(line, column, [], is_list=True)
    one_line = event.start_mark.line == event.end_mark.line
    if event.style or event.tag == "!":  # plain text has no style
        return _Node(line, column, event.value, plain=False)
    return _Node(line, column, _scalar(event.value, file, line, column), plain=one_line)


def _scalar(text: str, file: str, line: int, column: int) -> Any:
    """Give the value of a scalar without quotes (the core of YAML 1.2)."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        number = int(text)
    elif HEXADECIMAL.fullmatch(text):
        number = int(text, 16)
    elif FLOAT.fullmatch(text):
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise _bad(file, line, column, f"{text} is too large a number")
        return value
    elif re.fullmatch(r"[-+]?[0-9]+", text):
        raise _bad(file, line, column, "the number does not fit 64 bits", "put it in quotes if it is text")
    else:
        return text
    if not -(2**63) <= number < 2**64:
        raise _bad(file, line, column, "the number does not fit 64 bits", "put it in quotes if it is text")
    return number


def _flatten(node: _Node, location: Location, document: Document, duplicates: list[CovenError]) -> Any:
    """Give the plain data of a node and note where everything stands. Depth and size are bounded already."""
    document.values[location] = (node.line, node.column)
    if node.is_list:
        return [_flatten(element, (*location, index), document, duplicates) for index, element in enumerate(node.value)]
    if not node.is_mapping:
        if node.plain and isinstance(node.value, str):
            document.plain.add(location)
        return node.value
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        if key_node.is_list or key_node.is_mapping or not isinstance(key, str):
            raise _bad(document.file, key_node.line, key_node.column, "a key must be text",
                       "put the key in quotes")  # fmt: skip
        inner = (*location, key)
        if key in data:
            first = document.keys[inner][0]
            duplicates.append(
                CovenError("descriptor.duplicate-name", f"{describe(inner)} is there twice, first in line {first}",
                           where=Where(document.file, key_node.line, key_node.column, describe(inner)))
            )  # fmt: skip
            continue
        document.keys[inner] = (key_node.line, key_node.column)
        data[key] = _flatten(value_node, inner, document, duplicates)
    return data
