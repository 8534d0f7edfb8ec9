"""How far losses may lie from the golden ones on another machine: derived from the sums of a step and measured moves.

A computed sum of n products, in whatever order and vector width, is the exact sum of products that are each changed by
a factor within 1 +- sqrt(n) u, u = 2^-24 (probabilistic backward error: Higham & Mary 2019, with their constant 1).
So a step on another machine is this machine's step on parameters that are each moved by sqrt(n) u: activations and
gradients are sums of products with parameters, and what is done to them one by one (dropout, activations, Adam's
quotient) adds errors of a few u, fewer than the sums do.

What a move does to a loss depends on the model, its data and all steps before, and is measured: the generator repeats
a run, moving every parameter to a neighboring float32 (by u to 2u) before *every* step, with random signs, and stores
the largest change of each loss (`moves`). Rounding is so small that changes grow in proportion, so

    bound(step) = 2 sqrt(n) max(moves up to that step) + 2 sqrt(m) u |loss|

with 2 for two machines that each round in their way; n = 1,024, more than any sum of these runs has (tokens of a batch:
512 to 768; words: 200; widths: 32 to 128); the last term for the mean over m <= 512 predictions itself, whose rounding
does not act through parameters. The largest move so far, as two draws may happen to cancel at one step.

Half precision (frozen features are stored in it) is part of the moves: there a draw moves the weights that the features
come from, and some features round the other way.
"""

import math

import numpy as np

UNIT_ROUNDOFF = 2.0**-24
MOST_TERMS = 1024
MOST_PREDICTIONS = 512


def loss_bounds(losses: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Return how far each loss may lie from the golden one."""
    grown = 2 * math.sqrt(MOST_TERMS) * np.maximum.accumulate(moves)
    return grown + 2 * math.sqrt(MOST_PREDICTIONS) * UNIT_ROUNDOFF * np.abs(losses)


def neighbor(values: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return each float32 moved to the next one up or down, at random; a zero, which has no rounding error, stays."""
    direction = np.where(rng.random(values.shape) < 0.5, np.float32(np.inf), np.float32(-np.inf))
    return np.where(values == 0, values, np.nextafter(values, direction))
