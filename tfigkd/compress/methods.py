"""The methods of `compress.method`: each a chain of phases, every phase with its own fine-tuning and checkpoints."""

from collections.abc import Callable
from dataclasses import replace

import keras

from tfigkd.compress import bridge
from tfigkd.compress.channels import cut_channels
from tfigkd.compress.finetune import Lessons, fine_tune, pruning_times
from tfigkd.compress.pruning import MagnitudePruning
from tfigkd.compress.quantization import fake_quantized
from tfigkd.config.compress_fields import CompressConfig, Method
from tfigkd.models.layers import with_fused_layers, with_stock_layers
from tfigkd.runtime.files import atomic, checksum, fingerprint, finished, make_folder, write_manifest

FILE = "student.keras"

Phase = Callable[[keras.Model, CompressConfig, Lessons], keras.Model]


def prune(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Weights pruned by magnitude."""
    end, frequency = pruning_times(config)
    callback = MagnitudePruning(config.sparsity, end=end, frequency=frequency)
    return fine_tune(with_fused_layers(student), config, lessons, title="prune", callbacks=[callback])


def prune_channels(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Channels cut out, then the smaller graph trained."""
    smaller = with_fused_layers(cut_channels(student, config.sparsity))
    return fine_tune(smaller, config, lessons, title="prune channels")


def quantize(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Fake-quantized layers, trained."""
    return fine_tune(fake_quantized(student), config, lessons, title="quantize")


def quantize_sparse(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Fake-quantized layers, trained without touching zeros."""
    callback = MagnitudePruning(config.sparsity, end=0)
    return fine_tune(fake_quantized(student), config, lessons, title="quantize", callbacks=[callback])


PHASES: dict[Method, tuple[Phase, ...]] = {
    "none": (),
    "prune": (prune,),
    "prune_channels": (prune_channels,),
    "qat": (quantize,),
    "prune_qat": (prune, quantize_sparse),
    "prune_tfmot": (bridge.prune_tfmot,),
    "cluster": (bridge.cluster,),
    "qat_tfmot": (bridge.quantize_tfmot,),
    "pqat": (bridge.prune_tfmot, bridge.quantize_preserving_zeros),
    "cqat": (bridge.cluster, bridge.quantize_preserving_clusters),
}


def compress_student(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """The student made smaller by `config.method`; `student` itself is not altered.

    A phase that is done is not repeated, one that was interrupted goes on from its checkpoint.

    Args:
        student: Functional, images [B,H,W,C] in [0,1] to logits [B,K].
        config: Method and fine-tuning.
        lessons: What fine-tuning teaches; each phase has a folder of its own in its folder.

    Returns:
        A model of stock layers, or for the methods of quantization-aware training of those in `compress.layers`.

    Raises:
        UserError: the method does not know one of the student's layers.
    """
    result = with_stock_layers(student)
    for phase in PHASES[config.method]:
        identity = fingerprint(lessons.fingerprint, phase.__name__)
        folder = make_folder(lessons.folder / phase.__name__)
        if finished(folder, identity):
            result = keras.saving.load_model(folder / FILE, compile=False, safe_mode=True)
            continue
        result = phase(result, config, replace(lessons, folder=folder, fingerprint=identity))
        result = with_stock_layers(result)
        with atomic(folder / FILE) as temporary:
            result.save(temporary)
        write_manifest(folder, identity, files={FILE: checksum(folder / FILE)})
    return result
