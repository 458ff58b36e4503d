"""Deltas as few bytes: one file a codec, compress and decompress side by side, and error feedback around them."""

from fl_protocol.compression.feedback import Prepared, prepare
from fl_protocol.compression.float16 import decode_statistics, encode_statistics
from fl_protocol.compression.pipeline import CODECS, Compressor, make_compressor

__all__ = [
    "CODECS",
    "Compressor",
    "Prepared",
    "decode_statistics",
    "encode_statistics",
    "make_compressor",
    "prepare",
]
