"""Random numbers for privacy: one generator nobody can predict, and a seeded one for rehearsals that are NOT PRIVATE.

Both turn an AES-256 counter-mode keystream into uniforms and normals by the same code, so that what a rehearsal runs is
what a private run runs, with one difference: where the key is from. Opacus' own `secure_mode` needs a package that has
no release for current torch, hence this module.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ringfence_policy.errors import Fault

NoiseKind = Literal["csprng", "seeded"]
Float64Array = npt.NDArray[np.float64]

# Four normals summed and halved: an output's low bits then no longer betray which draw made it. Holohan & Braghin 2021,
# Secure Random Sampling in Differential Privacy, arXiv:2107.10138, section 5.1 with n = 2.
_SUMMANDS: Final = 4
_WORD_BYTES: Final = 8
_SIGNIFICAND_BITS: Final = 53
# A check refuses noise whose spread is this many standard errors off: about 1 in 500 million for sound noise.
_CHECK_STANDARD_ERRORS: Final = 6.0
_CHECK_SAMPLES: Final = 20_000


class NoiseFault(Fault):
    """A noise generator does not produce the noise it was asked for, so nothing may be trained with it."""

    code = "noise-fault"


class NoiseSource(Protocol):
    """Where sampling and noise of a private training take their randomness from."""

    @property
    def kind(self) -> NoiseKind:
        """`csprng`: nobody can predict it. `seeded`: anybody with the seed can, and the run is NOT PRIVATE."""
        ...

    def normal(self, shape: Sequence[int], *, stddev: float) -> torch.Tensor:
        """Draw Gaussian noise.

        Args:
            shape: Shape of the result.
            stddev: Standard deviation, in the unit of what the noise is added to; > 0.

        Returns:
            Fresh float64 tensor of `shape` on the CPU, secret. Add it in float64 and round the sum afterwards.
        """
        ...

    def uniform(self, size: int) -> Float64Array:
        """Draw `size` float64 numbers between 0 and 1, both excluded; secret."""
        ...


class _KeystreamNoise:
    """Uniforms and normals out of an AES-256 counter-mode keystream."""

    def __init__(self, key: bytes) -> None:
        self._cipher = _keystream(key)

    def normal(self, shape: Sequence[int], *, stddev: float) -> torch.Tensor:
        """Draw Gaussian noise: see `NoiseSource.normal`.

        Raises:
            ValueError: `stddev` is not a finite number above zero. No noise is never a request to this module.
        """
        if not (math.isfinite(stddev) and stddev > 0):
            raise ValueError("the noise's standard deviation is a finite number above zero")
        count = math.prod(shape)
        summed = self._standard_normals(count * _SUMMANDS).reshape(_SUMMANDS, count).sum(axis=0)
        return torch.from_numpy(summed * (stddev / math.sqrt(_SUMMANDS))).reshape(tuple(shape))

    def uniform(self, size: int) -> Float64Array:
        """Draw uniforms: see `NoiseSource.uniform`."""
        words = np.frombuffer(self._bytes(size * _WORD_BYTES), dtype="<u8")
        # The middle of each of 2**52 cells: never 0, so its logarithm is finite, and never 1.
        cells = (words >> np.uint64(_WORD_BYTES * 8 - (_SIGNIFICAND_BITS - 1))).astype(np.float64)
        uniforms: Float64Array = (cells + 0.5) * 2.0 ** -(_SIGNIFICAND_BITS - 1)
        return uniforms

    def _bytes(self, length: int) -> bytes:
        return self._cipher.update(bytes(length))

    def _standard_normals(self, count: int) -> Float64Array:
        """Box & Muller 1958, A Note on the Generation of Random Normal Deviates, in float64."""
        pairs = (count + 1) // 2
        uniforms = self.uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(uniforms[:pairs]))
        angle = 2.0 * np.pi * uniforms[pairs:]
        normals: Float64Array = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return normals[:count]


class SecureNoise(_KeystreamNoise):
    """Noise nobody can predict: the key is 256 fresh bits of the operating system, and never leaves this object."""

    kind: Final = "csprng"

    def __init__(self) -> None:
        super().__init__(os.urandom(32))
        self._process = os.getpid()

    def _bytes(self, length: int) -> bytes:
        # A forked process inherits the key, and two processes with one keystream would add the SAME noise to two
        # updates: their difference would be free of it.
        if os.getpid() != self._process:
            self.__init__()  # type: ignore[misc]
        return super()._bytes(length)

    def __reduce__(self) -> str:
        """Refuse to be copied or pickled, for the same reason."""
        raise TypeError("a noise generator is not copied: two copies would draw the same noise")


class RehearsalNoise(_KeystreamNoise):
    """Repeatable noise, NOT PRIVATE: whoever knows the seed can subtract it.

    Args:
        seed: Public seed of the rehearsal.
        stream: Name of one independent stream of that seed, such as `cleveland/3`. Two holders, or two rounds, that
            share seed and stream draw the same noise.
    """

    kind: Final = "seeded"

    def __init__(self, seed: int, *, stream: str = "") -> None:
        super().__init__(hashlib.sha256(f"ringfence rehearsal, not private\n{seed}\n{stream}".encode()).digest())


def noise_defect(samples: torch.Tensor | Float64Array, *, stddev: float) -> str | None:
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
    defect = noise_defect(source.normal((_CHECK_SAMPLES,), stddev=2.0), stddev=2.0)
    if defect is not None:
        raise NoiseFault(
            defect,
            expected="independent normal draws of the standard deviation asked for",
            where=f"noise source of kind '{source.kind}'",
            next_step="train nothing with it; report this with the output of `ringfence doctor`",
        )


def _keystream(key: bytes) -> CipherContext:
    # A counter that starts at zero is safe because a key is used for one keystream only and then forgotten.
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
