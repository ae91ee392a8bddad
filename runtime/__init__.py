"""Running networks on video: engines, sources, sinks and the loop. Imports with NumPy and OpenCV alone."""

from gradseg.runtime.segmenter import Segmenter

__all__ = ["Segmenter"]
