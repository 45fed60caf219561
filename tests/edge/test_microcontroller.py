"""C sources of int8 files: the same bytes and the contract, as a C compiler reads them; memory by hand."""

import shutil
import subprocess

import keras
import numpy as np
import pytest

from tfigkd import export
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import convert
from tfigkd.edge.microcontroller import arena_bytes, write_c
from tfigkd.runtime.errors import UserError

NAMES = ["cat", 'a "dog"', "Zürich\\1"]
MAIN = """
#include <stdio.h>
#include "HEADER"
int main(void) {
  printf("%d %d %d %d %.9g %d %.9g %d %d %u\\n", NAME_HEIGHT, NAME_WIDTH, NAME_CHANNELS, NAME_CLASSES, NAME_INPUT_SCALE,
         NAME_INPUT_ZERO_POINT, NAME_OUTPUT_SCALE, NAME_OUTPUT_ZERO_POINT, NAME_TENSOR_BYTES, name_model_size);
  for (int index = 0; index < NAME_CLASSES; index++) printf("%s\\n", name_class_names[index]);
  fwrite(name_model, 1, name_model_size, stdout);
  return 0;
}
"""


def network(shortcut=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    if shortcut:
        x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same")(x)])
    x = keras.layers.MaxPooling2D(4)(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


def write_file(path, format="int8", **options):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    path.write_bytes(convert(network(**options), format, images if format == "int8" else None))
    write_contract(path, NAMES)
    return path


def test_a_compiler_reads_the_file_and_its_contract(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NEEDS CC: no C compiler here")
    model = write_file(tmp_path / "my-net.int8.tflite")
    assert "kB of flash" in export.run(export.Options(model=str(model), format="c", output=tmp_path / "my-net.c"))
    main = MAIN.replace("HEADER", "my-net.h").replace("NAME", "MY_NET").replace("name_", "my_net_")
    (tmp_path / "main.c").write_text(main)
    program = tmp_path / "program"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *strict, "main.c", "my-net.c", "-o", str(program)], cwd=tmp_path, check=True)
    printed = subprocess.run([program], capture_output=True, check=True).stdout
    numbers, *names = printed.split(b"\n", 4)[:4]
    assert [name.decode() for name in names] == NAMES
    assert printed.split(b"\n", 4)[4] == model.read_bytes()
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    expected = [8, 8, 3, 3, *source["quantization"], *sink["quantization"], arena_bytes(model), model.stat().st_size]
    assert [float(number) for number in numbers.split()] == pytest.approx(expected, rel=1e-6)


def test_the_header_says_what_a_file_of_another_tool_takes_and_gives(tmp_path):
    model = write_file(tmp_path / "m.tflite")
    write_c(model, tmp_path / "own.c")
    assert "round(pixel / 255 / INPUT_SCALE)" in (tmp_path / "own.h").read_text()
    assert "logit = (value" in (tmp_path / "own.h").read_text()
    write_c(model, tmp_path / "other.c", input_range=(-1.0, 1.0), outputs="probabilities")
    assert "round((-1 + 2 * pixel / 255) / INPUT_SCALE)" in (tmp_path / "other.h").read_text()
    assert "probability = (value" in (tmp_path / "other.h").read_text()


def test_memory_is_that_of_the_tensors_of_one_time(tmp_path):
    # image 192 and feature map 256 bytes at the first convolution; after it 256 + 16 + 3
    assert arena_bytes(write_file(tmp_path / "plain.tflite")) == 192 + 256
    # at the sum its two inputs, of which the first waits during the second convolution, and its output
    assert arena_bytes(write_file(tmp_path / "sum.tflite", shortcut=True)) == 3 * 256


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="takes float32 and gives float32; microcontrollers take an int8 file"):
        write_c(write_file(tmp_path / "model.tflite", "float32"), tmp_path / "model.c")
    with pytest.raises(UserError, match="has no Latin letter or digit for the names in C"):
        write_c(write_file(tmp_path / "int8.tflite", "int8"), tmp_path / "語.c")
    for model, output, said in (
        ("model.keras", "model.c", "takes an int8 .tflite file, got model.keras"),
        ("model.tflite", "model.h", "must end in .c"),
        ("model.tflite", "none/model.c", "no folder"),
    ):
        with pytest.raises(UserError, match=said):
            export.run(export.Options(model=model, format="c", output=tmp_path / output))
