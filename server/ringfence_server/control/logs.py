"""The control plane's log: events with fields, one JSON object a line, and no secret in any of them.

What is bound while a request or a round is worked on (request, run, round, holder) stands in every line of it. Fields
whose name says that they are secret, and anything that looks like a token, a link or a password, are replaced before a
line is written, also in messages of libraries.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import IO, Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "(hidden)"
_SECRET_NAMES = re.compile(
    r"authorization|cookie|token|secret|password|passwd|credential|verifier|nonce|^code$|^state$|api_?key",
    re.IGNORECASE,
)
_SECRET_VALUES = (
    (re.compile(r"\brf_[A-Za-z0-9]+_[A-Za-z0-9_-]+"), f"rf_{HIDDEN}"),
    (re.compile(r"/enter/[^\s\"'?#]+"), f"/enter/{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), HIDDEN),
    (re.compile(r"://([^\s/:@]+):[^\s/@]+@"), rf"://\1:{HIDDEN}@"),
    (re.compile(r"(?i)\b(code|state|nonce|code_verifier|client_secret|\w+_token)=[^\s&\"']+"), rf"\1={HIDDEN}"),
    (re.compile(r"(?i)\b(__Host-)?ringfence(-signin)?=[^\s;\"']+"), rf"ringfence={HIDDEN}"),
)  # fmt: skip


def set_up_logs(out: IO[str] | None = None, *, level: int = logging.INFO) -> None:
    """Write this process's log to `out`, standard error if it is None, for structlog and for what libraries log."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out if out is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,  # a traceback as text: without the values of variables
                without_secrets,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for talkative in ("httpx", "httpcore", "uvicorn.access", "multipart", "asyncio", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


def without_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The processor that hides what is secret."""
    return {name: _hidden(name, value) for name, value in event.items()}


def _hidden(name: str, value: Any) -> Any:
    if _SECRET_NAMES.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _hidden(str(key), one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden("", one) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    for pattern, instead in _SECRET_VALUES:
        text = pattern.sub(instead, text)
    return text
