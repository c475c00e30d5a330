"""Arrays, Fourier transforms, compiled kernels: the only home of cupy, pyfftw and numba."""
