"""The layers around attention, for inference on NumPy arrays: parameters are plain arrays, named as PyTorch names them.

>>> import numpy as np
>>> from harken import layers
>>> layers.silu(np.float32([-1, 0, 1])).round(3)
array([-0.269,  0.   ,  0.731], dtype=float32)
"""

from harken.layers.activations import GELU, ReLU, Sigmoid, SiLU, Tanh, gelu, relu, sigmoid, silu, tanh
from harken.layers.additive import AdditiveAttention
from harken.layers.caches import DecoderCache
from harken.layers.convolution import Conv1D, Conv1DState
from harken.layers.decoder import TransformerDecoder, TransformerDecoderLayer
from harken.layers.embedding import Embedding
from harken.layers.encoder import TransformerEncoder, TransformerEncoderLayer
from harken.layers.heads import MultiHeadAttention
from harken.layers.keras import from_keras
from harken.layers.layer import Layer
from harken.layers.linear import Linear
from harken.layers.norm import LayerNorm, RMSNorm, layer_norm, rms_norm
from harken.layers.positions import LearnedPositions, SinusoidalPositions, sinusoidal_positions
from harken.layers.recurrent import GRU, LSTM
from harken.layers.self_attention import SelfAttention
from harken.layers.sequential import Sequential

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "AdditiveAttention",
    "Conv1D",
    "Conv1DState",
    "DecoderCache",
    "Embedding",
    "Layer",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "ReLU",
    "SelfAttention",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "Tanh",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "from_keras",
    "gelu",
    "layer_norm",
    "relu",
    "rms_norm",
    "sigmoid",
    "silu",
    "sinusoidal_positions",
    "tanh",
]
