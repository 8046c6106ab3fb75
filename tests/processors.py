"""Run tests with the instructions and BLAS kernels of other processors: ``make processors``.

NumPy and OpenBLAS choose their code when they are loaded, so each choice needs a process of its
own. An argument is passed on to pytest.
"""

import os
import subprocess
import sys

TEST = "tests/unit/test_row_independence.py"
CHOICES = ("NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE")
FOUND = "import numpy; print(*numpy.show_config(mode='dicts')['SIMD Extensions']['found'])"


def plain_environment() -> dict[str, str]:
    """Return the environment without what chooses code."""
    return {name: value for name, value in os.environ.items() if name not in CHOICES}


def avx512() -> list[str]:
    """Return the names of NumPy's AVX-512 features that this processor has."""
    command = [sys.executable, "-c", FOUND]
    answer = subprocess.run(
        command, env=plain_environment(), check=True, capture_output=True, text=True
    )
    return [name for name in answer.stdout.split() if name.startswith(("AVX512", "X86_V4"))]


def passes() -> dict[str, dict[str, str]]:
    """Return what to set in the environment, by the name of the pass."""
    chosen: dict[str, dict[str, str]] = {"as is": {}}
    if features := avx512():
        chosen["without AVX-512"] = {"NPY_DISABLE_CPU_FEATURES": " ".join(features)}
    else:
        print("== without AVX-512: skipped, NumPy has no AVX-512 code for this processor")
    for core in ("Haswell", "Nehalem"):
        chosen[f"OpenBLAS for {core}"] = {"OPENBLAS_CORETYPE": core}
    return chosen


def main() -> None:
    """Run all passes, also after one that fails."""
    failed = []
    for name, choice in passes().items():
        print(f"== {name}", choice or "", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", TEST, *sys.argv[1:]]
        if subprocess.run(command, env=plain_environment() | choice, check=False).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
