"""Whole numbers of 2 to 8 bits out of the words that they are packed into, in numpy."""

import numpy as np

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word's eight columns stand among its nibbles


def unpack_bits(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of a stream of bits, lowest first, that runs through the words of the last axis.

    words: `[..., W]` of 32 bits. Returns uint8 `[..., count]`.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        numbers = octets
    elif bits in (2, 4):
        numbers = np.empty((*octets.shape, 8 // bits), np.uint8)
        for place in range(8 // bits):
            np.bitwise_and(octets >> (place * bits), (1 << bits) - 1, out=numbers[..., place])
        numbers = numbers.reshape(*octets.shape[:-1], -1)
    else:
        single = np.unpackbits(octets, axis=-1, count=octets.shape[-1] * 8 // bits * bits, bitorder="little")
        numbers = np.packbits(single.reshape(*octets.shape[:-1], -1, bits), axis=-1, bitorder="little")[..., 0]
    return numbers[..., :count]


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """`[R, W]` words of eight nibbles in AWQ's order -> uint8 `[R, 8 W]`."""
    nibbles = unpack_bits(words, 4, 8 * words.shape[-1])
    return nibbles.reshape(len(words), -1, 8)[..., AWQ_ORDER].reshape(len(words), -1)


def words_of(count: int, bits: int) -> int:
    """Words of 32 bits that hold `count` numbers."""
    return -(-count * bits // 32)
