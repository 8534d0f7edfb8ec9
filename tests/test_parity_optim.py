"""AdamW beside PyTorch's: twenty steps on the same gradients, decay on the same parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import OptimizerConfig
from bert_jax.training.optimizers import make_optimizer, optimizer_rule
from tests.rounding import NOTICED, update_bound

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")

pytestmark = [pytest.mark.parity, pytest.mark.numerics]


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_twenty_steps_of_adamw_equal_pytorchs(scale: float) -> None:
    config = OptimizerConfig(name="adamw", weight_decay=0.1, max_grad_norm=1.0)
    rates = [0.01 * (step + 1) / 20 for step in range(20)]
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    params: Any = {"pooler": {"dense": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
    table = jnp.asarray(rates, jnp.float32)
    optimizer = make_optimizer(config, rule=optimizer_rule(config, recipe="modern"), schedule=lambda step: table[step])
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)

    theirs = [torch.nn.Parameter(torch.tensor(kernel)), torch.nn.Parameter(torch.tensor(bias))]
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}]
    torch_optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-6)

    for step, rate in enumerate(rates):
        grads = [scale * rng.normal(size=leaf.shape).astype(np.float32) for leaf in (kernel, bias)]
        updates, state = update({"pooler": {"dense": {"kernel": grads[0], "bias": grads[1]}}}, state, params)
        params = optax.apply_updates(params, updates)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        for group in torch_optimizer.param_groups:
            group["lr"] = rate
        torch_optimizer.step()
        ours = params["pooler"]["dense"]
        for mine, other, start in zip((ours["kernel"], ours["bias"]), theirs, (kernel, bias), strict=True):
            expected = other.detach().numpy()
            bound = update_bound(step + 1, rate=0.01, size=float(np.abs(expected).max()))
            np.testing.assert_allclose(mine, expected, rtol=0, atol=bound, err_msg=f"step {step}")
            assert step < 19 or bound < NOTICED * np.abs(expected - start).max()  # of the movement
