"""The fields of the exported LiteRT files, and the names of these files."""

from dataclasses import dataclass
from typing import Literal, get_args

from tfigkd.config.declare import forbid, late, require

Format = Literal["float32", "float16", "dynamic", "int8", "int16x8"]
FORMATS: tuple[Format, ...] = get_args(Format)
IOType = Literal["integer", "float32"]
"""Type of the input and output of a file with integer operations."""
Quantizer = Literal["converter", "ai-edge"]
Kept = Literal["float32", "int16"]


def file_name(role: str, format: str) -> str:
    """Return the name of an exported file, e.g. student.int8.tflite."""
    return f"{role}.{format}.tflite"


def role_of(name: str) -> str:
    """Return the role of a model or of an exported file: that of student.int8.tflite is student."""
    return name.partition(".")[0]


def format_of(name: str) -> str:
    """Return the format of an exported file, "Keras" for a model."""
    return name.split(".")[1] if "." in name else "Keras"


@dataclass(frozen=True)
class ExportConfig:
    """LiteRT files, and how far each may deviate from its Keras model."""

    formats: tuple[Format, ...] = ("float32", "int8")
    """Which files are written: float32; float16 weights; dynamic: int8 weights, float activations; int8 throughout;
    int16x8: int8 weights, int16 activations."""
    calibration_examples: int = 256
    """Validation images that calibrate int8 and int16x8 files, at most half of the split; the file is compared with
    Keras on the rest."""
    max_float32_difference: float = 1e-3
    """Largest difference of a float32 logit, relative to the largest logit, on validation."""
    max_float16_difference: float = 2e-2
    """The same of a file with float16 weights."""
    min_int8_agreement: float = 0.9
    """Smallest share of validation images with the same top-1 class; of files with int8 weights."""
    io: IOType = late("integer")
    """Input and output of int8 and int16x8 files: integer, as inside; float32, as LiteRT.js needs, with integer
    operations inside."""
    quantizer: Quantizer = late("converter")
    """What makes int8 files: TensorFlow's converter, or ai-edge-quantizer, which is installed apart. Models with fake
    quantization always go through the converter, which knows their ranges."""
    keep: int = late(0)
    """How many layers of an int8 file ai-edge leaves out of int8: those that add the most noise (see
    tfigkd.profile)."""
    keep_in: Kept = late("float32")
    """What these layers compute in: float32, or int16 with int8 weights."""

    def __post_init__(self) -> None:
        once = 0 < len(self.formats) == len({*self.formats})
        require(once, "formats must name at least one format, each once", self.formats)
        require(self.calibration_examples > 0, "calibration_examples must be positive", self.calibration_examples)
        for name in ("max_float32_difference", "max_float16_difference"):
            require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name))
        agreement = self.min_int8_agreement
        require(0 <= agreement <= 1, "min_int8_agreement must be in [0, 1]", agreement)
        require(self.keep >= 0, "keep must not be negative", self.keep)
        forbid(
            self.keep > 0 and self.quantizer != "ai-edge",
            "keep needs export.quantizer = ai-edge, with the converter it must be 0",
            self.keep,
        )
