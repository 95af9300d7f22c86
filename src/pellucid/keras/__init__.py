"""The layers of pellucid in Keras 3, from one source for TensorFlow, JAX and torch.

Importing this package registers every layer, so that `keras.saving.load_model` can load models that contain them.
"""

from pellucid.keras import models
from pellucid.keras.channel import ChannelDeconv
from pellucid.keras.convert import from_torch, to_torch
from pellucid.keras.convolution import FastDeconv1D, FastDeconv2D, FastDeconv3D
from pellucid.keras.fold import fold
from pellucid.keras.initializers import BiasHeUniform
from pellucid.keras.options import HEAD
from pellucid.keras.schedule import RateTable
from pellucid.keras.sparse import CSC2D
from pellucid.keras.subnet import SubnetConv2D

__all__ = [
    "CSC2D",
    "HEAD",
    "BiasHeUniform",
    "ChannelDeconv",
    "FastDeconv1D",
    "FastDeconv2D",
    "FastDeconv3D",
    "RateTable",
    "SubnetConv2D",
    "fold",
    "from_torch",
    "models",
    "to_torch",
]
