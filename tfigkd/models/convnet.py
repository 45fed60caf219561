"""A plain convolutional network that trains fast (after Jordan 2024, github.com/KellerJordan/cifar10-airbench, arXiv
2404.00498, and Page 2018, "How to Train Your ResNet")."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tfigkd.models import blocks
from tfigkd.models.batch_norm import FusedBatchNormalization

WHITENING = "whitening"
"""Name of the stem, the first convolution."""
PATCH = 2
"""Height and width of the whitened patches."""
EPSILON = 5e-4
"""Added to the variances that the whitening divides by."""
LOGIT_SCALE = 1 / 9
MOMENTUM = 0.6
"""Momentum of batch normalization's moving averages; it is low because weights change fast in a short training."""


def convnet(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    widths: Sequence[int] = (64, 256, 256),
    depth: int = 2,
    width: float = 1.0,
    normalization: blocks.Normalization | None = None,
) -> keras.Model:
    """Return a whitening stem, blocks of 3x3 convolutions, global max pooling and a dense layer.

    The stem is a frozen 2x2 convolution without bias; `set_whitening` fills it from training images, until then it is
    random. Since nothing below the first block learns, its input needs no gradient. Each block halves height and width
    after its first convolution, while both are above 1; from the third convolution on, each has a
    shortcut around it. Batch normalization has no scale. The kernels of the blocks begin as a partial identity: the
    first outputs repeat the inputs, the rest are random.

    The output of block N is the output of the layer `block_NN`; `block_00` is the stem.

    Args:
        num_classes: Number of logits.
        input_shape: (H, W, C) of the images, float32 in [0,1].
        widths: Channels of each block.
        depth: Convolutions a block.
        width: Factor of the channels of the blocks, then rounded to multiples of 8; 1 leaves them as they are.
        normalization: Mean and deviation of each channel, applied inside the model.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes].

    Raises:
        ValueError: no block, a width or depth that is not positive, images smaller than 2x2, or a `normalization` that
            does not fit.
    """
    if not widths or min(widths) < 1 or depth < 1 or width <= 0:
        raise ValueError(f"widths, depth and width must be positive, got {tuple(widths)}, {depth} and {width}.")
    if min(input_shape[:2]) < PATCH:
        raise ValueError(f"images must be {PATCH}x{PATCH} or larger, got {tuple(input_shape)}.")
    inputs, x = blocks.image_input(input_shape, normalization)
    filters = 2 * PATCH * PATCH * input_shape[-1]
    x = keras.layers.Conv2D(filters, PATCH, use_bias=False, trainable=False, name=WHITENING)(x)
    x = keras.layers.ReLU(name="block_00")(x)
    for number, channels in enumerate(widths, 1):
        filters = channels if width == 1 else blocks.scaled(channels, width)
        x = _block(x, filters, depth, f"block_{number:02d}")
    model = keras.Model(inputs, convnet_head(x, num_classes), name="convnet")
    blocks.set_normalization(model, normalization)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.name != WHITENING:
            _set_partial_identity(layer)
    return model


def convnet_head(x: Any, num_classes: int, *, prefix: str = "") -> Any:
    """Apply global max pooling, a fixed scale and a dense layer without bias; return its logits, float32 always.

    Args:
        x: Feature maps [B,H,W,C].
        num_classes: Number of logits.
        prefix: Begins the names of the layers "pool", "scale" and "logits".

    Returns:
        Logits [B,num_classes].
    """
    x = keras.layers.GlobalMaxPooling2D(name=f"{prefix}pool")(x)
    x = keras.layers.Rescaling(LOGIT_SCALE, name=f"{prefix}scale")(x)
    options = {"use_bias": False, "kernel_initializer": _uniform(), "dtype": "float32", "name": f"{prefix}logits"}
    return keras.layers.Dense(num_classes, **options)(x)


def is_whitening(layer: keras.Layer) -> bool:
    """Return whether a layer is the stem of a `convnet`, which nothing trains."""
    fixed = isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (PATCH, PATCH) and not layer.use_bias
    return fixed and layer.name == WHITENING


def _uniform() -> keras.initializers.Initializer:
    """Return the initializer that draws uniformly within 1 / sqrt(fan in), as PyTorch does."""
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def _block(x: Any, width: int, depth: int, name: str) -> Any:
    for number in range(1, depth + 1):
        before = x
        options = {"padding": "same", "use_bias": False, "kernel_initializer": _uniform()}
        x = keras.layers.Conv2D(width, 3, name=f"{name}_conv{number}", **options)(x)
        if number == 1 and min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D(2, name=f"{name}_pool")(x)
        x = FusedBatchNormalization(momentum=MOMENTUM, epsilon=1e-5, scale=False, name=f"{name}_bn{number}")(x)
        if number > 2:
            x = keras.layers.Add(name=f"{name}_add{number}")([before, x])
        x = keras.layers.ReLU(name=name if number == depth else f"{name}_relu{number}")(x)
    return x


def _set_partial_identity(layer: keras.layers.Conv2D) -> None:
    """Set the kernel of a 3x3 convolution so that its first output channels repeat its input channels."""
    kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
    same = min(kernel.shape[2:])
    kernel[..., :same] = 0
    kernel[1, 1, range(same), range(same)] = 1
    layer.kernel.assign(kernel)


def whitening_kernel(parts: Iterable[np.ndarray], epsilon: float = EPSILON) -> np.ndarray:
    """Return 2x2 filters whose outputs on the patches of some images have the identity as their second moments.

    The filters are the eigenvectors of the patches' second moments, each over the root of its eigenvalue plus
    `epsilon`; the mean is not subtracted. Each comes a second time with the opposite sign, since a ReLU follows.

    Args:
        parts: Images in parts, each float [N,H,W,C], as the convolution takes them.
        epsilon: Bounds the factor of directions without variance, such as color in gray images.

    Returns:
        float32 [2,2,C,8·C].
    """
    moments, count = np.zeros(()), 0
    for images in parts:
        rows, columns, channels = images.shape[1] - PATCH + 1, images.shape[2] - PATCH + 1, images.shape[3]
        shifted = [images[:, y : y + rows, x : x + columns] for y in range(PATCH) for x in range(PATCH)]
        patches = np.concatenate(shifted, axis=-1).reshape(-1, PATCH * PATCH * channels).astype(np.float64)
        moments, count = moments + patches.T @ patches, count + len(patches)
    values, vectors = np.linalg.eigh(moments / count)
    filters = vectors / np.sqrt(np.maximum(values, 0) + epsilon)
    kernel = np.concatenate([filters, -filters], axis=1)
    return kernel.reshape(PATCH, PATCH, channels, -1).astype(np.float32)


def set_whitening(model: keras.Model, parts: Iterable[np.ndarray]) -> None:
    """Fill the stem of a `convnet` with the whitening filters of training images.

    Args:
        model: From `convnet`, or a copy; one without a layer "whitening" is left alone.
        parts: Images in parts, each float [N,H,W,C] in [0,1], as the model takes them; some thousands are enough.
    """
    names = {layer.name for layer in model.layers}
    if WHITENING not in names:
        return
    if "normalization" in names:
        normalize = model.get_layer("normalization")
        parts = (keras.ops.convert_to_numpy(normalize(images)) for images in parts)
    model.get_layer(WHITENING).set_weights([whitening_kernel(parts)])
