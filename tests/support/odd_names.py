"""Names of classes, files and folders that programs stumble over; a POSIX file system takes them all."""

import os

# Bytes that aren't UTF-8: Latin-1, UTF-16, cut, overlong and CESU-8 sequences.
NOT_TEXT = [
    b"caf\xe9",
    b"\xff\xfe",
    b"\x80",
    b"cut\xe4\xb8",
    b"\xc0\xaf",
    b"\xed\xa0\xbd",
    b"a\xe9\xe8z",
    b"mix \xc3\xa9\xe9",
]
# What a terminal obeys.
CODES = [
    b"\x1b[31mred\x1b[0m",
    b"\x1b]0;title\x07",
    b"\x1b[2J",
    b"bell\x07",
    b"back\x08\x08space",
    b"del\x7fete",
    b"\x9b31m",
]
CODES += [
    "\x9b31m".encode(),
    "\x85next".encode(),
    "\u202egpj.exe".encode(),
    "\u2066iso\u2069".encode(),
    b"\x01\x02\x1f",
]
LINES = [
    b"new\nline",
    b"carriage\rreturn",
    b"crlf\r\nend",
    b"tab\there",
    b"\x0b\x0c",
    "\u2028sep".encode(),
    "\u2029par".encode(),
]
QUOTES = [
    b"it's",
    b'say "hi"',
    b"a,b",
    b"semi;colon",
    b"back\\slash",
    b"\\xe9",
    b"\\u0041",
    b"\\\\",
    b"end\\",
    b"`id`",
    b"$HOME",
]
QUOTES += [b"${x}", b"[red]", b"{a: 1}", b"<b>&amp;", b"<script>", b"%20%s", b"a=b", b"#no", b"*", b"?"]
WORDS = [
    "Größe".encode(),
    "模型".encode(),
    "🎉".encode(),
    "e\u0301".encode(),
    b" lead",
    b"trail ",
    b"null",
    b"1e3",
    b"-rf",
]
LONG = [b"x" * 245, "é".encode() * 122]
NAMES = [os.fsdecode(name) for name in (*NOT_TEXT, *CODES, *LINES, *QUOTES, *WORDS, *LONG)]
