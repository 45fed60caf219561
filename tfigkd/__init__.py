"""Compress a Keras image classifier by distillation guided by Integrated Gradients, and take it to the edge.

Importing this package has no side effect and loads no TensorFlow; the rooms are imported one by one
(`from tfigkd import models`).
"""

__version__ = "0.1.0"
