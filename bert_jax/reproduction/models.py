"""The pre-trained models of the paper's experiments: what each changes of the scale's pre-training config.

Rows of different tables that name the same model share it; so do two models whose configs turn out the same.
"""

from collections.abc import Mapping

from bert_jax.config.reproduction import ROWS_OF_TABLE_6
from bert_jax.reproduction.experiments import LARGE, LSTM, Model

# Percentages of the predicted tokens that become [MASK], stay, or become a random token (Table 8).
MIXES = ((80, 10, 10), (100, 0, 0), (80, 0, 20), (80, 20, 0), (0, 20, 80), (0, 0, 100))
CASED = {"data.do_lower_case": False}
BASE_ROW = 3  # of Table 6 is BERT-Base: whoever trains it first keeps the checkpoints of Figure 5


def mix_name(mix: tuple[int, int, int]) -> str:
    """Return the name of the model of a row of Table 8."""
    return "mix_" + "_".join(map(str, mix))


def _mixed(mix: tuple[int, int, int]) -> Model:
    mask, same, random = (share / 100 for share in mix)
    changes = {"masking.mask_share": mask, "masking.same_share": same, "masking.random_share": random}
    return Model("masking {}/{}/{}".format(*mix), changes=changes, is_curve=mix == MIXES[0])


def _lstm(direction: str) -> Model:
    changes = {"model.architecture": "lstm", "train.objective": "causal", "model.attention_direction": direction}
    return Model(f"LSTM language model, {direction.replace('_', ' ')}", size=LSTM, changes=changes)


MODELS: Mapping[str, Model] = {
    "base": Model("BERT-Base", is_curve=True),
    "large": Model("BERT-Large", size=LARGE),
    "base_cased": Model("BERT-Base for Table 7", changes=CASED),
    "large_cased": Model("BERT-Large for Table 7", size=LARGE, changes=CASED),
    # Section 5.1: masked LM without next sentences, on the same pairs of segments.
    "no_nsp": Model("No NSP", changes={"train.objective": "mlm"}),
    # Section 5.1: each position predicts the next token and sees those to its left, here and in fine-tuning.
    "ltr": Model(
        "LTR & No NSP",
        changes={"train.objective": "causal", "model.attention_direction": "left_to_right"},
        is_curve=True,
    ),
    # Figure 3, ELMo: two language models, trained independently.
    "lstm_ltr": _lstm("left_to_right"),
    "lstm_rtl": _lstm("right_to_left"),
    **{
        f"size_{row}": Model(f"row {row + 1} of Table 6", size=row, is_curve=row == BASE_ROW)
        for row in range(ROWS_OF_TABLE_6)
    },
    **{mix_name(mix): _mixed(mix) for mix in MIXES},
}
