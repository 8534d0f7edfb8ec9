"""The programs that are golden, CONFIG@TOPOLOGY, compiled for the phases of these numbers; and more of all phases.

The first table is what a check can compile: at least one phase of every config for TPUs, one chip, several, two slices,
and each generation that has kernels of its own. BERT-Large takes two to three minutes per phase.
"""

PROGRAMS = {
    "colab_tpu@v5e:1x1": (0,),
    "base_tpu@v5e:4x4": (0, 1),
    "large_tpu@v5p:2x2x4": (1,),
    "large_tpu@v6e:4x4": (0,),
    "large_tpu:lamb_64k@2xv5e:8x8": (0,),
    "encoder_2026@v5e:4x4": (2,),
    "base_tpu:modernbert-base@v5e:4x4": (0,),
}
MORE_PROGRAMS = (
    "base_tpu@v5e:1x1",
    "base_tpu@v5e:8x8",
    "base_tpu@v5p:2x2x4",
    "base_tpu@v6e:4x4",
    "base_tpu@v4:2x2x4",
    "base_tpu@2xv5e:4x4",
    "colab_tpu@v6e:1x1",
    "large_tpu@v5e:4x4",
    "large_tpu@v5e:8x8",
    "large_tpu@v4:2x2x4",
    "large_tpu:lamb_64k@v5e:8x8",
    "large_tpu:lamb_64k@v5p:2x2x4",
    "large_tpu:lamb_64k@v6e:4x4",
)
