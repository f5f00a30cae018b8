"""Log records as lines: key=value for people, JSON for machines.

`logger.info("loaded model=%s rows=%d", …)` is an event and its values; both formats take them apart from the template,
so no value can pass for another field, and nothing that a client sends can begin a line of its own.
"""

import dataclasses
import json
import logging
import re
import secrets
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

FORMATS = ("text", "json")
LONGEST_ID = 128
_FIELD = re.compile(r"\b(\w+)=%[-#0 +]*\d*(?:\.\d+)?[a-z]")
_PLAIN = re.compile(r"[!#-<>-~]+")  # visible ASCII without '"' and '='
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # line ends, controls, directions

# Of the request that this task answers: request_id, and trace_id where it is traced.
context: ContextVar[Mapping[str, str]] = ContextVar("context", default=MappingProxyType({}))


def set_up(level: str, style: str) -> None:
    """Everything that is logged goes to stderr, a line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """gRPC logs a stack trace for each client that is gone before its answer; what clients do at will is no error."""
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__name__ != "ExecuteBatchError"


def request_id(message_id: str, metadata: Mapping[str, str | bytes]) -> str:
    """The client's own, from the message or `x-request-id`; one made here for who sends none."""
    sent = message_id or metadata.get("x-request-id") or ""
    return sent[:LONGEST_ID] if isinstance(sent, str) and sent else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, values = _parts(record)
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "event": event}
        line |= {name: value for name, value in values.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_members)  # ASCII: line separators of Unicode are escaped as well


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, values = _parts(record)
        pairs = [f"{name}={_plain(value)}" for name, value in values.items()]
        line = " ".join(filter(None, [_time(record), record.levelname, record.name, _one_line(event), *pairs]))
        if record.exc_info:
            # Indented: no line of a trace can be taken for a record.
            trace = self.formatException(record.exc_info).splitlines()
            line = "\n".join([line, *(f"    {_one_line(text)}" for text in trace)])
        return line


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event and its values; of a template that is more than `event key=%s …` the message as a whole."""
    template = str(record.msg)
    names = _FIELD.findall(template)
    arguments = record.args if isinstance(record.args, tuple) else ()
    if len(names) == len(arguments):
        event, values = " ".join(_FIELD.sub("", template).split()), dict(zip(names, arguments, strict=True))
    else:
        event, values = record.getMessage(), {}
    return event, {**context.get(), **values}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _members(value: object) -> object:
    """Of settings, each; of what JSON has no form for, its text."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _one_line(text: str) -> str:
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
