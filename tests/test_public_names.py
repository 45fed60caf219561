"""What `import tfigkd` offers, to a program and to whoever asks for it by name."""

import subprocess
import sys


def test_public_names_are_imported_when_they_are_used():
    """In a fresh process: nothing heavy at first, then each name, and one that is none."""
    program = """
import sys, tfigkd
assert not {"tensorflow", "keras", "jax"} & sys.modules.keys()
assert set(tfigkd.__all__) <= set(dir(tfigkd))
for name in tfigkd.__all__:
    assert getattr(tfigkd, name).__name__.split(".")[-1] == name, name
for name in tfigkd.compress.__all__:
    assert name in dir(tfigkd.compress) and getattr(tfigkd.compress, name).__name__ == name, name
try:
    tfigkd.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "module 'tfigkd' has no attribute 'nothing'\n", done.stderr
