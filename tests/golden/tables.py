"""The programs that are golden, CONFIG@TOPOLOGY: those that a check compiles in 8 minutes of two cores, and more."""

PROGRAMS = (
    "colab_tpu@v5e:1x1",
    "base_tpu@v5e:4x4",
    "large_tpu@v5p:2x2x4",
    "large_tpu@v6e:4x4",
    "large_tpu:lamb_64k@2xv5e:8x8",
)
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
