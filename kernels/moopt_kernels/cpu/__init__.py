"""C++ kernels for x86-64 CPUs, compiled at first use: AVX-512 with VNNI and AMX where there is, else AVX2."""
