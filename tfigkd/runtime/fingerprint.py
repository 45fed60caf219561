"""Fingerprints of configs and plain values: equal settings have equal ones, on any machine and in later versions."""

import dataclasses
import hashlib
import json
from typing import Any

FINGERPRINT_DIGITS = 16


def fingerprint_values(part: Any) -> Any:
    """Return what a fingerprint holds of a config: nested plain values, without inert fields and late ones at default.

    So a run from before a field was added goes on under its old fingerprint.
    """
    if not dataclasses.is_dataclass(part):
        return part
    values: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if "settled" in field.metadata:
            value = field.metadata["settled"](part)
        unset = value == field.default
        if "inert" in field.metadata or (unset and "late" in field.metadata):
            continue
        revision = None if unset else field.metadata.get("revision")
        values[field.name] = fingerprint_values(value) if revision is None else [fingerprint_values(value), revision]
    return values


def fingerprint(*parts: Any) -> str:
    """Return a hash of configs, strings and plain JSON values; equal parts give equal hashes on any machine."""
    plain = [fingerprint_values(part) for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]
