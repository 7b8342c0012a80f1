"""Random numbers for privacy: one generator nobody can predict, and a seeded one for rehearsals that are NOT PRIVATE.

Both turn AES-256 counter-mode keystreams into uniforms and normals by the same code, so that what a rehearsal runs is
what a private run runs, with one difference: where the key is from. Opacus' own `secure_mode` needs a package that has
no release for current torch, hence this module. Why it is built so, with figures: docs/decisions/0016.
"""

import hashlib
import hmac
import math
import os
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ringfence_client.normals import PAIRS_AT_ONCE, Float64Array, Transform, best_transform
from ringfence_client.workroom import NoiseFault, NoiseKind

_Purpose = Literal["sampling", "noise"]

_WORD_BYTES: Final = 8
_SIGNIFICAND_BITS: Final = 53
# What a counter-mode cipher is given for its bare keystream, this much at a time: it stays in a core's cache.
_ZEROS: Final = memoryview(bytes(1 << 17))
# A released value is a multiple of about its standard deviation by 2**16; see `snapped`.
_GRID_BITS: Final = 16
# A check refuses noise whose spread is this many standard errors off: about 1 in 500 million for sound noise.
_CHECK_STANDARD_ERRORS: Final = 6.0
NOISE_CHECK_SAMPLES: Final = 20_000


class NoiseSource(Protocol):
    """Where sampling and noise of a private training take their randomness from.

    Sampling and noise are two independent streams: in which order a trainer asks for the one and the other changes
    neither. Within a stream only the order counts, so that trainers may draw as many steps at once as they like and
    still give the same weights.
    """

    @property
    def kind(self) -> NoiseKind:
        """`csprng`: nobody can predict it. `seeded`: anybody with the seed can, and the run is NOT PRIVATE."""
        ...

    def normal(self, shape: Sequence[int], *, stddev: float) -> Float64Array:
        """Draw Gaussian noise.

        `normal((k, n), stddev=s)` equals the stack of k successive `normal((n,), stddev=s)`, to the last bit.

        Args:
            shape: Shape of the result.
            stddev: Standard deviation, in the unit of what the noise is added to; > 0.

        Returns:
            Fresh float64 array of `shape`, secret. Add it in float64, and release nothing but `snapped`
            of the sum.
        """
        ...

    def uniform(self, size: int) -> Float64Array:
        """Draw `size` float64 numbers between 0 and 1, both excluded; secret.

        `uniform(a)` followed by `uniform(b)` equals `uniform(a + b)` cut in two.
        """
        ...


class _KeystreamNoise:
    """Uniforms and normals out of two AES-256 counter-mode keystreams, both from one 256-bit key."""

    def __init__(self, key: bytes, transform: Transform | None) -> None:
        self._transform = transform or best_transform()
        self._ciphers: dict[_Purpose, CipherContext] = {
            "sampling": _keystream(key, "sampling"),
            "noise": _keystream(key, "noise"),
        }

    def normal(self, shape: Sequence[int], *, stddev: float) -> Float64Array:
        """Draw Gaussian noise: see `NoiseSource.normal`.

        Raises:
            ValueError: `stddev` is not a finite number above zero. No noise is never a request to this module.
        """
        if not (math.isfinite(stddev) and stddev > 0):
            raise ValueError("the noise's standard deviation is a finite number above zero")
        length = shape[-1] if shape else 1
        rows = math.prod(shape) // length if length else 0
        # Normals come in pairs: every row takes whole ones, or rows drawn together would differ from rows drawn apart.
        drawn = np.empty((rows, length + length % 2))
        pairs = drawn.reshape(-1, 2)
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            self._fill_with_keystream(part.view(np.int64), "noise")
            self._transform.fill(part, stddev=stddev)
        return drawn[:, :length].reshape(tuple(shape))

    def uniform(self, size: int) -> Float64Array:
        """Draw uniforms: see `NoiseSource.uniform`."""
        words = np.empty(size, dtype=np.int64)
        self._fill_with_keystream(words, "sampling")
        # The middle of each of 2**52 cells: never 0 and never 1.
        cells = words.view(np.uint64)
        cells >>= np.uint64(_WORD_BYTES * 8 - (_SIGNIFICAND_BITS - 1))
        uniforms: Float64Array = cells.astype(np.float64)
        uniforms += 0.5
        uniforms *= 2.0 ** -(_SIGNIFICAND_BITS - 1)
        return uniforms

    def _fill_with_keystream(self, words: npt.NDArray[np.int64], purpose: _Purpose) -> None:
        cipher, room = self._ciphers[purpose], words.reshape(-1).view(np.uint8).data
        for start in range(0, len(room), len(_ZEROS)):
            part = room[start : start + len(_ZEROS)]
            cipher.update_into(_ZEROS[: len(part)], part)


class SecureNoise(_KeystreamNoise):
    """Noise nobody can predict: the key is 256 fresh bits of the operating system, and never leaves this object.

    Args:
        transform: Who turns words into normals; by default the fastest there is.
    """

    kind: Final = "csprng"

    def __init__(self, *, transform: Transform | None = None) -> None:
        super().__init__(os.urandom(32), transform)
        self._process = os.getpid()

    def _fill_with_keystream(self, words: npt.NDArray[np.int64], purpose: _Purpose) -> None:
        # A forked process inherits the key, and two processes with one keystream would add the SAME noise to two
        # updates: their difference would be free of it.
        if os.getpid() != self._process:
            self.__init__(transform=self._transform)  # type: ignore[misc]
        super()._fill_with_keystream(words, purpose)

    def __reduce__(self) -> str:
        """Refuse to be copied or pickled, for the same reason."""
        raise TypeError("a noise generator is not copied: two copies would draw the same noise")


class RehearsalNoise(_KeystreamNoise):
    """Repeatable noise, NOT PRIVATE: whoever knows the seed can subtract it.

    Args:
        seed: Public seed of the rehearsal.
        stream: Name of one independent stream of that seed, such as `cleveland/3`. Two holders, or two rounds, that
            share seed and stream draw the same noise.
        transform: Who turns words into normals; by default the fastest there is. Two machines of which one has a
            compiler, or wider registers, may draw normals that differ in their last bits.
    """

    kind: Final = "seeded"

    def __init__(self, seed: int, *, stream: str = "", transform: Transform | None = None) -> None:
        key = hashlib.sha256(f"ringfence rehearsal, not private\n{seed}\n{stream}".encode()).digest()
        super().__init__(key, transform)


def snapped(values: Float64Array, *, stddev: float) -> Float64Array:
    """Round noised values to a grid that is the same whatever was noised: all that a mechanism may release.

    A float64 sum of secret and noise betrays by its low bits which secret it can come from (Mironov 2012, On
    Significance of the Least Significant Bits for Differential Privacy; Holohan & Braghin 2021, arXiv:2107.10138).
    After rounding to a public grid the multiples of the grid are what any secret gives, with chances that are those of
    an exact Gaussian, rounded, to one part in some thousand million. docs/decisions/0016 has the argument.

    Args:
        values: The sum of secret and noise; float64, any shape.
        stddev: The noise's standard deviation, which is public; finite and > 0.

    Returns:
        New float64 array: every value's nearest multiple of 2**(floor(log2(stddev)) - 16). That adds less than 2**-35
        of the noise's own variance.

    Raises:
        ValueError: `values` is not float64, whose precision the argument needs, or `stddev` is not a finite number > 0.
    """
    if values.dtype != np.float64:
        raise ValueError("only float64 is snapped")
    grid = snapping_grid(stddev=stddev)
    multiples: Float64Array = values / grid
    np.rint(multiples, out=multiples)
    multiples *= grid
    return multiples


def snapping_grid(*, stddev: float) -> float:
    """The width of the grid that `snapped` rounds to, for a kernel that rounds by itself (to even, as numpy does).

    Args:
        stddev: The noise's standard deviation; finite and > 0.

    Returns:
        A power of two. Public.

    Raises:
        ValueError: `stddev` is not a finite number > 0.
    """
    if not (math.isfinite(stddev) and stddev > 0):
        raise ValueError("the noise's standard deviation is a finite number above zero")
    return math.ldexp(1.0, math.frexp(stddev)[1] - 1 - _GRID_BITS)


def noise_defect(samples: Float64Array, *, stddev: float) -> str | None:
    """Say what is wrong with `samples` as independent draws of a normal with mean 0 and the claimed spread.

    The mean square of n such draws has standard error stddev**2 * sqrt(2/n): with 20,000 draws a spread 10 % too small
    lies 19 standard errors below, and a sound one strays beyond 6 about twice in a thousand million times.

    Args:
        samples: Draws, any shape. Stay on this machine; only the verdict leaves.
        stddev: The claimed standard deviation, > 0.

    Returns:
        None where nothing is wrong, else one sentence without any sample in it.
    """
    scaled = np.asarray(samples, dtype=np.float64).ravel() / stddev
    if scaled.size == 0 or not np.isfinite(scaled).all():
        return "the noise is empty or not finite"
    mean_off = float(scaled.mean()) * math.sqrt(scaled.size)
    if abs(mean_off) > _CHECK_STANDARD_ERRORS:
        return "the noise is not centred on zero"
    spread_off = (float(np.square(scaled).mean()) - 1.0) * math.sqrt(scaled.size / 2)
    if spread_off < -_CHECK_STANDARD_ERRORS:
        return "the noise is smaller than claimed"
    if spread_off > _CHECK_STANDARD_ERRORS:
        return "the noise is larger than claimed"
    return None


def check_noise(source: NoiseSource) -> None:
    """Draw some noise and make sure that it has the spread asked for. Takes about two milliseconds.

    Raises:
        NoiseFault: It has not. Train nothing with this source.
    """
    defect = noise_defect(source.normal((NOISE_CHECK_SAMPLES,), stddev=2.0), stddev=2.0)
    if defect is not None:
        raise NoiseFault(
            defect,
            expected="independent normal draws of the standard deviation asked for",
            where=f"noise source of kind '{source.kind}'",
            next_step="train nothing with it; report this with the output of `ringfence doctor`",
        )


def _keystream(key: bytes, purpose: _Purpose) -> CipherContext:
    # HKDF-Expand of one block (RFC 5869, section 2.3). A counter that starts at zero is safe because a derived key is
    # used for one keystream only and then forgotten.
    derived = hmac.digest(key, f"ringfence {purpose}".encode() + b"\x01", "sha256")
    return Cipher(algorithms.AES256(derived), modes.CTR(bytes(16))).encryptor()
