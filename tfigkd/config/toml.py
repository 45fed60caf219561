"""Write an experiment as TOML."""

import json
from collections.abc import Mapping
from typing import Any

from tfigkd.config.experiment import Config, to_mapping


def to_toml(config: Config, comment: str) -> str:
    """An experiment file: the fields of a config that differ from the defaults."""
    default, changed = to_mapping(Config()), to_mapping(config)
    lines = [f"# {comment}"]

    def write(table: Mapping[str, Any], base: Mapping[str, Any], name: str) -> None:
        own = {k: v for k, v in table.items() if not isinstance(v, dict) and v != base[k] and v is not None}
        if own and name:
            lines.extend(["", f"[{name}]"])
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in own.items())
        for key, value in table.items():
            if isinstance(value, dict):
                write(value, base[key], f"{name}.{key}" if name else key)

    write(changed, default, "")
    return "\n".join(lines) + "\n"
