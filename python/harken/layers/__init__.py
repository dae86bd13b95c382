"""The layers around attention, for inference on NumPy arrays: parameters are plain arrays, named as PyTorch names them.

>>> import numpy as np
>>> from harken import layers
>>> layers.silu(np.float32([-1, 0, 1])).round(3)
array([-0.269,  0.   ,  0.731], dtype=float32)
"""

from harken.layers.activations import GELU, ReLU, Sigmoid, SiLU, Tanh, gelu, relu, sigmoid, silu, tanh
from harken.layers.caches import DecoderCache
from harken.layers.decoder import TransformerDecoder, TransformerDecoderLayer
from harken.layers.encoder import TransformerEncoder, TransformerEncoderLayer
from harken.layers.heads import MultiHeadAttention
from harken.layers.layer import Layer
from harken.layers.linear import Linear
from harken.layers.norm import LayerNorm, RMSNorm, layer_norm, rms_norm

__all__ = [
    "GELU",
    "DecoderCache",
    "Layer",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "gelu",
    "layer_norm",
    "relu",
    "rms_norm",
    "sigmoid",
    "silu",
    "tanh",
]
