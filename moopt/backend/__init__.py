"""The quantized-model backend: load a model, quantize it, switch its widths, run it, measure it."""
