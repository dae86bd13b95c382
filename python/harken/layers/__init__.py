"""The layers around attention, for inference on NumPy arrays: parameters are plain arrays, named as PyTorch names them.

>>> import numpy as np
>>> from harken import layers
>>> layers.silu(np.float32([-1, 0, 1])).round(3)
array([-0.269,  0.   ,  0.731], dtype=float32)
"""

from harken.layers.activations import ReLU, Sigmoid, SiLU, Tanh, relu, sigmoid, silu, tanh
from harken.layers.convolution import Conv1D, Conv1DState
from harken.layers.layer import Layer
from harken.layers.linear import Linear
from harken.layers.recurrent import GRU, LSTM

__all__ = ["GRU", "LSTM", "Layer", "Linear", "ReLU", "SiLU", "Sigmoid", "Tanh", "relu", "sigmoid", "silu", "tanh"]
__all__ = [
    "Conv1D",
    "Conv1DState",
    "Layer",
    "Linear",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "relu",
    "sigmoid",
    "silu",
    "tanh",
]
