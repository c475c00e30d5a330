"""NVRTC and nvcc, as far as ``benchmarks.gpu_budget`` and the tests need them: what the assembler says of a kernel.

NVRTC takes source, options and names as CuPy hands them on (``cupy.cuda.compiler``, 14.2), so that what is looked at is
what a GPU would run; it is found by NVIDIA's own bindings, ``pip install hpcrec[nvrtc]``.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

CompilerName = Literal["nvrtc", "nvcc"]
# Options of NVRTC under other names in nvcc
_OF_NVCC = {"-default-device": "--expt-relaxed-constexpr"}
# What CuPy adds to a module's own options
_OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")


class CompilerError(RuntimeError):
    """A compiler is missing, or refuses a source; the message holds its log."""


def fault(compiler: CompilerName) -> str | None:
    """Say why a compiler cannot be used, or return None."""
    if compiler == "nvcc":
        return None if shutil.which("nvcc") else "nvcc is not on the path"
    try:
        _nvrtc().nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        return f"NVRTC cannot be loaded ({str(error).splitlines()[0]}); install hpcrec[nvrtc]"
    return None


def version(compiler: CompilerName) -> str:
    """Return a compiler's version."""
    if compiler == "nvrtc":
        return "NVRTC {}.{}".format(*_done(_nvrtc().nvrtcVersion()))
    told = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return f"nvcc {told.rpartition('release ')[2].split(',')[0]}"


def assembler_report(
    compiler: CompilerName, source: str, options: tuple[str, ...], name: str, argument: str, architecture: str
) -> str:
    """Compile the kernel of a C++ name to machine code of an architecture, "sm_90"; return what the assembler says.

    argument : its struct's name, which nvcc must be told; raises CompilerError with the compiler's log
    """
    if compiler == "nvrtc":
        return _by_nvrtc(source, (*options, *_OF_CUPY), name, architecture)
    return _by_nvcc(source, options, name, argument, architecture)


def _nvrtc() -> Any:
    return import_module("cuda.bindings.nvrtc")


def _done(answer: tuple[Any, ...]) -> Any:
    """Return what a call of the bindings gives behind its status; raise CompilerError for a failed one."""
    status, *values = answer
    if int(status):
        raise CompilerError(f"NVRTC answers {status.name}")
    return values[0] if len(values) == 1 else values


def _by_nvrtc(source: str, options: tuple[str, ...], name: str, architecture: str) -> str:
    nvrtc = _nvrtc()
    program = _done(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    try:
        _done(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        given = [option.encode() for option in (*options, f"-arch={architecture}", "--ptxas-options=-v")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
        log = b" " * _done(nvrtc.nvrtcGetProgramLogSize(program))
        _done(nvrtc.nvrtcGetProgramLog(program, log))
        text = log.decode().rstrip("\0 \n")
        if int(status):
            raise CompilerError(f"NVRTC cannot compile {name} for {architecture}: {status.name}\n{text}")
        # CuPy asks for these by the name that the kernel was asked for
        _done(nvrtc.nvrtcGetLoweredName(program, name.encode()))
        if not _done(nvrtc.nvrtcGetCUBINSize(program)):
            raise CompilerError(f"NVRTC made no machine code of {name} for {architecture}\n{text}")
        return text
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _by_nvcc(source: str, options: tuple[str, ...], name: str, argument: str, architecture: str) -> str:
    text = f"{source}\ntemplate __global__ void {name}(const __grid_constant__ {argument});\n"
    given = [_OF_NVCC.get(option, option) for option in options]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "variant.cu").write_text(text, encoding="utf-8")
        command = [
            "nvcc",
            *given,
            f"-arch={architecture}",
            "-cubin",
            "-Xptxas",
            "-v",
            "-o",
            "variant.cubin",
            "variant.cu",
        ]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CompilerError(f"nvcc cannot compile {name} for {architecture}:\n{done.stderr}")
    return done.stderr
