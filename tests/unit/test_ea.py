"""Extended Agent messages in C, against the same in Python and against json."""

from __future__ import annotations

import json
from typing import Any

import cffi
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coven.agents.protocol import Answer, Request, decode_answer, decode_request, encode_request
from coven.errors import CovenError
from tests.lib import builds

FIELDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
LINES = st.lists(st.lists(FIELDS, min_size=1, max_size=8).map(tuple), max_size=6).map(tuple)


class Messages:
    """ea.c, compiled for itself with the sanitizer that needs no run-time library loaded first."""

    def __init__(self) -> None:
        path = builds.shared_object(["ea.c"], "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
        self.ffi = cffi.FFI()
        self.ffi.cdef(
            "struct reader { char *at; char *end; };"
            "struct writer { char *begin; size_t size; size_t used; bool is_overflow; };"
            "int coven_ea_open(struct reader *, char *, size_t, const char *, size_t);"
            "int coven_ea_line(struct reader *, char **);"
            "bool coven_ea_id(const char *, uint64_t *);"
            "bool coven_ea_plain(char *);"
            "void coven_ea_writer_init(struct writer *, char *, size_t);"
            "void coven_ea_write(struct writer *, const char *const *, size_t);"
            "void coven_ea_write_ok(struct writer *, uint64_t);"
            "size_t coven_ea_write_error(struct writer *, uint64_t, const char *, const char *);"
        )
        self.lib: Any = self.ffi.dlopen(str(path))

    def read(self, message: bytes) -> list[tuple[str, ...]] | None:
        """Give the lines, or None for a message that is refused."""
        copy, reader = self.ffi.new("char[]", max(len(message), 1)), self.ffi.new("struct reader *")
        if self.lib.coven_ea_open(reader, copy, len(message), message, len(message)) != 0:
            return None
        lines, fields = [], self.ffi.new("char *[8]")
        while (n := self.lib.coven_ea_line(reader, fields)) > 0:
            lines.append(tuple(self.ffi.string(fields[i]).decode() for i in range(n)))
            assert all(self.ffi.string(fields[i]) == b"" for i in range(n, 8))
        return lines if n == 0 else None

    def writer(self, size: int) -> Any:
        """Give a writer into a buffer of `size` bytes, and the buffer."""
        buffer, writer = self.ffi.new("char[]", max(size, 1)), self.ffi.new("struct writer *")
        self.lib.coven_ea_writer_init(writer, buffer, size)
        return writer, buffer

    def write(self, writer: Any, *fields: bytes) -> None:
        kept = [self.ffi.new("char[]", field) for field in fields]
        self.lib.coven_ea_write(writer, self.ffi.new("char *[]", kept), len(kept))

    def plain(self, text: bytes) -> bytes | None:
        copy = self.ffi.new("char[]", text)
        return bytes(self.ffi.string(copy)) if self.lib.coven_ea_plain(copy) else None


@pytest.fixture(scope="module")
def ea() -> Messages:
    return Messages()


@given(st.integers(0, 2**63 - 1), FIELDS, LINES)
def test_what_python_writes_is_read(ea: Messages, number: int, name: str, lines: tuple[tuple[str, ...], ...]) -> None:
    got = ea.read(encode_request(Request(number, "call", name, lines)))
    assert got == [(str(number), "call", name), *lines]


@given(st.integers(0, 2**63 - 1), LINES)
def test_what_is_written_is_read_by_python(ea: Messages, number: int, lines: tuple[tuple[str, ...], ...]) -> None:
    writer, buffer = ea.writer(65536)
    ea.lib.coven_ea_write_ok(writer, number)
    for line in lines:
        ea.write(writer, *(field.encode() for field in line))
    assert not writer.is_overflow
    assert decode_answer(ea.ffi.buffer(buffer)[: writer.used]) == Answer(number, lines)


@given(st.binary(max_size=60) | st.text("ab\t\n\\tn\0\u00e9", max_size=30).map(str.encode))
@example(b"")
@example(b"1\tget\t\n\\\n")
@example(b"1\tget\t\n\xed\xa0\x80\n")
def test_both_accept_the_same(ea: Messages, tail: bytes) -> None:
    message = b"1\tget\t\n" + tail
    try:
        wanted = [("1", "get", ""), *decode_request(message).lines]
    except CovenError:
        assert ea.read(message) is None
        return
    assert ea.read(message) == (wanted if all(len(line) <= 8 for line in wanted) else None)


@pytest.mark.parametrize("message", [b"", b"x", b"\0\n", b"\xff\n", b"a" * 65536 + b"\n"])
def test_what_is_no_message_is_refused(ea: Messages, message: bytes) -> None:
    assert ea.read(message) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"0", 0), (b"9223372036854775807", 2**63 - 1), (b"9223372036854775808", None), (b"01", None), (b"", None),
     (b"-1", None), (b"1 ", None), (b"1" * 40, None)],
)  # fmt: skip
def test_ids(ea: Messages, text: bytes, number: int | None) -> None:
    value = ea.ffi.new("uint64_t *")
    assert (int(value[0]) if ea.lib.coven_ea_id(text, value) else None) == number


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.booleans())
def test_strings_lose_their_quotes(ea: Messages, text: str, is_ascii: bool) -> None:
    assert ea.plain(json.dumps(text, ensure_ascii=is_ascii).encode()) == text.encode()


@pytest.mark.parametrize("text", [b'"', b'"a', b'"a"b', b'"\\x"', b'"\\u12"', b'"\\u0000"', b'"\\ud800"', b'"\\ud800\\u0041"',
                                  b'"\\', b'"\\u'])  # fmt: skip
def test_broken_strings_are_refused(ea: Messages, text: bytes) -> None:
    assert ea.plain(text) is None


@pytest.mark.parametrize("text", [b"", b"1.5", b"true", b"[1, 2]", b'{"a": "b"}', b"null"])
def test_other_values_stay(ea: Messages, text: bytes) -> None:
    assert ea.plain(text) == text


def test_a_line_that_does_not_fit_is_left_out_whole(ea: Messages) -> None:
    for size in range(20):
        writer, buffer = ea.writer(size)
        ea.write(writer, b"ab", b"c\td")
        assert writer.is_overflow == (size < 8)
        assert ea.ffi.buffer(buffer)[: writer.used] == (b"" if size < 8 else b"ab\tc\\td\n")


def test_bytes_that_are_no_text_become_question_marks(ea: Messages) -> None:
    writer, buffer = ea.writer(100)
    ea.write(writer, b"a\xffb\xc3", "\u00e9".encode())
    assert ea.ffi.buffer(buffer)[: writer.used] == "a?b?\t\u00e9\n".encode()


@pytest.mark.parametrize("size", [0, 5, 18, 30, 200, 65536])
def test_an_error_is_cut_to_fit(ea: Messages, size: int) -> None:
    writer, buffer = ea.writer(size)
    length = ea.lib.coven_ea_write_error(writer, 7, b"failed", b"x" * 1000)
    assert length <= size
    if size >= 18:
        answer = decode_answer(ea.ffi.buffer(buffer)[:length])
        assert (answer.id, answer.code) == (7, "failed")
        assert set(answer.message) == {"x"}
