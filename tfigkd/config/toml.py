"""Write an experiment as TOML."""

import json
from collections.abc import Mapping
from typing import Any

from tfigkd.config.experiment import Config, to_mapping


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(value: Any) -> str:
    if value is None:
        return '"none"'  # TOML has no word of its own for it
    if not isinstance(value, dict):
        return _quoted(value)
    return "{ " + ", ".join(f"{_quoted(key)} = {_text(item)}" for key, item in value.items()) + " }"


def to_toml(config: Config, comment: str) -> str:
    """Return an experiment file: the fields of a config that differ from the defaults."""
    default, changed = to_mapping(Config()), to_mapping(config)
    lines = [f"# {comment}"]

    def write(table: Mapping[str, Any], base: Mapping[str, Any], name: str) -> None:
        # a table of a field, such as weights of classes, has no table among the defaults
        own = {k: v for k, v in table.items() if not isinstance(base[k], dict) and v != base[k]}
        if own and name:
            lines.extend(["", f"[{name}]"])
        lines.extend(f"{key} = {_text(value)}" for key, value in own.items())
        for key, value in table.items():
            if isinstance(base[key], dict):
                write(value, base[key], f"{name}.{key}" if name else key)

    write(changed, default, "")
    return "\n".join(lines) + "\n"
