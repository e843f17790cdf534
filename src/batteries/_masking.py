"""Masks secrets in records. It finds them by their names, their places and their forms."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from batteries._configurations import attributes_of, named_parts, parts_of, plain_value

MASK = "***"
_SECRET = re.compile(
    # Whole words, so that tokenizer, max_tokens and author do not match. Special tokens of a
    # tokenizer, such as pad_token, do not match either.
    r"(?i)(?<![a-z])(?:auth|authorization|bearer|cookie|jwt|pass|passcode|passphrase|pwd"
    + "|"
    + "".join(rf"(?<!{word}[_-])" for word in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"))
    + "".join(rf"(?<!{word}[_-])" for word in ("start", "end", "stop", "next", "image", "special"))
    + r"token)(?![a-z])|secret|passw|credential|signature|webhook"
    r"|(?:access|account|api|auth|encryption|private|service|signing|ssh|wandb)[_-]?key"
)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # in apiKey
_NO_SECRETS = ("PWD", "SSH_AUTH_SOCK")  # variables whose names only look like those of secrets
_NO_VALUES = ("", MASK, "None", "null", "True", "False", "true", "false")
_SHORTEST = 6  # letters of values that are masked in all texts; shorter values are often words
_MOST = 10_000  # values in the recorded arguments
_ITEMS = 1000  # items of one list
_DEPTH = 20
_LISTS = (list, tuple, set, frozenset)
_LONGEST = 2**16  # characters of a text

_PLACE = re.compile(r" at 0x[0-9a-fA-F]+")  # an address in memory, which differs in each process
_IN_ADDRESSES = (
    re.compile(r"(?<=://)[^/\s]+(?=@)"),  # https://user:p@ss@host
    re.compile(r"(?<=://)[^\s/@:]*:(?!\d*(?:[/?#\s]|$))[^\s@]*(?=@)"),  # user:p/ss
    re.compile(  # user:p@ss@host, but not the digest of a container image
        r"(?<![\w/@:.+-])(?!mailto:)[\w.%+-]+:[^\s/:\"'()\[\]{}]{3,}"
        r"(?=@(?!sha\d+:)[\w-]+(?:\.[\w-]+)*(?:[:/\s\"']|$))"
    ),
)
_KNOWN = re.compile(  # forms of well-known tokens
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[a-z]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|A[KS]IA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_PRIVATE = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?!\*).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_SENT = re.compile(  # in the header of a request
    r"\b(Bearer\s+|bearer\s+(?=\S*\d)|Basic\s+(?=\S*[\d=]))(?![{%$<*])[^\s\"'`,;)]{4,}"
)
_IN_QUERY = re.compile(
    r"(?i)((?<=[?&])(?:key|sig|code|session)=|(?<=;)pwd=(?!/))(?!\*)[^\s\"'&#`;]+"
)
_HOOK = re.compile(  # secret addresses of webhooks
    r"(hooks\.slack\.com/\w+/|webhook\.office\.com/\w+/|/api/webhooks/|/bot(?=\d+:))[^\s\"'`*]{8,}"
)
_LOGIN = re.compile(  # curl -u me:word
    r"(?<![\w-])((?:-u|--(?:proxy-)?user)[ =][\"']?[\w.@-]+:)(?!\d+\b)(?=\S*\d)[^\s\"'{$*]{3,}"
)
_ELEMENT = re.compile(r"<([\w.:-]+)>([^<>{}%$*\s][^<>]*)(?=</)")
_OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][\w.-]*)(\s+)(?![-*])(\S+)")
_PAIR = re.compile(  # a name and its value: in JSON, in source, in a repr, in an address
    r"""(?:(?<=\\[nrt])|(?<![\w.-]))(?P<name>[A-Za-z_-][\w.-]{0,100})
    (?P<closed>\\*["'`]\]?)?\s{0,3}
    (?:(?(closed),\s*(?:(?:default|value)\s*=)?|(?!))
      |:\s*[\w\[\].,\ |]{1,40}=(?!=)|=>|:=|(?<![=!<>])[=:](?!=))\s{0,3}
    (?:(?i:apikey|basic|bearer|bot|digest|key|token)\s+)?
    (?P<call>\w[\w.]{0,60}\([\[(]?(?:\w{1,20}=)?(?=[rbfuRBFU]{0,2}\\*["']))?[rbfuRBFU]{0,2}
    (?P<value>(?P<quote>\\*(?:\"{3}|'{3}|"|'))
      (?P<quoted>(?:(?!(?P=quote))(?:\\.|.))*)(?:(?P=quote)|$)
      |(?P<bare>[^\s"'`]+))""",
    re.VERBOSE,
)
_ENDS = re.compile(r"[,;&)\]}|<>]")  # the end of a value without quotes in source
_seen: set[str] = set()  # values that this process has seen under a secret's name


def masked(values: Any) -> dict[str, Any]:
    """Plain values for JSON, by their names, without secrets.

    Values with a secret's name are masked, and so are the parts of texts that `masked_text` finds.
    Objects with fields (dataclasses, attrs, pydantic, named tuples, namespaces) become mappings.
    Other objects become their `repr`. Numbers that are not finite become "nan", "inf" and "-inf".
    Cycles, and values beyond the limits, become a text that begins with "...". A long text is cut,
    and its end says how much is missing.

    Args:
        values: A mapping, or an object with fields or attributes.
    """
    named = named_parts(values)
    if named is None:
        named = attributes_of(values)
    if named is None:
        try:
            named = dict(values)
        except (TypeError, ValueError):  # the values are no pairs
            named = {"args": values}
    found: dict[str, Any] = _Plain().of(dict(named), "")
    return found


class _Plain:
    """Turns values into plain values for JSON, and masks secrets."""

    def __init__(self) -> None:
        self._above: list[int] = []  # the containers around a value
        self._left = _MOST

    def of(self, value: Any, name: str, secret: bool = False) -> Any:
        self._left -= 1
        is_full = self._left < 0 or len(self._above) > _DEPTH
        if is_full and (named_parts(value) is not None or isinstance(value, _LISTS)):
            return "..."
        if id(value) in self._above:
            return "... (a cycle)"
        self._above.append(id(value))
        try:
            return self._of(value, name, secret)
        finally:
            self._above.pop()

    def _of(self, value: Any, name: str, secret: bool) -> Any:
        secret = secret or _is_secret(name)
        value = plain_value(value)
        named = named_parts(value)
        if named is not None:
            found: dict[str, Any] = {}
            for key, each in [*named.items()][: _ITEMS + 1]:
                own = distinct(masked_text(str(plain_value(key))), found)
                found[own] = self.of(each, str(key), secret) if len(found) < _ITEMS else "..."
            return found
        listed = value if isinstance(value, _LISTS) else parts_of(value)
        if listed is not None:
            return self._list(listed, name, secret)
        if callable(getattr(type(value), "get_secret_value", None)):  # a secret of pydantic
            return MASK
        if value is None or isinstance(value, bool | np.bool_):
            return None if value is None else bool(value)
        if secret and not isinstance(value, Real):
            return _hidden(value)
        if isinstance(value, Integral):
            return MASK if secret else int(value)
        if isinstance(value, Real) and isinstance(value, float | np.floating):
            return finite(float(value))
        return masked_text(_shown(value))

    def _list(self, value: Iterable[Any], name: str, secret: bool) -> list[Any]:
        values = [*value]
        kept = values[: min(_ITEMS, max(self._left, 1))]
        if len(kept) == 2 and isinstance(kept[0], str) and (
            isinstance(value, tuple) or (_is_secret(kept[0]) and _looks_made(kept[1]))
        ):  # fmt: skip
            found = [masked_text(kept[0]), self.of(kept[1], kept[0], secret)]
        elif kept and all(isinstance(each, str) for each in kept) and not secret:
            found = masked_command(kept) if isinstance(value, list | tuple) else [
                masked_text(each) for each in kept
            ]  # fmt: skip
            self._left -= len(kept)
        else:
            found = [self.of(each, name, secret) for each in kept]
        if isinstance(value, set | frozenset):  # the order of a set differs in each process
            found.sort(key=str)
        cut = len(values) - len(kept)
        return [*found, f"... ({cut:,} more)"] if cut else found


def _shown(value: Any) -> str:
    try:
        device = type(value).__module__ == "torch"  # and dtypes, whose `repr` is their `str`
        text = value if isinstance(value, str) else _PLACE.sub("", (str if device else repr)(value))
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text) - _LONGEST:,} characters more)"
    return text


def _hidden(value: Any) -> Any:
    if isinstance(value, str | bytes) and value in ("", b"", MASK):
        return value if isinstance(value, str) else ""
    if _looks_made(value):
        _seen.add(value)
    return MASK


def _looks_made(value: Any) -> bool:
    """Whether a text is probably no word: it is long enough and has a digit."""
    return isinstance(value, str) and len(value) >= _SHORTEST and bool(re.search(r"\d", value))


def finite(value: float) -> float | str:
    """The number, or a text if it is not finite, which JSON does not allow."""
    return value if math.isfinite(value) else str(value)


def distinct(name: str, taken: Collection[str], form: str = "{} ({})") -> str:
    """The name, with a number if it is taken."""
    number, own = 1, name
    while own in taken:
        number += 1
        own = form.format(name, number)
    return own


# ---------------------------------------------------------------- texts


def masked_command(words: Iterable[str]) -> list[str]:
    """The words of a command line, without secrets."""
    found: list[str] = []
    secret = False
    for word in words:
        name, equals, value = word.partition("=")
        is_name = bool(re.fullmatch(r"[\w.+~-]+", name)) and _is_secret(name)
        if secret and not word.startswith("--"):
            found.append(_hidden(word))
        elif equals and is_name:
            found.append(f"{name}={_hidden(value)}")
        else:
            found.append(masked_text(word))
        secret = word.startswith("-") and not equals and is_name
    return found


def masked_text(text: str, source: bool = False) -> str:
    """A text without secrets.

    It masks values after a secret's name, texts in the form of well-known secrets, the values of
    secret environment variables, and values that this process has seen under a secret's name.

    Args:
        source: Whether the text is a program. Code such as `token = words[0]` and `password: str`
            stays.
    """
    plain = _of_json(text)
    if plain is not None:
        return plain
    for value in sorted(_values(), key=len, reverse=True):
        text = text.replace(value, MASK)
    text = _PRIVATE.sub(rf"\1{MASK}\2", text)
    lines = text.split("\n")
    return "\n".join(_masked_line(line, source) for line in lines)


def _values() -> set[str]:
    return _seen | {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _is_secret(name) and value not in _NO_VALUES
    }


def _of_json(text: str) -> str | None:
    """The masked text if it is JSON with a secret in it, else None."""
    if text.lstrip()[:1] not in ("{", "[") or len(text) > _LONGEST:
        return None
    try:
        value = json.loads(text)
        found = _Plain().of(value, "")
    except (ValueError, RecursionError):
        return None
    return json.dumps(found) if json.dumps(found) != json.dumps(value) else None


def _masked_line(line: str, source: bool) -> str:
    # The checks for short texts save time, because most lines do not have them.
    if "earer" in line or "Basic" in line:
        line = _SENT.sub(rf"\1{MASK}", line)
    for pattern in _IN_ADDRESSES if ":" in line and "@" in line else ():
        line = pattern.sub(MASK, line)
    line = _KNOWN.sub(MASK, line)
    if "=" in line:
        line = _IN_QUERY.sub(rf"\1{MASK}", line)
    if "/" in line:
        line = _HOOK.sub(rf"\1{MASK}", line)
    if "-u" in line:
        line = _LOGIN.sub(rf"\1{MASK}", line)
    if not _SECRET.search(_WORD.sub("_", line)):
        return line
    if "--" in line:
        line = _OPTION.sub(lambda found: _masked_option(found, source), line)
    if "</" in line:
        line = _ELEMENT.sub(lambda e: f"<{e[1]}>{MASK}" if _is_secret(e[1]) else e[0], line)
    return _masked_pairs(line, source)


def _masked_option(found: re.Match[str], source: bool) -> str:
    name, space, value = found.groups()
    if not _is_secret(name) or (source and not re.search(r"\d", value)):
        return found[0]
    return f"{name}{space}{MASK}"


def _masked_pairs(line: str, source: bool) -> str:
    pieces: list[str] = []
    start = at = 0
    while found := _PAIR.search(line, at):
        at = found.end("name")
        begin, end = found.span("quoted" if found["quote"] else "bare")
        if not _is_secret(found["name"]):
            continue
        in_query = line[: found.start()].endswith(("?", "&"))
        if not found["quote"]:
            ends = re.compile(r"[&#]") if in_query else _ENDS if source else None
            stop = ends.search(line, begin, end) if ends else None
            end = stop.start() if stop else end
        value = line[begin:end]
        if _is_value(value, found, source and not in_query):
            pieces += [line[start:begin], MASK]
            start = at = end
    return "".join([*pieces, line[start:]])


def _is_value(value: str, found: re.Match[str], source: bool) -> bool:
    """Whether the text after a secret's name is a secret, and not code."""
    if value.rstrip(",;)]}") in _NO_VALUES or value.startswith(MASK):
        return False
    if not source:
        return True
    if found["call"] and not re.match(r"(?i)\w*secret|str\(|bytes\(", found["call"]):
        return False  # the arguments of other calls are not secrets
    if found["quote"]:
        return len(value) >= 4 and not re.fullmatch(r"\{[^}]*\}|%\w|\$\{?\w+\}?", value)
    if re.search(r"[(\[${]", value) or len(value) < 4:
        return False
    own = found["name"].isupper() and f"{found['name']}={value}" in found.string
    return own or _looks_made(value)


def masked_patch(diff: bytes) -> bytes:
    """A patch without secrets. The data of binary files stays the same."""
    text = diff.decode(errors="surrogateescape")  # reversible for any encoding
    pieces = re.split(r"(?m)(^GIT binary patch\n(?:.+\n|\n(?!diff ))*)", text)
    texts = [
        piece if number % 2 else masked_text(piece, source=True)
        for number, piece in enumerate(pieces)
    ]
    return "".join(texts).encode(errors="surrogateescape")


def masked_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run, without secrets in the sessions."""
    sessions = [
        # A package such as "secretstorage" is no secret.
        {name: each if name == "packages" else _recorded(each) for name, each in session.items()}
        for session in record.get("sessions", [])
    ]
    return {**record, "sessions": sessions}


def _recorded(value: Any, name: str = "", secret: bool = False) -> Any:
    """Plain recorded values, without secrets in values, names or command lines."""
    secret = secret or _is_secret(name)
    if isinstance(value, dict):
        return {key: _recorded(each, key, secret) for key, each in value.items()}
    if isinstance(value, list):
        words = all(isinstance(each, str) for each in value) and not secret
        return masked_command(value) if words else [_recorded(x, name, secret) for x in value]
    if isinstance(value, str):
        return _hidden(value) if secret else masked_text(value)
    return value


def _is_secret(name: str) -> bool:
    return name not in _NO_SECRETS and bool(_SECRET.search(_WORD.sub("_", name)))
