"""64-bit checksums of masks and weights, to prove that ranks agree.

Multilinear hashing (Carter & Wegman 1979; Lemire & Kaser 2014): the sum of words times random keys, one for each
place, in wrapping integer arithmetic. Every device and memory layout gives the same number. As keys are odd, a change
of any one word changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.reserve import Reserve
from dynsparse.masks.rows import by_parameter, kept_in_pieces, kept_values
from dynsparse.masks.tensors import bits_of, grouped, joined, on_device
from dynsparse.seeds import random_bits, seed_for

_CHUNK = 1 << 18  # Words in a chunk. A table of as many keys stays in the processor's cache.
AT_ONCE = 1 << 21
"""Words that are hashed together, at up to 56 bytes each: 117 MB."""


@lru_cache(maxsize=2)
def _keys(device: torch.device) -> Tensor:
    """Keys of the words in a chunk: int64 [_CHUNK], odd."""
    return random_bits(seed_for("digest"), torch.arange(_CHUNK, device=device)).bitwise_or_(1)


def _factors(chunks: int, device: torch.device) -> Tensor:
    """Factors of the keys in each chunk: int64 [chunks], odd."""
    return random_bits(seed_for("digest", "chunks"), torch.arange(chunks, device=device)).bitwise_or_(1)


def hashes(words: Tensor, sizes: Sequence[int]) -> Tensor:
    """Checksums of consecutive runs of `words` (any integers [n]), `sizes[i]` words in each: int64 [len(sizes)]."""
    if not sizes:
        return torch.empty(0, dtype=torch.int64, device=words.device)
    of_words = hashes_by_run if words.is_cpu else hashes_at_once
    lengths = on_device(sizes, words.device).mul_(seed_for("digest", "length") | 1)
    return of_words(words, sizes) + lengths


def hashes_by_run(words: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sums of `hashes` on a processor, by chunks that stay in its cache."""
    keys = _keys(words.device)
    factors = _factors(1 + max(sizes) // _CHUNK, words.device)
    sums = []
    for run in words.split(list(sizes)):
        chunks = [torch.dot(chunk.to(torch.int64), keys[: chunk.numel()]) for chunk in run.split(_CHUNK)]
        sums.append(torch.dot(torch.stack(chunks), factors[: len(chunks)]))
    return torch.stack(sums)


def hashes_at_once(words: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sums of `hashes` on a GPU, by a few large kernels for each AT_ONCE words, whatever the number of runs."""
    lengths = on_device(sizes, words.device)
    ends = lengths.cumsum(0)
    factors = _factors(1 + max(sizes) // _CHUNK, words.device)
    sums = torch.zeros_like(ends)
    for first in range(0, words.numel(), AT_ONCE):
        sums += _sums_in(words[first : first + AT_ONCE], first, ends - lengths, ends, factors)
    return sums


def _sums_in(words: Tensor, first: int, starts: Tensor, ends: Tensor, factors: Tensor) -> Tensor:
    """Parts of the sums of all runs that lie in these words, which are number `first` and those that follow."""
    places = torch.arange(first, first + words.numel(), device=words.device)
    places -= starts.index_select(0, torch.searchsorted(ends, places, right=True))
    products = _keys(words.device).index_select(0, places % _CHUNK).mul_(words)
    products *= factors.index_select(0, places.div_(_CHUNK, rounding_mode="floor"))
    upto = torch.cat((products.new_zeros(1), products.cumsum_(0)))
    inside = torch.stack((starts, ends)).sub_(first).clamp_(0, words.numel())
    upto = upto.take(inside)
    return upto[1] - upto[0]  # Sums wrap, and so do their differences.


@dataclass(frozen=True)
class LongRun:
    """Run of `size` words, any integers, that comes in pieces."""

    size: int
    pieces: Callable[[], Iterator[Tensor]]

    def numel(self) -> int:
        """Number of words."""
        return self.size


def rows_of(runs: Iterable[Tensor | LongRun]) -> Tensor:
    """Checksums of runs of words, any integers [n] each: int64 [runs].

    On a GPU short runs are hashed together, and no more than AT_ONCE words, or one run, are taken from `runs` at once.
    """
    return all_rows(_row_of_group(group) for group in grouped(runs, AT_ONCE))


def _row_of_group(group: Sequence[Tensor | LongRun]) -> Tensor:
    words = [one for one in group if isinstance(one, Tensor)]
    long = [one for one in group if isinstance(one, LongRun)]
    return _hash(*long) if long else hashes(joined(words), [len(one) for one in words])


def _hash(run: LongRun) -> Tensor:
    """Checksum of a run that comes in pieces, on a GPU: int64 [1]. The same as `hashes` gives."""
    total, first = torch.zeros(1, dtype=torch.int64), 0
    for piece in run.pieces():
        for words in piece.split(AT_ONCE):
            if first == 0:
                ends = on_device([run.size], words.device)
                starts, factors = torch.zeros_like(ends), _factors(1 + run.size // _CHUNK, words.device)
                total = ends * (seed_for("digest", "length") | 1)
            total += _sums_in(words, first, starts, ends, factors)
            first += len(words)
    return total


def all_rows(rows: Iterable[Tensor]) -> Tensor:
    """Checksums one after another: int64. None at all lie on the CPU, and a GPU joins no tensor from there."""
    found = [one for one in rows if one.numel()]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def mask_rows(masks: MaskSet) -> Tensor:
    """Checksums of the active units: int64 [sparse layers]. A full layer gets that of no units, which no layer has."""
    none = torch.empty(0, dtype=torch.int64, device=masks.layers[0].device if len(masks) else None)
    return rows_of(none if layer.is_full else layer.active for layer in masks)


def shared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are the same on all ranks: all but those that DistributedDataParallel was told to ignore."""
    ignored: Collection[str] = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    return {name: parameter for name, parameter in named_parameters(model).items() if name not in ignored}


def weight_rows(model: nn.Module, masks: MaskSet) -> Tensor:
    """Checksums of the shared parameters: int64 [shared parameters].

    A sparse layer's is of its active weights, plus the wrapping sum of the bits outside the mask, which is 0 unless
    something went wrong (`SparseLayer.stray_bits`). Linear in the active weights but for one pass over all.
    """
    sparse = {id(layers[0].parameter): layers for layers in by_parameter(masks).values()}
    parameters = shared_parameters(model).values()
    indexed = [[layer for layer in sparse.get(id(one), ()) if not layer.is_full] for one in parameters]
    if not indexed:
        return torch.empty(0, dtype=torch.int64)
    rows = rows_of(_run(one, layers) for one, layers in zip(parameters, indexed, strict=True))
    zero = torch.zeros_like(rows[0])
    stray = [torch.stack([layer.stray_bits() for layer in layers]).sum() if layers else zero for layers in indexed]
    return rows + torch.stack(stray)


def _run(parameter: nn.Parameter, layers: Sequence[SparseLayer]) -> Tensor | LongRun:
    """Bits of a parameter's active and dense weights, given its layers that have an index.

    Those of a GPU come in pieces, if they are many.
    """
    size = parameter.numel() - sum(layer.spec.weights - layer.active_weights for layer in layers)
    if parameter.is_cuda and size > AT_ONCE:
        return LongRun(size, lambda: (bits_of(piece) for piece in kept_in_pieces(parameter, layers)))
    values = kept_values(parameter, layers) if layers else parameter.detach().contiguous().view(-1)
    return bits_of(values)


def reserve_rows(reserve: Reserve | None) -> Tensor:
    """Checksums of the values beside the masks and of their optimizer state: int64 [layers of the reserve]."""
    parts = [] if reserve is None else [part.tensors() for part in reserve.layers.values()]
    words = [torch.cat([bits_of(one.contiguous().view(-1)).to(torch.int64) for one in part]) for part in parts]
    return all_rows(hashes(one, [one.numel()]) for one in words)


def active_digest(masks: MaskSet) -> int:
    """Digest of the active weights of the sparse layers, whatever lies outside the masks."""
    rows = rows_of(bits_of(layer.values()) for layer in masks)
    return total([layer.name for layer in masks], to_host(rows))


def total(names: Sequence[str], rows: Sequence[int]) -> int:
    """Combine one checksum a name into an unsigned 64-bit number."""
    text = "\0".join(f"{name}\0{row}" for name, row in zip(names, rows, strict=True))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def to_host(rows: Tensor) -> list[int]:
    """Copy all rows to the host at once."""
    return list(map(int, rows.tolist()))


def mask_digest(masks: MaskSet) -> int:
    """Digest of the active units of all layers."""
    return total([layer.name for layer in masks], to_host(mask_rows(masks)))


def weight_digest(model: nn.Module, masks: MaskSet) -> int:
    """Digest of all parameters of the model, dense ones included."""
    return total(list(shared_parameters(model)), to_host(weight_rows(model, masks)))
