"""The quantized-model backend: load a model, quantize it, switch its widths, run it, measure it."""

import os

# OpenMP's idle threads spin by default, which slows a hundredfold whoever shares the cores. It is read when torch is
# imported, so it must be set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
