"""From stored values to Hounsfield units: value * slope + intercept, in 16 bits where that is exact."""

from __future__ import annotations

import numpy as np

from VelvetMedLib.shapes import ArrayKJI


def scaled(array: ArrayKJI, slope: float, intercept: float) -> ArrayKJI:
    """value * slope + intercept; integers stay integers (int16 where the result fits) when slope and intercept are whole."""
    if slope == 1.0 and intercept == 0.0:
        return array
    if array.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(array.min()) * int(slope) + int(intercept), int(array.max()) * int(slope) + int(intercept)]
        small = array.dtype.itemsize <= 2 and abs(slope) < 2**15 and abs(intercept) < 2**15
        if small and min(ends) >= -(2**15) and max(ends) < 2**15:
            # In 16 bits the sum may wrap on its way, but the end fits, and two's complement brings it back.
            whole: ArrayKJI = array.astype(np.int16)
            if slope != 1.0:
                whole *= np.int16(slope)
            whole += np.int16(intercept)
            return whole
        if max(abs(int(slope)), abs(int(intercept)), *(abs(end) for end in ends)) < 2**31:
            return array.astype(np.int64) * int(slope) + int(intercept)
        # A damaged header may name any number: what no integer holds stays a float, for the plausibility check to refuse.
    out: ArrayKJI = array.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        out *= np.float32(slope)
        out += np.float32(intercept)
    return out
