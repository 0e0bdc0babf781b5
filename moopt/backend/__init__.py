"""The quantized-model backend: load a model, quantize it, switch its widths, run it, measure it."""

import os

# Read when torch is imported, so set before. OpenMP's idle threads spin by default, which slows a hundredfold whoever
# shares the cores; and large tensors come and go all the time here, which costs a third of it all in page faults
# unless they take huge pages.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
