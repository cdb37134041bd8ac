"""64-bit checksums of masks and weights, to prove that ranks agree.

Multilinear hashing (Carter & Wegman 1979; Lemire & Kaser 2014): the sum of words times random keys, one for each
place, in wrapping integer arithmetic. Every device and memory layout gives the same number. As keys are odd, a change
of any one word changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from dynsparse.masks import MaskSet
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.reserve import Reserve
from dynsparse.masks.rows import by_parameter, kept_values
from dynsparse.masks.tensors import bits_of
from dynsparse.seeds import random_bits, seed_for

_CHUNK = 1 << 18  # Words in a chunk. A table of as many keys stays in the processor's cache.


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
    of_words = hashes_by_run if words.device.type == "cpu" else hashes_at_once
    lengths = torch.tensor(list(sizes)).mul_(seed_for("digest", "length") | 1)
    return of_words(words, sizes) + lengths.to(words.device)


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
    """Sums of `hashes` on a GPU, by a few large kernels, whatever the number of runs."""
    lengths = torch.tensor(list(sizes)).to(words.device)
    ends = lengths.cumsum(0)
    starts = (ends - lengths).repeat_interleave(lengths, output_size=words.numel())
    place = torch.arange(words.numel(), device=words.device) - starts
    factors = _factors(1 + max(sizes) // _CHUNK, words.device)
    products = _keys(words.device)[place % _CHUNK] * factors[place // _CHUNK] * words
    upto = torch.cat((products.new_zeros(1), products.cumsum(0)))
    return upto[ends] - upto[ends - lengths]  # Sums wrap, and so do their differences.


def mask_rows(masks: MaskSet) -> Tensor:
    """Checksums of the active units: int64 [sparse layers]. A full layer gets that of no units, which no layer has."""
    blocks = [[layer.active[: 0 if layer.is_full else None] for layer in block.layers] for block in masks.blocks]
    rows = [hashes(torch.cat(indices), [index.numel() for index in indices]) for indices in blocks]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


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
    words: list[Tensor] = []
    stray: list[Tensor | None] = []
    for parameter in shared_parameters(model).values():
        layers = [layer for layer in sparse.get(id(parameter), ()) if not layer.is_full]
        if layers:
            words.append(bits_of(kept_values(parameter, layers)))
            stray.append(torch.stack([layer.stray_bits() for layer in layers]).sum())
        else:
            words.append(bits_of(parameter.detach().contiguous().view(-1)))
            stray.append(None)
    if not words:
        return torch.empty(0, dtype=torch.int64)
    rows = hashes(torch.cat(words), [part.numel() for part in words])
    zero = torch.zeros_like(rows[0])
    return rows + torch.stack([zero if one is None else one for one in stray])


def reserve_rows(reserve: Reserve | None) -> Tensor:
    """Checksums of the values beside the masks and of their optimizer state: int64 [layers of the reserve]."""
    parts = [] if reserve is None else [part.tensors() for part in reserve.layers.values()]
    words = [torch.cat([bits_of(one.contiguous().view(-1)).to(torch.int64) for one in part]) for part in parts]
    rows = [hashes(one, [one.numel()]) for one in words]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


def active_digest(masks: MaskSet) -> int:
    """Digest of the active weights of the sparse layers, whatever lies outside the masks."""
    values = [bits_of(layer.values()) for layer in masks]
    names = [layer.name for layer in masks]
    return total(names, to_host(hashes(torch.cat(values), [part.numel() for part in values])) if values else [])


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
