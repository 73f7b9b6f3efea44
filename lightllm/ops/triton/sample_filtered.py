"""top_k, top_p and min_p and the choice among what they keep, without a sort.

The kept tokens are those above some logit, and the first few (by id) of those equal to it. That logit is found by bisection:
the number and the mass of the tokens above a candidate say whether it is too low. The chosen token is found the same way:
going down from the largest logit, the one at which the mass passes the target. Masses are exp(logit - largest logit).

To bisect over few numbers, the first pass over the row counts the tokens within some distances of the largest logit; those
within the shortest distance that surely holds all that may be kept are copied to the scratch row, in order of their ids.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightllm.ops.triton.sample_row import from_order_key, load_block, order_key

BELOW_ALL = tl.constexpr(-2139095042)
"""The key just below that of -inf."""


@triton.jit
def sample_filtered_token(
    row_ptr, scratch_ptr, vocab, scale, peak, uniform_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """(token id, mass of the whole row as float64). scratch: float32 [vocab]; all pointers are those of the row."""
    top_k, top_p, min_p = tl.load(top_k_ptr), tl.load(top_p_ptr), tl.load(min_p_ptr)
    total, distance = _enough(row_ptr, vocab, scale, peak, top_k, top_p, min_p, ROWS, COLUMNS)
    limit = tl.minimum(top_k, vocab).to(tl.int32)
    mass_limit = tl.where(top_p < 1.0, top_p * total, float("inf"))
    floor = min_p.to(tl.float32)
    half = vocab // 2
    count = 0
    if distance < float("inf"):
        count = _copy_candidates(row_ptr, scratch_ptr, half, vocab, scale, peak - distance, COLUMNS)
    copied = (count > 0) & (count <= half)
    source, size, lowest = row_ptr, vocab, order_key(peak) * 0 + BELOW_ALL
    if copied:
        source, size, scale = scratch_ptr, count, scale * 0.0 + 1.0
        lowest = order_key(peak - distance) - 1
    uniform = tl.load(uniform_ptr)
    token = _choose(source, size, scale, peak, lowest, uniform, limit, mass_limit, floor, ROWS, COLUMNS)
    if copied:
        token = tl.load(scratch_ptr + half + token).to(tl.int32, bitcast=True)
    return token, total


@triton.jit
def _enough(
    row_ptr, vocab, scale, peak, top_k, top_p, min_p, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """(mass of the row, the shortest of five distances from the peak within which all kept tokens are, or infinity)."""
    all_mass = tl.zeros((COLUMNS,), tl.float32)
    count_1 = tl.zeros((COLUMNS,), tl.int32)
    count_2, count_4, count_7, count_12 = count_1, count_1, count_1, count_1
    mass_1, mass_2, mass_4, mass_7, mass_12 = all_mass, all_mass, all_mass, all_mass, all_mass
    for start in range(0, vocab, ROWS * COLUMNS):
        _, x = load_block(row_ptr, start, vocab, scale, ROWS, COLUMNS)
        mass = tl.exp(x - peak)
        all_mass += tl.sum(mass, 0)
        count_1, mass_1 = _add(count_1, mass_1, x >= peak - 1.0, mass)
        count_2, mass_2 = _add(count_2, mass_2, x >= peak - 2.0, mass)
        count_4, mass_4 = _add(count_4, mass_4, x >= peak - 4.0, mass)
        count_7, mass_7 = _add(count_7, mass_7, x >= peak - 7.0, mass)
        count_12, mass_12 = _add(count_12, mass_12, x >= peak - 12.0, mass)
    total = tl.sum(all_mass.to(tl.float64), 0)
    mass_limit = tl.where(top_p < 1.0, top_p * total, float("inf"))
    distance = float("inf")
    distance = tl.where(_holds_all(count_12, mass_12, 12.0, top_k, mass_limit, min_p), 12.0, distance)
    distance = tl.where(_holds_all(count_7, mass_7, 7.0, top_k, mass_limit, min_p), 7.0, distance)
    distance = tl.where(_holds_all(count_4, mass_4, 4.0, top_k, mass_limit, min_p), 4.0, distance)
    distance = tl.where(_holds_all(count_2, mass_2, 2.0, top_k, mass_limit, min_p), 2.0, distance)
    distance = tl.where(_holds_all(count_1, mass_1, 1.0, top_k, mass_limit, min_p), 1.0, distance)
    return total, distance


@triton.jit
def _add(counts, masses, chosen, mass):
    return counts + tl.sum(chosen.to(tl.int32), 0), masses + tl.sum(tl.where(chosen, mass, 0.0), 0)


@triton.jit
def _holds_all(counts, masses, distance, top_k, mass_limit, min_p):
    """A token beyond the distance has top_k or more tokens, or mass_limit or more mass, before it; or is below min_p."""
    enough = (tl.sum(counts, 0) >= top_k) | (tl.sum(masses.to(tl.float64), 0) >= mass_limit)
    return enough | (tl.exp(-distance) * 1.0001 < min_p)


@triton.jit
def _copy_candidates(row_ptr, scratch_ptr, half, vocab, scale, lowest, COLUMNS: tl.constexpr):
    """How many logits are >= lowest; scaled to scratch[0 ...], their ids to scratch[half ...] if they fit."""
    column = tl.arange(0, COLUMNS)
    count = 0
    for start in range(0, vocab, COLUMNS):
        index = start + column
        x = tl.load(row_ptr + index, mask=index < vocab, other=float("-inf")) * scale
        wanted = (x >= lowest) & (index < vocab)
        place = count + tl.cumsum(wanted.to(tl.int32), 0) - 1
        fits = wanted & (place < half)
        tl.store(scratch_ptr + place, x, mask=fits)
        tl.store(scratch_ptr + half + place, index.to(tl.float32, bitcast=True), mask=fits)
        count += tl.sum(wanted.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def _choose(
    row_ptr, size, scale, peak, lowest, uniform, limit, mass_limit, floor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Index of the chosen one among `size` logits, all above the key `lowest`; others are too small to be kept."""
    threshold, ties = _threshold(row_ptr, size, scale, peak, lowest, limit, mass_limit, ROWS, COLUMNS)
    tie_mass = _mass_of(from_order_key(threshold), peak, floor)
    _, mass = _above(row_ptr, size, scale, peak, threshold, floor, ROWS, COLUMNS)
    target = uniform * (mass + ties * tie_mass)

    # The smallest key with at most `target` mass above it. Above `low` there is more.
    low = (threshold - (ties > 0).to(tl.int32)).to(tl.int64)
    high = order_key(peak).to(tl.int64)
    above_low, _ = _above(row_ptr, size, scale, peak, low.to(tl.int32), floor, ROWS, COLUMNS)
    above_high = above_low * 0
    mass_high = mass * 0
    while (high - low > 1) & (above_low - above_high > 1):
        middle = (low + high) >> 1
        above, mass = _above(row_ptr, size, scale, peak, middle.to(tl.int32), floor, ROWS, COLUMNS)
        fits = mass <= target
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, middle)
        above_high = tl.where(fits, above, above_high)
        above_low = tl.where(fits, above_low, above)
        mass_high = tl.where(fits, mass, mass_high)
    one = tl.maximum(_mass_of(from_order_key(high.to(tl.int32)), peak, 0.0), 1e-300)
    allowed = above_low - above_high
    allowed = tl.where((high == threshold) & (ties > 0), tl.minimum(ties, allowed), allowed)
    rank = tl.minimum((target - mass_high) / one, (allowed - 1).to(tl.float64))
    rank = tl.where(allowed > 1, tl.maximum(rank, 0.0), 0.0).to(tl.int32)
    return _nth_between(row_ptr, size, scale, low, high, rank, COLUMNS)


@triton.jit
def _threshold(
    row_ptr, size, scale, peak, lowest, limit, mass_limit, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """(key, ties): top_k and top_p keep what is above the key and the first `ties` of those equal to it."""
    low = lowest.to(tl.int64)
    high = order_key(peak).to(tl.int64)
    above_low, mass_low = _above(row_ptr, size, scale, peak, low.to(tl.int32), 0.0, ROWS, COLUMNS)
    above_high = above_low * 0
    mass_high = mass_low * 0
    keeps_all = (above_low < limit) & (mass_low < mass_limit)
    while (high - low > 1) & (above_low - above_high > 1) & (keeps_all == 0):
        middle = (low + high) >> 1
        above, mass = _above(row_ptr, size, scale, peak, middle.to(tl.int32), 0.0, ROWS, COLUMNS)
        kept = (above < limit) & (mass < mass_limit)
        high = tl.where(kept, middle, high)
        low = tl.where(kept, low, middle)
        above_high = tl.where(kept, above, above_high)
        above_low = tl.where(kept, above_low, above)
        mass_high = tl.where(kept, mass, mass_high)
    # With one token between the bounds, or all kept: everything above `low`. Else all between them equal `high`.
    ties = above_low - above_high
    exact = (ties > 1) & (keeps_all == 0)
    one = _mass_of(from_order_key(high.to(tl.int32)), peak, 0.0)
    by_mass = tl.ceil((mass_limit - mass_high) / tl.maximum(one, 1e-300))
    by_count = tl.minimum(limit - above_high, ties).to(tl.float64)
    ties = tl.where(exact, tl.minimum(by_mass, by_count), 0.0).to(tl.int32)
    return tl.where(exact, high, low).to(tl.int32), ties


@triton.jit
def _above(
    row_ptr, size, scale, peak, key, floor, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """How many logits are above the key, and the mass (float64) of those of them with mass >= floor."""
    counts = tl.zeros((COLUMNS,), tl.int32)
    masses = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, size, ROWS * COLUMNS):
        index, x = load_block(row_ptr, start, size, scale, ROWS, COLUMNS)
        chosen = (order_key(x) > key) & (index < size)
        mass = tl.exp(x - peak)
        counts += tl.sum(chosen.to(tl.int32), 0)
        masses += tl.sum(tl.where(chosen & (mass >= floor), mass, 0.0), 0)
    return tl.sum(counts, 0), tl.sum(masses.to(tl.float64), 0)


@triton.jit
def _mass_of(x, peak, floor):
    mass = tl.exp(x - peak)
    return tl.where(mass >= floor, mass, 0.0).to(tl.float64)


@triton.jit
def _nth_between(row_ptr, size, scale, low, high, rank, COLUMNS: tl.constexpr):
    """Index of number `rank` (from 0) of the logits with low < key <= high."""
    column = tl.arange(0, COLUMNS)
    seen = 0
    found = 0
    for start in range(0, size, COLUMNS):
        index = start + column
        x = tl.load(row_ptr + index, mask=index < size, other=float("-inf")) * scale
        key = order_key(x).to(tl.int64)
        hit = (key > low) & (key <= high) & (index < size)
        place = seen + tl.cumsum(hit.to(tl.int32), 0) - 1
        found = tl.maximum(found, tl.max(tl.where(hit & (place == rank), index, 0), 0))
        seen += tl.sum(hit.to(tl.int32), 0)
    return found
