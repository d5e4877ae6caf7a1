"""Multiplications and additions of a program's matrix products, from its trace.

XLA counts one pass through each loop and includes what runs only at logged steps. This
count follows loops and does not depend on a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of all matrix products and convolutions of `function(*args)`."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        ((left, _), _) = eqn.params["dimension_numbers"]
        summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in left)
        return 2 * eqn.outvars[0].aval.size * summed
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * eqn.outvars[0].aval.size * math.prod(kernel) // outputs
    inner = [_count(jaxpr) for jaxpr in _jaxprs(eqn.params)]
    if name == "cond":  # branches for other platforms compute the same
        return max(inner, default=0)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """The programs that an equation calls."""
    programs = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)  # closed ones hold an open one
            if hasattr(part, "eqns"):
                programs.append(part)
    return programs
