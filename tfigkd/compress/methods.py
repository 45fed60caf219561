"""The methods of `compress.method`: each is a chain of phases with their own fine-tuning and checkpoints."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import keras

from tfigkd.compress import tfmot_bridge
from tfigkd.compress.channels import cut_channels
from tfigkd.compress.finetune import FineTuning, fine_tune, pruning_times
from tfigkd.compress.pruning import MagnitudePruning
from tfigkd.compress.quantization import fake_quantized
from tfigkd.config.compress_fields import CompressConfig, Method
from tfigkd.losses import Loss
from tfigkd.models.batch_norm import with_fused_batch_norm, with_stock_batch_norm
from tfigkd.models.copies import verified_copy
from tfigkd.runtime.files import atomic, checksum, finished, make_folder, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.training import checkpoint

PHASE_FILE = "student.keras"


@dataclass(frozen=True)
class Phase:
    """One fine-tuning of a method.

    Attributes:
        name: Of its folder and in its fingerprint, so that another name makes finished runs train again.
        run: Makes a smaller or quantized student of one, fine-tuned.
        check: A trial run without training, which raises UserError for a student that the phase cannot handle. None
            where it can handle all.
        by_tfmot: Whether tfmot trains it, in a twin that gives only logits.
    """

    name: str
    run: Callable[[keras.Model, CompressConfig, FineTuning], keras.Model]
    check: Callable[[keras.Model, CompressConfig], object] | None = None
    by_tfmot: bool = False


def prune(student: keras.Model, config: CompressConfig, tuning: FineTuning) -> keras.Model:
    """Prune weights by magnitude while the student is fine-tuned.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K].
        config: Share of zeros, number of steps and learning rate.
        tuning: Losses, teacher, batches and folders.

    Returns:
        The pruned student.
    """
    end, frequency = pruning_times(config)
    callback = MagnitudePruning(config.sparsity, end=end, frequency=frequency, begin=0)  # also where it is resumed
    return fine_tune(with_fused_batch_norm(student), config, tuning, title="prune", callbacks=[callback])


def prune_channels(student: keras.Model, config: CompressConfig, tuning: FineTuning) -> keras.Model:
    """Cut channels out, then fine-tune the smaller graph.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K]; it is not changed.
        config: Share of channels to cut, number of steps and learning rate.
        tuning: Losses, teacher, batches and folders.

    Returns:
        A student with fewer channels.
    """
    smaller = with_fused_batch_norm(cut_channels(student, config.sparsity))
    return fine_tune(smaller, config, tuning, title="prune channels")


def quantize(student: keras.Model, config: CompressConfig, tuning: FineTuning, *, sparse: bool = False) -> keras.Model:
    """Fine-tune with fake-quantized layers.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K]; it is not changed.
        config: Number of steps and learning rate.
        tuning: Losses, teacher, batches and folders.
        sparse: Whether zero weights are kept zero.

    Returns:
        A student of the layers in `tfigkd.models.fake_quant`.
    """
    callbacks = [MagnitudePruning(config.sparsity, end=0)] if sparse else []
    return fine_tune(fake_quantized(student), config, tuning, title="quantize", callbacks=callbacks)


def _quantize_tfmot(name: str, preserve: tfmot_bridge.Preserve) -> Phase:
    """Return a phase of tfmot's quantization-aware training, with the name of its folder."""
    run = partial(tfmot_bridge.quantize, preserve=preserve)
    return Phase(name, run, lambda student, _: tfmot_bridge.quantization_twin(student), by_tfmot=True)


PRUNE = Phase("prune", prune)
PRUNE_TFMOT = Phase(
    "prune_tfmot", tfmot_bridge.prune_tfmot, lambda student, _: tfmot_bridge.make_twin(student), by_tfmot=True
)
CLUSTER = Phase("cluster", tfmot_bridge.cluster, lambda student, _: tfmot_bridge.make_twin(student), by_tfmot=True)

PHASES: dict[Method, tuple[Phase, ...]] = {
    "none": (),
    "prune": (PRUNE,),
    "prune_channels": (
        Phase("prune_channels", prune_channels, lambda student, config: cut_channels(student, config.sparsity)),
    ),
    "qat": (Phase("quantize", quantize, lambda student, _: fake_quantized(student)),),
    "prune_qat": (
        PRUNE,
        Phase("quantize_sparse", partial(quantize, sparse=True), lambda student, _: fake_quantized(student)),
    ),
    "prune_tfmot": (PRUNE_TFMOT,),
    "cluster": (CLUSTER,),
    "qat_tfmot": (_quantize_tfmot("quantize_tfmot", "nothing"),),
    "pqat": (PRUNE_TFMOT, _quantize_tfmot("quantize_preserving_zeros", "zeros")),
    "cqat": (CLUSTER, _quantize_tfmot("quantize_preserving_clusters", "clusters")),
}


def check_fine_tuning(config: CompressConfig, losses: Iterable[Loss]) -> None:
    """Check that every phase of a method can fine-tune with these losses.

    Raises:
        UserError: the method does not support one of them.
    """
    if any(phase.by_tfmot for phase in PHASES[config.method]):
        tfmot_bridge.check_logit_losses(losses)


def check_compressible(student: keras.Model, config: CompressConfig) -> None:
    """Check that every phase of a method can handle a student, trained or not, without training anything.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K].
        config: The method.

    Raises:
        UserError: the method does not support one of the student's layers.
    """
    for phase in PHASES[config.method]:
        if phase.check is not None:
            phase.check(with_stock_batch_norm(student), config)


def compress_student(student: keras.Model, config: CompressConfig, tuning: FineTuning) -> keras.Model:
    """Compress a student by `config.method`; `student` itself is not changed.

    A finished phase is not repeated, and an interrupted phase continues from its checkpoint.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K].
        config: Method and fine-tuning.
        tuning: Inputs of fine-tuning; each phase uses a subfolder of its folder.

    Returns:
        A model of stock Keras layers; after quantization-aware training, of the layers in `tfigkd.models.fake_quant`.

    Raises:
        UserError: the method does not support one of the student's layers.
    """
    result = with_stock_batch_norm(student)
    if result is student:  # without batch normalization, there is nothing to exchange in a copy
        result = verified_copy(student)
    for phase in PHASES[config.method]:
        phase_fingerprint = fingerprint(tuning.fingerprint, phase.name)
        folder = make_folder(tuning.folder / phase.name)
        if finished(folder, phase_fingerprint):
            result = keras.saving.load_model(folder / PHASE_FILE, compile=False, safe_mode=True)
            continue
        result = phase.run(result, config, replace(tuning, folder=folder, fingerprint=phase_fingerprint))
        result = with_stock_batch_norm(result)
        with atomic(folder / PHASE_FILE) as temporary:
            result.save(temporary)
        write_manifest(folder, phase_fingerprint, files={PHASE_FILE: checksum(folder / PHASE_FILE)})
        checkpoint.remove(folder)
    return result
