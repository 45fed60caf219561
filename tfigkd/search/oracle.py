"""KerasTuner's oracle, which chooses the values of each trial: its files survive a kill, a budget can refuse a choice.

KerasTuner has no public place for either, so methods of the oracle are replaced here.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfigkd.config.experiment import Config
from tfigkd.runtime.files import write_signed
from tfigkd.search.options import OBJECTIVE, Options
from tfigkd.search.space import Dimension, hyperparameters


def make_oracle(options: Options, config: Config, space: Sequence[Dimension]) -> Any:
    """Return KerasTuner's oracle, which chooses the values of each trial of a search."""
    import keras_tuner

    settings: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": hyperparameters(space),
        "seed": options.seed + 1,  # KerasTuner treats seed 0 as no seed
        "max_consecutive_failed_trials": sys.maxsize,  # a failed trial says nothing of the next
    }
    if options.tuner == "hyperband":
        return keras_tuner.oracles.HyperbandOracle(max_epochs=config.training.epochs, **settings)
    if options.tuner == "bayesian":
        return keras_tuner.oracles.BayesianOptimizationOracle(max_trials=options.trials, **settings)
    return keras_tuner.oracles.RandomSearchOracle(max_trials=options.trials, **settings)


def save_whole_files(oracle: Any) -> None:
    """Let an oracle replace its files, signed, where it would overwrite them: a kill would leave half of one.

    Args:
        oracle: It is altered.
    """
    oracle.save = lambda: write_signed(Path(oracle._get_oracle_fname()), oracle.get_state())
    oracle._save_trial = lambda trial: write_signed(
        Path(oracle._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state()
    )


def propose_within(oracle: Any, admits: Callable[[Mapping[str, Any]], bool], most: int) -> None:
    """Let an oracle of KerasTuner propose only what a function admits.

    What is not admitted becomes no trial: it does not count among the trials, nor towards the failed trials in a row
    at which KerasTuner gives up. It is not drawn again. Where a Bayesian oracle's best guess is not admitted, or was a
    trial before, a random candidate takes its place.

    Args:
        oracle: It is altered.
        admits: Called with the values of a candidate.
        most: Candidates refused in a row after which the search ends, as when the space is exhausted.
    """
    draw, propose = oracle._random_values, oracle.populate_space

    def random_values() -> dict[str, Any] | None:
        for _ in range(most):
            values = draw()
            if values is None or admits(values):
                return values
            oracle._tried_so_far.add(oracle._compute_values_hash(values))
        return None

    def populate_space(trial_id: str) -> dict[str, Any]:
        response = propose(trial_id)
        values = response.get("values")
        if values is None or (admits(values) and not oracle._duplicate(values)):
            return response
        return oracle._random_populate_space()

    oracle._random_values = random_values
    if hasattr(oracle, "_random_populate_space"):
        oracle.populate_space = populate_space
