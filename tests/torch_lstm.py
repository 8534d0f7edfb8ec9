"""The parameters of our LSTMs in PyTorch's `nn.LSTM`."""

from typing import Any

import numpy as np


def torch_gates(params: Any) -> dict[str, np.ndarray]:
    """Return one direction's weights as PyTorch has them: input, forget, candidate and output gate below each other."""
    bias = np.concatenate([params[f"h{gate}"]["bias"] for gate in "ifgo"])
    return {
        "weight_ih": np.concatenate([params[f"i{gate}"]["kernel"].T for gate in "ifgo"]),
        "weight_hh": np.concatenate([params[f"h{gate}"]["kernel"].T for gate in "ifgo"]),
        "bias_ih": bias,
        "bias_hh": np.zeros_like(bias),
    }


def copy_to_torch(params: Any, lstm: Any) -> None:
    """Copy the parameters `forward_l`, and if there are any `backward_l`, of every layer l."""
    import torch

    with torch.no_grad():
        for layer in range(lstm.num_layers):
            for direction, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + lstm.bidirectional]:
                for name, value in torch_gates(params[f"{direction}_{layer}"]).items():
                    getattr(lstm, f"{name}_l{layer}{suffix}").copy_(torch.from_numpy(np.array(value)))
