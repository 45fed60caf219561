"""The methods of `compress.method`: each is a chain of phases with their own fine-tuning and checkpoints."""

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
    """Prune weights by magnitude while the student is fine-tuned."""
    end, frequency = pruning_times(config)
    callback = MagnitudePruning(config.sparsity, end=end, frequency=frequency)
    return fine_tune(with_fused_layers(student), config, lessons, title="prune", callbacks=[callback])


def prune_channels(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Cut channels out, then fine-tune the smaller graph."""
    smaller = with_fused_layers(cut_channels(student, config.sparsity))
    return fine_tune(smaller, config, lessons, title="prune channels")


def quantize(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Fine-tune with fake-quantized layers."""
    return fine_tune(fake_quantized(student), config, lessons, title="quantize")


def quantize_sparse(student: keras.Model, config: CompressConfig, lessons: Lessons) -> keras.Model:
    """Fine-tune with fake-quantized layers and keep zero weights zero."""
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
    """Compress a student by `config.method`; `student` itself is not changed.

    A finished phase is not repeated, and an interrupted phase continues from its checkpoint.

    Args:
        student: Functional model, images [B,H,W,C] in [0,1] to logits [B,K].
        config: Method and fine-tuning.
        lessons: Inputs of fine-tuning; each phase uses a subfolder of its folder.

    Returns:
        A model of stock Keras layers; after quantization-aware training, of the layers in `tfigkd.models.fake_quant`.

    Raises:
        UserError: the method does not support one of the student's layers.
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
