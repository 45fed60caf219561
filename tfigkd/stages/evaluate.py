"""Stage `evaluate`: the only reader of the test split; teacher, students and exported files through the same code."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.attribution import blur_sigma
from tfigkd.attribution.examples import explain
from tfigkd.attribution.similarity import rank_correlation
from tfigkd.batches.augment import overlay_some
from tfigkd.batches.controls import apply_control
from tfigkd.config.experiment import Config
from tfigkd.config.export_fields import role_of
from tfigkd.data import Dataset, Examples, mean_color, to_model_input
from tfigkd.data.grid import cell_means, spread
from tfigkd.data.knowledge import Knowledge
from tfigkd.edge.litert import litert_predictor
from tfigkd.measure import gallery
from tfigkd.measure.examples import Explained, Shown, choose_examples
from tfigkd.measure.gallery import OF_TEACHER, Gallery
from tfigkd.measure.map_metrics import faithfulness_metrics, similarity_metrics
from tfigkd.measure.metrics import Predict, disagreement, measure, mirrored_accuracy, per_class, predict_logits
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import finished, make_folder, outputs_of, read_manifest, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.text import percent
from tfigkd.stages.compress import students
from tfigkd.stages.data import dataset
from tfigkd.stages.export import export_identity
from tfigkd.stages.overlays import load_knowledge
from tfigkd.stages.teacher import load_teacher
from tfigkd.stages.workdir import Workdir
from tfigkd.store.maps import FIRST_SIGMA, to_stored

Explanation = dict[str, Explained]
"""Maps and completeness errors, by role."""


def _exported(config: Config, workdir: Workdir, weights: dict[str, str]) -> dict[str, str]:
    """Return name and checksum of the exported files; none where export has not run for these very weights."""
    manifest = finished(workdir.stage("export"), export_identity(config, workdir, weights))
    files = manifest["files"] if manifest else {}
    return {name: checksum for name, checksum in files.items() if name.endswith(".tflite")}


def attribution_settings(config: Config) -> dict[str, Any]:
    """Return what the attribution measures depend on; what bounds memory and files is left out."""
    sigma, left_out = blur_sigma(dataset(config.data).image_shape), {"batch_size", "shard_size"}
    if config.attribution.grid is None:  # as in versions without it
        left_out.add("grid")
    settings = {name: value for name, value in asdict(config.attribution).items() if name not in left_out}
    blurred = config.attribution.baseline == "blur" and sigma != FIRST_SIGMA
    return settings | {"sigma": sigma} if blurred else settings


def _explain(
    config: Config, roles: dict[str, keras.Model], parts: list[Examples], color: np.ndarray
) -> list[Explanation]:
    """Return each Keras model's maps and completeness errors, by role, for each of several parts of the examples."""
    ids, images, labels = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "images", "labels")
    )
    together = Examples(ids, images, labels, ids)
    found = {}
    with console.progress("explain", len(roles)) as advance:
        for role, model in roles.items():
            # one call for all parts, so that small images are one graph to trace
            found[role] = explain(model, together, config.attribution, color)
            advance()
    ends = np.cumsum([len(part) for part in parts])
    pieces = [slice(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
    return [{role: (maps[piece], errors[piece]) for role, (maps, errors) in found.items()} for piece in pieces]


def _attributions(
    config: Config, examples: Examples, explained: Explanation, predictors: dict[str, Predict], color: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return the attribution measures of each predictor; maps are those of the Keras models.

    A file has no gradient, but insertion and deletion ask it whether it goes by the pixels that its model goes by.
    """
    settings, results = config.evaluation, {}
    with console.progress("faithfulness", len(predictors)) as advance:
        for name, predict in predictors.items():
            own, steps = explained[role_of(name)][0], settings.curve_steps
            results[name] = dict(faithfulness_metrics(predict, examples, own, mean_color=color, steps=steps))
            advance()
    if "teacher" not in explained:
        return results
    reference = explained["teacher"][0]
    for role in explained.keys() - {"teacher"}:
        results[role] |= similarity_metrics(explained[role][0], reference, top_fraction=settings.top_fraction)
    return results


def _teacher(config: Config, workdir: Workdir) -> dict[str, keras.Model]:
    """Return the teacher, where the student had one; a student from saved_models can be measured without it."""
    if not config.needs_teacher:
        return {}
    try:
        return {"teacher": load_teacher(config, workdir)}
    except UserError as error:
        if not workdir.saved:
            raise
        console.status(f"without the teacher: {error}")
        return {}


def trained_files(workdir: Workdir) -> dict[str, str]:
    """Return name and checksum of the student's files, as its stages wrote them."""
    manifests = (read_manifest(workdir.stage(stage)) for stage in ("distill", "compress"))
    files = {name: checksum for manifest in manifests if manifest for name, checksum in manifest["files"].items()}
    return {name: checksum for name, checksum in files.items() if name.endswith(".keras")}


def check_measured(workdir: Workdir, evaluated: Mapping[str, Any]) -> None:
    """Check that the figures of stage `evaluate` are of the models and files that the run has now.

    Args:
        workdir: Of the run.
        evaluated: The manifest of its stage `evaluate`; earlier versions did not write what they measured.

    Raises:
        UserError: a model or file was made anew since, or is no longer among those that were exported.
    """
    exported = read_manifest(workdir.stage("export"))
    now = {"models": trained_files(workdir)} | ({} if exported is None else {"exported": exported["files"]})
    for kind, files in now.items():
        for name, checksum in evaluated.get(kind, {}).items():
            if files.get(name) != checksum:
                happened = "was made anew" if name in files else "is no longer exported"
                raise UserError(f"{name} {happened} after it was measured; add evaluate to --stages, before report")


def evaluate(config: Config, workdir: Workdir) -> None:
    """Stage `evaluate`: teacher, students and, where stage `export` has run, their files, on test by the same code."""
    data, folder = dataset(config.data), make_folder(workdir.stage("evaluate"))
    roles = _teacher(config, workdir)
    roles |= students(config, workdir)
    weights = {role: weights_fingerprint(model) for role, model in roles.items()}
    files = _exported(config, workdir, weights)
    settings = config.evaluation
    attributes = settings.attribution_examples or settings.gallery_examples
    attribution = attribution_settings(config) if attributes else None
    identity = fingerprint("evaluate", data.fingerprint, weights, files, settings, attribution)
    if _is_done(folder, identity, workdir, data):
        return
    predictors: dict[str, Predict] = {role: partial(predict_logits, model) for role, model in roles.items()}
    predictors |= {name: litert_predictor(workdir.stage("export") / name) for name in files}
    results, logits = _measure_all(predictors, data.test, mirrored=settings.mirrored)
    for role, model in roles.items():
        results[role] |= {"parameters": count_parameters(model), "multiply_adds": multiply_adds(model)}
    explanations, gallery_file = _explain_all(config, workdir, roles, predictors)
    for name, values in explanations.items():
        results[name] |= values
    labels = data.test.labels
    write_manifest(
        folder,
        identity,
        files=gallery_file,
        results=results,
        per_class={name: per_class(values, labels, data.num_classes) for name, values in logits.items()},
        disagreement={
            role: disagreement(logits[role], logits["teacher"], labels)
            for role in roles
            if role != "teacher" and "teacher" in roles
        },
        class_names=data.class_names,
        n_test=len(data.test),
        exported=files,
        models=trained_files(workdir),
    )
    for name, values in results.items():
        agreement = f", agreement with the teacher {percent(values['agreement'])}" if "agreement" in values else ""
        mirrored = f" ({percent(values['mirrored_accuracy'])} with mirror images)" if settings.mirrored else ""
        line = f"{name}: test accuracy {percent(values['accuracy'])}{mirrored}{agreement}"
        console.status(line, note=role_of(name) != "teacher")


def _is_done(folder: Path, identity: str, workdir: Workdir, data: Dataset) -> bool:
    """Return whether the stage is finished; models that were saved again with equal weights are noted."""
    manifest = finished(folder, identity)
    if manifest is None or manifest["class_names"] != list(data.class_names):
        return False
    console.status(f"already done: {folder}")
    models_now = trained_files(workdir)
    if manifest.get("models", models_now) != models_now:
        outputs = {**outputs_of(manifest), "models": models_now}
        write_manifest(folder, identity, files=manifest["files"], **outputs)
    return True


def _measure_all(
    predictors: Mapping[str, Predict], examples: Examples, *, mirrored: bool
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Return the metrics and the logits [N,C] of each predictor, compared with the teacher's, which comes first.

    Args:
        predictors: By name; `"teacher"` is the first, where there is one.
        examples: Of the test split.
        mirrored: Whether the accuracy of the mean over image and mirror image is measured as well.

    Raises:
        UserError: A model gives no finite logits; its name comes first in the message.
    """
    results: dict[str, dict[str, float]] = {}
    logits: dict[str, np.ndarray] = {}
    with console.progress("evaluate", len(predictors)) as advance:
        for name, predict in predictors.items():
            try:
                results[name], logits[name] = measure(predict, examples, logits.get("teacher"))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            if mirrored:
                score = mirrored_accuracy(predict, examples.images, logits[name], examples.labels)
                results[name]["mirrored_accuracy"] = score
            advance()
    return results, logits


def _explain_all(
    config: Config, workdir: Workdir, roles: dict[str, keras.Model], predictors: dict[str, Predict]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Return the attribution measures of each predictor on test images, and name and checksum of the gallery's file.

    Both are empty where the config asks for none.
    """
    data, settings = dataset(config.data), config.evaluation
    tested = data.test.take(slice(settings.attribution_examples))
    shown = choose_examples(data.validation, roles, settings.gallery_examples)
    if not len(tested) and not len(shown.examples):
        return {}, {}
    color = mean_color(data.train)
    of_tested, of_shown = _explain(config, roles, [tested, shown.examples], color)
    measures = _attributions(config, tested, of_tested, predictors, color) if len(tested) else {}
    if not len(shown.examples):
        return measures, {}
    path = workdir.stage("evaluate") / gallery.FILE
    return measures, {path.name: make_gallery(config, workdir, shown, of_shown).save(path)}


def make_gallery(config: Config, workdir: Workdir, shown: Shown, explained: Mapping[str, Explained]) -> Gallery:
    """Return the gallery of a finished student.

    Args:
        config: The run's.
        workdir: Where its overlay store is found; without one the teacher's maps are those of `explained`.
        shown: From `choose_examples`.
        explained: Maps and completeness errors of its examples, by role.
    """
    examples, maps = shown.examples, explained["student"][0].astype(np.float32)
    own: dict[str, Any] = {"ids": examples.ids.astype(str), "images": examples.images[:], "labels": examples.labels}
    own |= {"predicted": shown.predicted["student"], "maps": maps}
    own |= dict.fromkeys(OF_TEACHER, np.empty(0))
    if "teacher" in explained:
        knowledge = _knowledge(config, workdir, examples, explained["teacher"])
        known = spread(knowledge.maps[:], examples.images.shape[1:3])
        own |= {"teacher_predicted": shown.predicted["teacher"], "teacher_maps": known}
        own["alike"] = rank_correlation(maps, known)
        own["chance"] = rank_correlation(maps, np.roll(known, 1, axis=0))
        if config.overlay.probability > 0:
            own |= _overlaid(config, examples, knowledge)
    return Gallery(**own)


def _knowledge(config: Config, workdir: Workdir, examples: Examples, explained: Explained) -> Knowledge:
    """Return the stored knowledge of examples, or the same computed anew; the logits are left out."""
    if config.needs_store and config.data.stored == "all":
        try:
            return load_knowledge(config, workdir, examples)
        except UserError:  # the store may have been deleted since the training
            pass
    maps, errors = explained
    stored, scales = to_stored(cell_means(maps, config.attribution.grid))
    usable = errors <= config.attribution.tolerance
    return Knowledge(np.zeros((len(examples), 0), np.float32), stored, scales, errors, usable)


def _overlaid(config: Config, examples: Examples, knowledge: Knowledge) -> dict[str, np.ndarray]:
    """Return the images as training overlays them, at the middle of the exponents and before any crop or flip."""
    treated = apply_control(knowledge, config.control) if len(examples) > 1 else knowledge
    middle = np.sqrt(config.overlay.min_exponent * config.overlay.max_exponent)
    maps = None if config.control.maps == "none" else spread(treated.maps[:], examples.images.shape[1:3])
    laid = overlay_some(to_model_input(examples.images[:]), maps, np.where(treated.usable, middle, 0))
    return {"overlays": np.round(255 * laid).astype(np.uint8), "overlaid": treated.usable}
