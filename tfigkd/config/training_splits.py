"""The splits on which a model is tested: those of its training, where this was on the same data set."""

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.runtime.files import expanded


def with_splits_of_training(given: Reading, name: str | None, trained: Mapping[str, Any]) -> Reading:
    """Return the reading with which a model is tested on a data set, and say what of it is that of its training.

    With other splits or groups than in its training, a part of its training pictures would be in the test split.

    Args:
        given: The reading; what it sets of groups and splits comes first.
        name: Of the data set, as for `data.load`; None is none.
        trained: `name` of the data set in its training, and its `Reading.split_choice`.
    """
    if name is None:
        return given
    if not _is_same_source(name, str(trained.get("name"))):
        if not given.split_choice() and (trained.get("group") or trained.get("splits")):
            _say(f"the usual splits, but the model was trained on {trained.get('name')} with {_in_words(trained)}")
        return given
    asked = given.split_choice().get("splits", {})
    taken = {role: split for role, split in trained.get("splits", {}).items() if role not in asked}
    if taken.get("validation") in asked.values():
        del taken["validation"]  # what validated may be what is tested on; what trained may not
    group = trained.get("group") if given.group is None else None
    if group or taken:
        _say(f"splits as in the model's training: {_in_words({'group': group, 'splits': taken})}")
    return replace(given, group=given.group or group, splits=SplitsConfig(**{**asdict(given.splits), **taken}))


def _say(text: str) -> None:
    from tfigkd.runtime import console  # which needs rich; `tfigkd.predict`, which imports this module, has none

    console.status(text)


def _in_words(choice: Mapping[str, Any]) -> str:
    """Return a `split_choice` as options."""
    group = [f"--group {choice['group']}"] if choice.get("group") else []
    return ", ".join(group + [f"--splits.{role} {split}" for role, split in choice.get("splits", {}).items()])


def _is_same_source(first: str, second: str) -> bool:
    """Return whether two names are of one data set, as far as the names tell."""
    return first == second or os.path.realpath(expanded(first)) == os.path.realpath(expanded(second))
