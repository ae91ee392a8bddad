"""Which of cuda-python and pycuda the device has, opened."""

from __future__ import annotations

from typing import List, Optional

from gradseg.base.errors import GradsegError
from gradseg.runtime.cuda.cuda_python_backend import CudaPython
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.cuda.memory import Cuda
from gradseg.runtime.cuda.pycuda_backend import CudaPycuda


def open_cuda(where: str, gpu: Gpu) -> Cuda:
    """cuda-python, which can capture CUDA graphs, or else pycuda.

    GradsegError with exit code 3 if neither is there, or what is there does not work with the driver.
    """
    problems: List[str] = []
    for kind in (CudaPython, CudaPycuda):
        try:
            found: Optional[Cuda] = kind.open(where)
            if found is not None:
                return found
        except RuntimeError as error:
            problems.append(str(error))
    major = gpu.cuda.split(".")[0]
    raise GradsegError(
        f"{where} needs cuda-python or pycuda; {'; '.join(problems) or 'neither can be imported here'}. "
        f"This driver supports CUDA {gpu.cuda}: pip install 'cuda-python=={major}.*'",
        3,
    )
