"""The numbers of profile `residual`'s integer arithmetic, the same in numba, torch and Triton."""

from __future__ import annotations

# A reconstruction counts in these parts of a step.
UNIT_BITS = 6
UNIT = 1 << UNIT_BITS
# The largest reconstruction: 511.98 steps; and the largest code.
RANGE = 32767
# Stands for what lies beyond it.
BEYOND = -32768
LARGEST = 511
# Weights of a channel's own frame before, below 4, and of the tap below, below 16.
WEIGHT_BITS = 12
BELOW_BITS = 10
WEIGHT_LIMIT = (1 << 14) - 1
# The smoother: five neighbours, weights below 4. Its sum keeps 24 bits, which float32 holds exactly.
SMOOTH_BITS = 11
SMOOTH_LIMIT = (1 << 13) - 1
SMOOTH_SHIFT = 8
# What one unit of a smoothed value is, in steps.
SMOOTHED_UNIT = float(2.0 ** (SMOOTH_SHIFT - SMOOTH_BITS - UNIT_BITS))
