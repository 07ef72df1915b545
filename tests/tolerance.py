"""Every tolerance of the whole-net and layer tests, with its reason. Kernels derive theirs in
test_kernels.py.

u = 2^-24 is float32's unit roundoff, v = 2^-9 bfloat16's.
"""

from __future__ import annotations

# Relative L2 error of a picture in float32 where Winograd may run. A sum of K products in pieces of
# 256 loses about 10 u, F(4x4,2x2) multiplies that by 4 and F(5x5,2x2) by 8 (docs/winograd.md, section
# 3), sixteen layers in a row add up as a random walk: 4 x 10 u x 4 = 160 u = 1e-5 at worst, twice that
# if all were of F(5x5,2x2). Half of 1e-5 is what the project promises; random nets are seen at 3e-6.
F32 = 5e-6

# Nets of few channels normalise maps of 2x2, whose variance may be small: the error before the norm is
# multiplied by 1 / deviation. Measured over the nets of this file the worst is 4e-6.
F32_NARROW = 2e-5

# bfloat16: operands are rounded to v / 2 each on average, layers and skips decorrelate: about 5 v.
BF16 = 1.2e-2
# Narrow nets average over fewer channels, and the transforms of F(3x3,2x2) round as well.
BF16_NARROW = 6e-2

# A direct room may lose twice what PyTorch's float32 loses on the same net: other orders of summing.
DIRECT_OVER_TORCH = 2.0

# A picture of a few pixels is reflected into a periodic one with flat deep maps. A direct sum gives equal
# windows equal bits; Winograd rounds them by their place in the tile, and norms divide that noise by
# as little as sqrt(eps) = 1/316: up to 160 u x 316 = 3e-3. Measured: 1.6e-4 for 2x2 pixels (plain rooms 1e-6).
# Still a fiftieth of an 8-bit level.
F32_FEW_PIXELS = 3e-4

# 8-bit pictures. An error of 1e-5 in [-1, 1] is 1.3e-3 levels: it moves a value over the middle between
# two levels in about one of 400, and never by two.
LEVELS = 1
EQUAL = 0.999
