"""NVRTC takes the fused kernel's source, options and names of variants, for several architectures, without a GPU."""

import ctypes
import ctypes.util
import sys
from itertools import product
from pathlib import Path

import pytest

from hpcrec.backend import cuda

pytestmark = pytest.mark.emulation


@pytest.fixture(scope="module")
def nvrtc():
    """The run-time compiler of the system, or of the package ``nvidia-cuda-nvrtc``."""
    packaged = [found for folder in sys.path for found in Path(folder).glob("nvidia/*/lib/libnvrtc.so.1?")]
    name = ctypes.util.find_library("nvrtc") or next(map(str, packaged), None)
    if name is None:
        pytest.skip("NVRTC is not installed (package nvidia-cuda-nvrtc): the GPU kernel cannot be compiled")
    # It asks for this one by its name alone, which the loader knows once it is there
    for builtins in Path(name).parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(name)


@pytest.mark.parametrize(("n", "architecture"), list(product(cuda.SIZES, ["sm_80", "sm_90", "sm_100"])))
@pytest.mark.parametrize(
    ("loss", "counts", "flags"),
    [
        ("amplitude", "uint8", {}),
        ("poisson", "uint16", {"shifted": True}),
        ("amplitude", "uint16", {"several": True}),
        ("poisson", "uint8", {"several": True, "shifted": True, "slopes": True}),
    ],
)
def test_a_variant_compiles(nvrtc, n, architecture, loss, counts, flags):
    program, name = ctypes.c_void_p(), cuda.kernel_name(n, loss, counts, **flags).encode()
    text = cuda.source("fused").encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"fused.cu", 0, None, None) == 0
    assert nvrtc.nvrtcAddNameExpression(program, name) == 0
    options = [option.encode() for option in (*cuda.compile_options(), f"-arch={architecture}")]
    result = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert result == 0, log.value.decode()
    lowered = ctypes.c_char_p()
    assert nvrtc.nvrtcGetLoweredName(program, name, ctypes.byref(lowered)) == 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
